"""Runs a schedule: drivers, one after another, around the real runner, planner, pool and record."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from jobs.catalogue import load_job
from orchestrator.checkpoints.known import Checkpoints
from orchestrator.dispatch.base import Dispatcher, Event, PackTask
from orchestrator.dispatch.pool import PooledDispatcher
from orchestrator.errors import Outage, UserError
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.planner import Planner
from orchestrator.progress import ProgressDisplay, Snapshot
from orchestrator.records import Status, Summary
from orchestrator.runner import Runner
from orchestrator.search.grid import GridSampler
from orchestrator.tracking.base import Tracker
from orchestrator.tracking.factory import open_tracker
from orchestrator.tracking.resilient import ResilientTracker
from orchestrator.trial import Trial
from tests.simulation import job as drill
from tests.simulation.cluster import ScheduledEngine
from tests.simulation.dispatcher import VirtualClock
from tests.simulation.invariants import violations
from tests.simulation.record import EXPERIMENT, SWEEP, DriverKilled, Weather, new_record, process_ends, simulated_world
from tests.simulation.schedule import DRIVER_FAULTS, Fault, Schedule

SILENCE_S = 32.0
"""Progress, or a stated reason, comes within 30 s; more for the next turn of the loop and the next check."""
TRAINING_SILENCE_S = 64.0
"""The same while a pack is known to be training: it is mentioned after a minute."""
ENDS_WITHIN_S = 3600.0
"""After the last fault."""
EXPLAINED_S = 60.0
"""How long a reason counts that was stated before the last progress: the record is away, and said to be."""
MOST_DRIVERS = 30
LOST_EVENTS = "the pack ended without reporting this trial"
"""What the runner says then: it would hide the loss by a retry."""


class Endless(BaseException):
    """The run should have ended long ago."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a schedule."""

    violations: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    """Faults that had an effect."""
    exits: list[int] = field(default_factory=list)
    """Exit codes of the drivers; -9 for one that was killed."""
    virtual_s: float = 0.0
    log: list[tuple[float, str]] = field(default_factory=list)
    """What the drivers said, and when."""


class AlarmClock(VirtualClock):
    """A wholly virtual clock that calls back at set times."""

    def __init__(self) -> None:
        super().__init__(real=lambda: 0.0)
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self.passed: Callable[[], None] = lambda: None
        """Called whenever time has passed."""

    def __call__(self) -> float:
        return self.waited_s

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Call once when the time is reached."""
        self._alarms.append((time_s, call))
        self._alarms.sort(key=lambda alarm: alarm[0])

    def wait(self, seconds: float) -> None:
        """Let time pass, up to each alarm in turn."""
        end = self() + max(0.0, seconds)
        while self._alarms and self._alarms[0][0] <= end:
            at_s, call = self._alarms.pop(0)
            super().wait(at_s - self())
            call()
        super().wait(end - self())
        self.passed()


class _Display(ProgressDisplay):
    """Remembers what is said."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._note = ""

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.note != self._note:
            self._note = snapshot.note
            if "ready" not in snapshot.note:  # how many workers are ready is no reason
                self._said(snapshot.note)

    def say(self, text: str) -> None:
        self._said(text)

    def close(self) -> None:
        return


