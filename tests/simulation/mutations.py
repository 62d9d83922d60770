"""Defects that were removed once, put back for a while: a search that does not find one of them proves little.

Each mutation replaces the function or the number that decides, in the running program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest import mock

from orchestrator import outages, records, runner
from orchestrator.dispatch import base, roster, worker
from orchestrator.dispatch.base import Cause
from orchestrator.dispatch.health import NodeHealth
from orchestrator.dispatch.pool import PooledDispatcher
from orchestrator.dispatch.roster import Roster
from orchestrator.errors import UserError
from orchestrator.failures import Decision, decide
from orchestrator.outages import Kind
from orchestrator.tracking import rows
from tests.simulation import driver
from tests.simulation.driver import Outcome, run_schedule
from tests.simulation.schedule import schedule_of

Replaced = tuple[Any, str, Any]
"""Where, which name, and by what."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A defect and how to put it back."""

    name: str
    """Begins with the number of the defect, see `MUTATIONS`."""
    replaced: Callable[[], tuple[Replaced, ...]]
    found_by: int
    """The seed of a schedule that finds it."""

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Inside, the program has the defect."""
        with contextlib.ExitStack() as stack:
            for place, name, value in self.replaced():
                stack.enter_context(mock.patch.object(place, name, value))
            yield

    def search(self, first: int, schedules: int) -> tuple[int, Outcome] | None:
        """The first seed at which an invariant breaks, and what happened there; None if none does."""
        with self.put_back():
            for seed in range(first, first + schedules):
                outcome = run_schedule(schedule_of(Random(seed)))
                if outcome.violations:
                    return seed, outcome
        return None


def _raw_texts() -> tuple[Replaced, ...]:
    def raw(text: str, *, longest: int = 0) -> str:
        return text

    return ((records, "printable", raw), (base, "printable", raw), *_data_errors_end_the_run())


def _any_step() -> tuple[Replaced, ...]:
    return ((worker, "LARGEST_STEP", 2**63 - 1), (rows, "LARGEST_STEP", 2**63 - 1))


def _data_errors_end_the_run() -> tuple[Replaced, ...]:
    real = outages._kind

    def kind(error: BaseException) -> Kind:
        found = real(error)
        return Kind.OTHER if found is Kind.DATA else found

    return ((outages, "_kind", kind),)


def _no_second_attempt() -> tuple[Replaced, ...]:
    def decision(cause: Cause, **facts: Any) -> Decision:
        if cause is Cause.USER_ERROR:
            facts["attempt"] = replace(facts["attempt"], error=facts["attempt"].error or facts["error"])
        return decide(cause, **facts)

    return ((runner, "decide", decision),)


def _second_attempt_anywhere() -> tuple[Replaced, ...]:
    def decision(cause: Cause, **facts: Any) -> Decision:
        decided = decide(cause, **facts)
        attempt = replace(decided.attempt, avoid_nodes=frozenset(), fresh_worker=False)
        return replace(decided, attempt=attempt) if cause is Cause.USER_ERROR else decided

    return ((runner, "decide", decision), (PooledDispatcher, "_consider", lambda *event: None))


def _three_stillborn_workers_anywhere() -> tuple[Replaced, ...]:
    real_failed, real_started, real_fill = NodeHealth.start_failed, NodeHealth.started, Roster.fill
    stillborn = 0

    def start_failed(health: NodeHealth, node: str, **facts: Any) -> None:
        nonlocal stillborn
        stillborn += 1
        real_failed(health, node, **facts)

    def started(health: NodeHealth, node: str) -> None:
        nonlocal stillborn
        stillborn = 0
        real_started(health, node)

    def fill(pool: Roster, now: float) -> int:
        if stillborn >= roster.STILLBORN_LIMIT:
            raise UserError("workers died while starting, 3 times in a row")
        return real_fill(pool, now)

    return ((NodeHealth, "start_failed", start_failed), (NodeHealth, "started", started), (Roster, "fill", fill))


def _lost_nodes_count() -> tuple[Replaced, ...]:
    def decision(cause: Cause, **facts: Any) -> Decision:
        return decide(Cause.WORKER_LOST if cause is Cause.NODE_LOST else cause, **facts)

    return ((runner, "decide", decision),)


def _no_deadline() -> tuple[Replaced, ...]:
    real = runner.Runner

    def without(**options: Any) -> runner.Runner:
        return real(**{**options, "trial_timeout_s": None})

    return ((driver, "Runner", without),)


def _no_patience() -> tuple[Replaced, ...]:
    return ((driver, "ResilientTracker", lambda inner, **options: inner),)


MUTATIONS = (
    Mutation(name="1: an error text with a lone surrogate", replaced=_raw_texts, found_by=1),
    Mutation(name="1: a step near 2^63", replaced=_any_step, found_by=3),
    Mutation(name="2: an exception fails its trial at once", replaced=_no_second_attempt, found_by=3),
    Mutation(name="2: the second attempt runs anywhere", replaced=_second_attempt_anywhere, found_by=3),
    Mutation(name="3: three stillborn workers end the run", replaced=_three_stillborn_workers_anywhere, found_by=63),
    Mutation(name="4: a lost node counts against its trials", replaced=_lost_nodes_count, found_by=12),
    Mutation(name="7: a hanging trial has no deadline", replaced=_no_deadline, found_by=5),
    Mutation(name="8: an outage of the record ends the run", replaced=_no_patience, found_by=2),
)
"""Defects that a simulation can express: 1 data errors, 2 bad workers and nodes, 3 failed starts, 4 lost nodes,
7 hanging trials, 8 outages of the record."""
