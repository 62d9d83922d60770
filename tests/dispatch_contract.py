"""The contract of every dispatcher; each implementation inherits the suite."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackEnded, PackFailed, PackProgress
from orchestrator.records import Status
from tests.jobs_for_runner import STEPS
from tests.runner_kit import RAMP, Kept, ramp, run, task


def drain(pool: Dispatcher, packs: int, patience_s: float = 90.0) -> list[Event]:
    """Events until so many packs have ended."""
    events: list[Event] = []
    end = time.monotonic() + patience_s
    while sum(not isinstance(event, PackProgress) for event in events) < packs:
        assert time.monotonic() < end, f"packs did not end: {events}"
        events += pool.poll(0.2)
    return events


class DispatchContract(ABC):
    """Inherit it, and say how to make a pool."""

    @abstractmethod
    def make(self) -> Dispatcher:
        """A pool that is ready for packs."""

    @pytest.fixture
    def pool(self) -> Iterator[Dispatcher]:
        pool = self.make()
        yield pool
        pool.close()

    def test_it_has_workers(self, pool: Dispatcher) -> None:
        assert pool.workers >= 1

    def test_every_pack_ends_once_and_every_trial_is_in_it(self, pool: Dispatcher) -> None:
        packs = [task([ramp(replicate=2 * p), ramp(replicate=2 * p + 1)], f"pack {p}") for p in range(7)]
        pool.submit(packs[:3])
        pool.submit(packs[3:])
        events = drain(pool, 7)
        ended = [event.pack_id for event in events if isinstance(event, PackEnded)]
        assert sorted(ended) == [pack.pack_id for pack in packs]
        results = [r for event in events if isinstance(event, PackProgress) for r in event.results]
        assert sorted(r.trial_id for r in results) == sorted(i for pack in packs for i in pack.trial_ids)
        assert {r.status for r in results} == {Status.FINISHED}
        rows = sum(len(e.rows.step) for e in events if isinstance(e, PackProgress) and e.rows is not None)
        assert rows == 14 * STEPS

    def test_the_events_of_a_pack_come_in_order(self, pool: Dispatcher) -> None:
        pool.submit([task([ramp(wait_s=0.15)], "slow"), task([ramp(wait_s=0.1, replicate=1)], "also slow")])
        events = drain(pool, 2)
        for name in ("slow", "also slow"):
            mine = [event for event in events if event.pack_id == name]
            assert isinstance(mine[-1], PackEnded)
            steps = [
                s for e in mine if isinstance(e, PackProgress) and e.rows is not None for s in e.rows.step.tolist()
            ]
            assert steps == list(range(1, STEPS + 1))

    def test_a_failed_pack_reports_its_cause_and_later_packs_run(self, pool: Dispatcher) -> None:
        pool.submit(
            [
                task([ramp(trouble="raise"), ramp()], "raises"),
                task([ramp(trouble="memory")], "memory"),
                task([ramp(replicate=1)], "fine"),
            ]
        )
        events = drain(pool, 3)
        failed = {event.pack_id: event for event in events if isinstance(event, PackFailed)}
        assert {name: event.cause for name, event in failed.items()} == {
            "raises": Cause.USER_ERROR,
            "memory": Cause.OUT_OF_MEMORY,
        }
        assert "ValueError: this setting is impossible" in failed["raises"].error
        assert [e.pack_id for e in events if isinstance(e, PackEnded)] == ["fine"]

    def test_without_packs_there_is_no_news_and_no_long_wait(self, pool: Dispatcher) -> None:
        assert not any(pool.poll(0.01) for _ in range(3))

    def test_closing_twice_is_no_error(self) -> None:
        pool = self.make()
        pool.submit([task([ramp(wait_s=0.05)])])
        pool.close()
        pool.close()

    def test_a_whole_sweep_runs_on_it(self, pool: Dispatcher) -> None:
        trials = [ramp(RAMP, slope=float(s), trouble="raise" if s == 4 else "none") for s in range(9)]
        tracker = Kept()
        summary = run(trials, tracker, pool=lambda: pool)
        assert (summary.done, summary.failed) == (8, 1)
        assert set(tracker.ended.values()) == {1}
