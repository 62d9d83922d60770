"""The Ray dispatcher keeps the contract, and survives the death of its workers."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.catalogue import load_job
from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.capacity import Node, Request
from orchestrator.dispatch.ray_connection import connect, disconnect
from orchestrator.dispatch.ray_engine import EVENTS_AHEAD
from orchestrator.dispatch.ray_pool import RayDispatcher
from orchestrator.records import Status
from orchestrator.trial import Trial
from tests.dispatch_contract import DispatchContract, drain
from tests.driving import wait_for
from tests.jobs_for_runner import FLOODS
from tests.runner_kit import Kept, ramp, run, task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for the module: pools come and go on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        connect(Node(cpus=2, memory_bytes=2e9))
        yield
        disconnect()


class TestRay(DispatchContract):
    def make(self) -> Dispatcher:
        return RayDispatcher(request=Request(workers=2, device="cpu"))


def pool_of(workers: int) -> RayDispatcher:
    return RayDispatcher(job="tests.jobs_for_runner:Ramp", request=Request(workers=workers, device="cpu"))


def test_a_worker_killed_amid_a_pack_is_replaced_and_only_that_pack_is_lost() -> None:
    pool = pool_of(1)
    try:
        (pid,) = pool.process_ids
        pool.submit([task([ramp(wait_s=0.5)], "first"), task([ramp(replicate=1)], "second")])
        while not any(event.pack_id == "first" for event in pool.poll(0.2)):
            os.kill(pid, signal.SIGKILL)
            break
        events = drain(pool, 2)
        (lost,) = (event for event in events if isinstance(event, PackFailed))
        assert (lost.pack_id, lost.cause) == ("first", Cause.WORKER_LOST)
        assert [event.pack_id for event in events if isinstance(event, PackEnded)] == ["second"]
        assert pool.process_ids != [pid]
    finally:
        pool.close()


def test_a_worker_that_reports_faster_than_the_driver_takes_waits_for_it(tmp_path: Path) -> None:
    """Each report of this job is an event of its own."""
    mark, pool = tmp_path / "mark", pool_of(1)
    trials = [ramp("tests.jobs_for_runner:Flood", replicate=r, mark=str(mark)) for r in range(50)]
    try:
        pool.submit([task(trials, "flood")])
        events: list[Event] = []
        while not events:
            events += pool.poll(0.2)
        reported = 0
        while int(mark.read_text() or 0) > reported:
            reported = int(mark.read_text() or 0)
            time.sleep(1.0)
        assert reported <= 1 + EVENTS_AHEAD + 2
        events += drain(pool, 1)
        assert sum(len(e.rows.step) for e in events if isinstance(e, PackProgress) and e.rows) == 50 * FLOODS
    finally:
        pool.close()


def test_trials_whose_worker_is_killed_finish_exactly_once(tmp_path: Path) -> None:
    trials = [
        ramp(replicate=r, trouble="kill once" if r == 5 else "none", mark=str(tmp_path / "mark") if r == 5 else "")
        for r in range(16)
    ]
    tracker, pool = Kept(), pool_of(2)
    summary = run(trials, tracker, pool=lambda: pool)
    assert (tmp_path / "mark").exists()
    assert (summary.done, summary.failed) == (16, 0)
    assert set(tracker.ended.values()) == {1}
    assert set(tracker.status.values()) == {Status.FINISHED}


def test_a_trial_that_always_kills_its_worker_fails_and_the_rest_finishes() -> None:
    trials = [ramp(replicate=r, trouble="kill always" if r == 2 else "none") for r in range(6)]
    tracker, pool = Kept(), pool_of(2)
    summary = run(trials, tracker, pool=lambda: pool)
    assert (summary.done, summary.failed) == (5, 1)
    assert "lost 3 workers" in (summary.failures[0][1].error or "")
    assert summary.failures[0][0].id == trials[2].id


def test_a_user_module_in_the_working_directory_loads_on_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_ramp.py").write_text("from tests.jobs_for_runner import Ramp\n\nclass Mine(Ramp):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trial = ramp("my_own_ramp:Mine")
    tracker, pool = Kept(), RayDispatcher(job="my_own_ramp:Mine", request=Request(workers=1, device="cpu"))
    assert run([trial], tracker, pool=lambda: pool).done == 1


def test_a_pack_that_hangs_is_ended_and_the_one_behind_it_runs() -> None:
    pool = pool_of(1)
    try:
        (pid,) = pool.process_ids
        hangs = replace(task([ramp(wait_s=1000.0)], "hangs"), timeout_s=0.5)
        pool.submit([hangs, task([ramp(replicate=1)], "next")])
        events = drain(pool, 2)
        (failed,) = (event for event in events if isinstance(event, PackFailed))
        assert (failed.pack_id, failed.cause) == ("hangs", Cause.TIMED_OUT)
        assert "resources.trial_timeout" in failed.error
        assert [event.pack_id for event in events if isinstance(event, PackEnded)] == ["next"]
        assert pool.process_ids != [pid]
    finally:
        pool.close()


def test_a_pack_that_waits_behind_a_long_one_moves_and_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, time\n\ndef train(params, seed, device, report):\n"
    code += "    open(f\"{params['folder']}/{params['name']}-{os.getpid()}\", 'w').close()\n"
    code += "    time.sleep(params['seconds'])\n    report(1, loss=1.0)\n"
    (tmp_path / "my_marks.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "marks").mkdir()

    def pack(name: str, seconds: float) -> PackTask:
        params = load_job("my_marks:train").params_for(
            {"folder": str(tmp_path / "marks"), "name": name, "seconds": seconds}
        )
        return task([Trial(job="my_marks:train", job_version=1, params=params, replicate=0)], name)

    pool = RayDispatcher(job="my_marks:train", request=Request(workers=2, device="cpu"))
    try:
        pool.submit([pack("long", 6.0), pack("short", 0.0), pack("waits", 0.0), pack("too", 0.0)])
        ends = [event.pack_id for event in drain(pool, 4) if isinstance(event, PackEnded)]
        assert sorted(ends[:3]) == ["short", "too", "waits"]
        pool.submit([pack("last", 0.0), pack("one", 0.0)])
        drain(pool, 2)
        names = [path.name.partition("-")[0] for path in (tmp_path / "marks").iterdir()]
        assert sorted(names) == ["last", "long", "one", "short", "too", "waits"]
    finally:
        pool.close()


def leaves(params: dict[str, Any], seed: int, device: str, report: Callable[..., None]) -> None:
    """Starts processes, writes down their ids, and ends its worker."""
    child = subprocess.Popen(["sleep", "3600"])
    apart = subprocess.check_output("setsid sleep 3600 > /dev/null & echo $!", shell=True, text=True)
    Path(params["pids"]).write_text(f"{child.pid} {apart}")
    os._exit(3)


def test_what_a_trial_started_ends_with_its_worker_while_the_pool_goes_on(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pack = task([ramp()], "first")
    pack = replace(pack, job=f"{__name__}:leaves", params=({"pids": str(pids)},))
    pool = pool_of(1)
    try:
        pool.submit([pack])
        (lost,) = drain(pool, 1)
        assert isinstance(lost, PackFailed)
        left = [int(pid) for pid in pids.read_text().split()]
        wait_for("their end", lambda: not any((Path("/proc") / str(pid)).exists() for pid in left))
    finally:
        pool.close()
