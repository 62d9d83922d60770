"""Searches schedules for one that breaks an invariant, and reduces it to what is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from tests.simulation.driver import Outcome, run_schedule
from tests.simulation.job import HEALTHY
from tests.simulation.schedule import Schedule, schedule_of


@dataclass(kw_only=True)
class Findings:
    """What a search has seen."""

    schedules: int = 0
    planned: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    """Faults that had an effect, by kind."""
    exits: Counter[int] = field(default_factory=Counter)
    virtual_s: float = 0.0
    broken: list[tuple[int, Schedule, Outcome]] = field(default_factory=list)
    """Seed, schedule and outcome of those that broke an invariant."""

    def add(self, seed: int, schedule: Schedule, outcome: Outcome) -> None:
        self.schedules += 1
        self.planned.update(schedule.kinds)
        self.met.update(set(outcome.met))
        self.exits.update(outcome.exits)
        self.virtual_s += outcome.virtual_s
        if outcome.violations:
            self.broken.append((seed, schedule, outcome))

    def merge(self, other: Findings) -> None:
        self.schedules += other.schedules
        self.planned += other.planned
        self.met += other.met
        self.exits += other.exits
        self.virtual_s += other.virtual_s
        self.broken += other.broken


def search(first_seed: int, schedules: int, *, enough: int = 10) -> Findings:
    """Run the schedules of consecutive seeds, until `enough` of them have broken an invariant."""
    findings = Findings()
    for seed in range(first_seed, first_seed + schedules):
        schedule = schedule_of(Random(seed))
        findings.add(seed, schedule, run_schedule(schedule))
        if len(findings.broken) >= enough:
            break
    return findings


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """A smaller schedule that fails too: fewer faults, fewer bad trials, fewer trials."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(schedule):
            if fails(candidate):
                schedule, smaller = candidate, True
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    for i in range(len(schedule.faults)):
        yield replace(schedule, faults=schedule.faults[:i] + schedule.faults[i + 1 :])
    trials = schedule.trials
    if len(trials) > 1:
        yield replace(schedule, trials=trials[: len(trials) // 2])
        yield replace(schedule, trials=trials[len(trials) // 2 :])
        if len(trials) <= 8:
            for i in range(len(trials)):
                yield replace(schedule, trials=trials[:i] + trials[i + 1 :])
    for i, trouble in enumerate(trials):
        if trouble != HEALTHY:
            yield replace(schedule, trials=(*trials[:i], HEALTHY, *trials[i + 1 :]))
