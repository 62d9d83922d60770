"""The inline dispatcher keeps the contract."""

import threading
from dataclasses import replace
from pathlib import Path

from orchestrator.dispatch.base import Dispatcher, PackEnded, PackProgress
from orchestrator.dispatch.inline import InlineDispatcher
from tests.dispatch_contract import DispatchContract
from tests.test_checkpoints import Clock, pack_of, walk


class TestInline(DispatchContract):
    def make(self) -> Dispatcher:
        return InlineDispatcher(flush_s=0.0)


def test_a_pack_that_has_run_for_a_while_is_saved_when_the_run_is_stopped(tmp_path: Path) -> None:
    """Also where the signal came between two of its events; a young pack is not waited for."""
    for before, asked in ((3, "poll"), (3, "await_saved"), (0, "poll")):
        folder, stopped = tmp_path / f"{before}-{asked}", threading.Event()
        dispatcher = InlineDispatcher(flush_s=0.0, clock=Clock(), stopping=stopped.is_set)
        pack = pack_of([walk(0.1, steps=400)], folder)
        dispatcher.submit([replace(pack, saving=replace(pack.saving, interval_s=1e9))])  # type: ignore[type-var]
        for _ in range(before * 10):
            assert len(dispatcher.poll(0.0)) == 1
        assert not list(folder.glob("*"))
        stopped.set()
        events = dispatcher.poll(0.0) if asked == "poll" else dispatcher.await_saved(1e6)
        if events is not None:
            assert [isinstance(e, PackProgress) and e.saved is not None for e in events[-1:]] == [True] * (before > 0)
        assert len(list(folder.glob("*.safetensors"))) == (before > 0)
        dispatcher.await_saved(1e6)
        assert len(list(folder.glob("*.safetensors"))) == (before > 0), "once"
        dispatcher.close()


def test_a_stopped_run_begins_no_further_pack(tmp_path: Path) -> None:
    stopped, pack = threading.Event(), pack_of([walk(0.1, steps=400)], tmp_path)
    dispatcher = InlineDispatcher(flush_s=0.0, clock=Clock(), stopping=stopped.is_set)
    dispatcher.submit([pack, replace(pack, pack_id="next")])
    while not isinstance(dispatcher.poll(0.0)[0], PackEnded):
        pass
    stopped.set()
    dispatcher.await_saved(1e6)
    assert dispatcher.poll(0.0) == []
    dispatcher.close()


def test_a_pack_that_cannot_be_saved_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stopped, pack = threading.Event(), pack_of([walk(0.1, steps=400)], tmp_path / "file")
    dispatcher = InlineDispatcher(flush_s=0.0, clock=Clock(), stopping=stopped.is_set)
    dispatcher.submit([pack])
    for _ in range(30):
        dispatcher.poll(0.0)
    stopped.set()
    dispatcher.await_saved(20.0)
    assert len(dispatcher.poll(0.0)) == 1, "the pack has not ended"
    dispatcher.close()