class _Watched(Dispatcher):
    """A dispatcher whose events count as progress."""

    def __init__(self, pool: Dispatcher, progress: Callable[[], None]) -> None:
        self._pool, self._progress = pool, progress

    @property
    def workers(self) -> int:
        return self._pool.workers

    def submit(self, tasks: Sequence[PackTask]) -> None:
        self._pool.submit(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        events = self._pool.poll(timeout_s)
        if events:
            self._progress()
        return events

    def notices(self) -> list[str]:
        return self._pool.notices()

    def running(self) -> Collection[str] | None:
        return self._pool.running()

    @property
    def note(self) -> str:
        return self._pool.note

    def close(self) -> None:
        self._pool.close()


class Simulation:
    """One schedule on its cluster and record."""

    def __init__(self, schedule: Schedule, file: Path) -> None:
        self.schedule, self.file = schedule, file
        self.outcome = Outcome()
        self.clock = AlarmClock()
        self.random = Random(schedule.seed)
        self.weather = Weather(self.clock, schedule.faults, self._met)
        self.engine = ScheduledEngine(schedule, clock=self.clock, met=self._met)
        self.trials = [
            Trial(
                job=drill.NAME,
                job_version=1,
                params=drill.DrillParams(number=number, steps=schedule.steps or 3 + number % 3, trouble=trouble),
                replicate=0,
            )
            for number, trouble in enumerate(schedule.trials)
        ]
        self.stop = threading.Event()
        self._progress_s, self._said_s = 0.0, -EXPLAINED_S
        self._explained = self._driving = False
        self._dispatcher: Dispatcher | None = None
        last = max((f.at_s + f.lasts_s for f in schedule.faults if f.lasts_s < 1e5), default=0.0)
        long_s = schedule.steps * schedule.step_s * len(schedule.trials) / sum(schedule.nodes)
        self._latest_end_s = last + ENDS_WITHIN_S + 2 * long_s
        self._statements_left: int | None = None
        for fault in schedule.faults:
            if fault.kind in DRIVER_FAULTS:
                self.clock.at(fault.at_s, lambda fault=fault: self._driver_fault(fault))
        self.clock.passed = self._time_passed

    def _met(self, kind: str) -> None:
        self.outcome.met[kind] += 1

    def _driver_fault(self, fault: Fault) -> None:
        if not self._driving:
            return
        self._met(fault.kind)
        if fault.kind == "driver stopped":
            self.stop.set()
        else:
            self.weather.dies_in(self.random.choice((0, 0, 1, 5, 20)))

    def _progress(self) -> None:
        self._progress_s, self._explained = self.clock(), False

    def _said(self, text: str) -> None:
        """Whatever is said while nothing happens counts as the reason, until something happens again."""
        self._explained, self._said_s = True, self.clock()
        self.outcome.log.append((self.clock(), text))
        if LOST_EVENTS in text:
            self._violated(f"events of a pack were lost: {text}")

    def _time_passed(self) -> None:
        now = self.clock()
        if not self._driving:
            return
        training = self._dispatcher is not None and self._dispatcher.running()
        limit_s = TRAINING_SILENCE_S if training else SILENCE_S
        if now - self._progress_s > limit_s and now - self._said_s > EXPLAINED_S and not self._explained:
            self._explained = True
            self._violated(f"no progress and no stated reason from {self._progress_s:.1f} s to {now:.1f} s")
        if now > self._latest_end_s:
            raise Endless

    def _violated(self, text: str) -> None:
        self.outcome.violations.append(text)

    def run(self) -> Outcome:
        """Start drivers until one ends by itself, as a user or a Slurm script would; check the record after each."""
        drill.Drill.trainings = itertools.count(1)
        while len(self.outcome.exits) < MOST_DRIVERS:
            code = self._drive()
            self.outcome.exits.append(code)
            ended = code in (0, 1)
            by_id = {trial.id: trial for trial in self.trials}
            with self.weather.calm():
                found = violations(self.file, by_id, ended=ended)
            self.outcome.violations += found
            if ended or found or code == 70:
                break
            self.clock.wait(60.0)
        else:
            self._violated(f"{MOST_DRIVERS} drivers did not finish the sweep")
        self.outcome.virtual_s = self.clock()
        return self.outcome

    def _drive(self) -> int:
        """One driver; its exit code."""
        self._driving = True
        self.stop.clear()
        self.weather.dies_in(None)
        self._progress()
        folder = self.file.parent
        record = open_tracker(f"sqlite:///{self.file}", experiment=EXPERIMENT, artifacts=str(folder / "artifacts"))
        tracker = ResilientTracker(
            record,
            what="the record",
            folder=folder,
            stopping=self.stop.is_set,
            clock=self.clock,
            sleep=self.clock.wait,
        )
        display = _Display(self._said)
        tracker.say = display.say
        try:
            try:
                tracker.open_sweep(SWEEP)
                summary = self._runner(tracker, display).run()
                code = self._code(summary)
                if not summary.stopped:
                    tracker.end_sweep((Status.FAILED if code else Status.FINISHED).value, {})
            finally:
                tracker.close()
        except DriverKilled:
            process_ends(record)
            return -9
        except Outage as outage:
            self._said(f"outage: {outage.text}")
            return 75
        except Endless:
            self._violated(f"the run has not ended after {self.clock():.0f} s")
            return 70
        except UserError as error:
            if self.engine.is_hopeless():
                return 2
            self._violated(f"exit 2, though no user made a mistake: {error.text}")
            return 70
        except Exception:  # anything else would be shown as a fault of phasefront
            self._violated(f"exit 70: {traceback.format_exc()}")
            return 70
        finally:
            self._driving, self._dispatcher = False, None
            self.engine.close()
        return code

    def _runner(self, tracker: Tracker, display: ProgressDisplay) -> Runner:
        job = load_job(drill.NAME)
        thresholds = drill.DrillThresholds()
        return Runner(
            job_name=drill.NAME,
            planner=Planner(
                job_name=drill.NAME, job=job, calibration=Calibration(), memory_budget_bytes=self.schedule.pack_models
            ),
            sampler=GridSampler(self.trials),
            tracker=tracker,
            pool=self._pool,
            progress=display,
            thresholds=thresholds,
            fingerprint=SWEEP.thresholds,
            trial_timeout_s=self.schedule.timeout_s,
            stop=self.stop,
            clock=self.clock,
            checkpoints=self._checkpoints(display),
        )

    def _checkpoints(self, display: _Display) -> Checkpoints | None:
        """They are beside the record; a driver that is killed leaves them."""
        every_s = self.schedule.saves_every_s
        if every_s is None:
            return None
        folder = str(self.file.parent / "checkpoints")
        return Checkpoints(folder, interval_s=every_s if every_s > 0 else None, say=display.say)

    def _pool(self) -> Dispatcher:
        self._dispatcher = PooledDispatcher(self.engine, workers=None, clock=self.clock)
        return _Watched(self._dispatcher, self._progress)

    def _code(self, summary: Summary) -> int:
        """The exit code of the command line; whether it and the summary are true is checked here."""
        if summary.stopped:
            return 143
        failed = bool(summary.failed or summary.gave_up)
        total = summary.done + summary.failed + summary.skipped
        if total != len(self.trials) and not summary.gave_up:
            self._violated(f"{total} of {len(self.trials)} trials ended, and the run says that it is complete")
        if summary.failed != sum(trouble != drill.HEALTHY for trouble in self.schedule.trials):
            reasons = {(result.error or "").strip()[-80:] for _, result in summary.failures} or {summary.gave_up}
            self._violated(f"{summary.failed} trials are said to have failed: {reasons}")
        return 1 if failed else 0


def run_schedule(schedule: Schedule) -> Outcome:
    """Run one schedule on a new record."""
    with new_record() as file:
        simulation = Simulation(schedule, file)
        with simulated_world(simulation.clock, simulation.weather, lambda: 1_000_000 + len(simulation.outcome.exits)):
            return simulation.run()
