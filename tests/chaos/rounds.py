"""One round: a sweep, the faults that it meets, the same command until it ends, and the checks from outside."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.audit import digests, regressed
from orchestrator.cli import main
from orchestrator.records import Status
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.factory import open_tracker
from tests.chaos import chaos_job
from tests.chaos.cluster import Cluster, job_environment
from tests.chaos.driver import Driver
from tests.chaos.faults import KINDS, Fault
from tests.chaos.host import clock_library, command_of, wait_for
from tests.chaos.records import CANARY, DiskRecord, Record, ServerRecord, Servers, SqliteRecord

TRAINS_S = 150.0
"""A driver must have trials running, or have ended, this long after its start."""
ENDS_S = 240.0
"""A sweep without further faults must end in this time."""
TRIES = 6
"""How often the same command may be needed after the last fault; more than twice means that it does not converge."""
SWEEP = """\
name: {name}
job: {job}
axes:
  x: {{scale: log, from: 0.01, to: 1, points: {points}}}
  group: [{groups}]
replicates: {replicates}
fixed: {{steps: {steps}, pause_s: {pause}, hurry: "{hurry}"}}
tracking: {{uri: "{uri}", experiment: {experiment}{artifacts}}}
output: {output}
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one round does; it depends on the seed alone."""

    number: int
    where: str
    """cluster or inline"""
    record: str
    job: str
    clock: bool
    kinds: tuple[str, ...]
    drawn: bool
    """Whether the map is drawn at the end."""

    @property
    def text(self) -> str:
        clock = ", a clock that is set" if self.clock else ""
        return f"round {self.number}: {self.where}, {self.record}, {self.job}{clock}: {'; '.join(self.kinds)}"


@dataclass(kw_only=True)
class Result:
    """What a round found."""

    plan: Plan
    injected: list[str] = field(default_factory=list)
    violations: list[tuple[str, str]] = field(default_factory=list)
    """(the last kind that was injected, what is wrong)"""
    notes: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    trials: int = 0


class Round:
    """Runs one plan; the `Scene` of its faults."""

    def __init__(self, plan: Plan, *, seed: int, folder: Path, servers: Servers, cluster: Cluster | None, long: bool):
        self.plan, self.long = plan, long
        self.cluster = cluster if plan.where == "cluster" else None
        self._rng = random.Random(f"{seed}/{plan.number}")
        self._folder = folder / f"round-{plan.number}"
        self._folder.mkdir()
        self._experiment = f"chaos-{seed}-{plan.number}-{os.getpid()}"
        self.record: Record = servers.record(plan.record, self._folder, self._experiment)
        self._file = self._folder / "sweep.yaml"
        self._clock_file, self._hurry = self._folder / "clock", self._folder / "hurry"
        self.driver: Driver
        self._drivers: list[Driver] = []
        self.result = Result(plan=plan)
        self._finished: dict[str, str] = {}
        """Trials that were FINISHED at the last look, with the digests of their curves."""
        self._began = time.monotonic()

    # --- the scene of the faults ---

    def clock(self, offset_s: int) -> None:
        if not self._clock_file.exists():
            self._clock_file.write_bytes(bytes(8))
        with self._clock_file.open("r+b") as file:  # in place: the driver has mapped it
            file.write(offset_s.to_bytes(8, "little", signed=True))

    def second_driver(self, how: str) -> str:
        """Start another driver; what is wrong with its end."""
        options, refused = ["--quiet", "--no-map", "--inline"], True
        record = self.record
        if how == "symlink":
            assert isinstance(record, SqliteRecord)
            link = self._folder / "link.db"
            if not link.is_symlink():
                link.symlink_to(record.file)
            options += ["--set", f"tracking.uri=sqlite:///{link}"]
        elif how == "direct":
            assert isinstance(record, ServerRecord)
            options += ["--set", f"tracking.uri=sqlite:///{record.server.file}"]
        elif how == "experiment":
            refused = False
            other = f"{self._experiment}-other"
            options += ["--set", f"tracking.experiment={other}", "--set", "fixed.pause_s=0.0"]
            options += ["--set", "axes.group=[0]", "--set", f"tracking.artifacts={self._folder / 'other'}"]
        environ = {**self._environment(), "PHASEFRONT_LEASE_S": "60"}
        second = Driver(["run", str(self._file), *options], cwd=self._folder, environ=environ, inside=self._inside())
        try:
            # It may watch the lease for as long as that lasts before it is refused.
            if not second.wait(150):
                return "the second driver still runs after 150 s"
            first_ran = self.driver.code is None
            expected = (2, 75) if refused else (0,)
            if second.code not in expected and (first_ran or not refused):
                return f"the second driver ended with {second.code}, not with {expected}: {_tail(second.text)}"
            return "; ".join(words_of_a_bug(second.text))
        finally:
            second.end()

    # --- the round ---

    def run(self) -> Result:
        """The whole round."""
        try:
            self._write_sweep()
            self._start()
            for kind in self.plan.kinds:
                if not self._inject(KINDS[kind]):
                    break
            self._hurry.touch()
            self._finish()
            self._check_the_end()
        except Exception as error:  # the harness's own: reported, and the soak goes on
            self._violated(f"the harness failed: {type(error).__name__}: {error}")
        finally:
            self._clean()
        self.result.seconds = time.monotonic() - self._began
        return self.result

    def _write_sweep(self) -> None:
        inline = self.plan.where == "inline"
        points, groups, replicates = (4, 10, 1) if inline else (4, 20, 2)
        text = SWEEP.format(
            name=f"chaos-{self.plan.number}",
            job=f"chaos_job:{self.plan.job}",
            points=points,
            groups=", ".join(map(str, range(groups))),
            replicates=replicates,
            steps=10,
            pause=1.0 if inline else 1.8,
            hurry=self._hurry,
            uri=self.record.uri,
            experiment=self._experiment,
            artifacts="" if self.plan.record == "http" else f', artifacts: "{self.record.artifacts}"',
            output=self._folder / "out",
        )
        self._file.write_text(text)
        self.clock(0)
        with _environment(job_environment()):
            self._sweep = Sweep.load(self._file, [f"tracking.uri={self.record.read_uri}"], dict(os.environ))
        self.result.trials = len(self._sweep.trials())

    def _environment(self) -> dict[str, str]:
        environ = {**job_environment(), "SOME_TOKEN": CANARY, "PHASEFRONT_LEASE_S": "15"}
        if self.cluster is not None:
            environ["RAY_ADDRESS"] = self.cluster.address
        if self.plan.clock:
            library = clock_library(self._folder.parent)
            environ |= {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._clock_file)}
        return environ

    def _inside(self) -> Sequence[str]:
        return self.cluster.network.inside("head") if self.cluster is not None else ()

    def _start(self) -> None:
        options = [] if self.cluster is not None else ["--inline"]
        options += [] if self.plan.drawn else ["--no-map"]
        self.driver = Driver(
            ["run", str(self._file), *options], cwd=self._folder, environ=self._environment(), inside=self._inside()
        )
        self._drivers.append(self.driver)
        self.result.starts += 1

    def _inject(self, fault: Fault) -> bool:
        """Inject one fault into a driver that trains; False where the sweep has ended before."""
        if not self._until_it_trains():
            return False
        time.sleep(self._rng.uniform(0.2, 1.5))
        if self.driver.code is not None:
            return self._until_it_trains() and self._inject(fault)
        self.driver.injected.append(fault.kind)
        self.result.injected.append(fault.kind)
        _say(f"    {time.monotonic() - self._began:6.1f} s  {fault.kind}")
        wrong = fault.inject(self, self._rng)
        if wrong:
            self._violated(wrong)
        return True

    def _until_it_trains(self) -> bool:
        """Wait for a driver that trains, starting it again where it has ended; False if the sweep is done."""
        for _ in range(TRIES):
            if not wait_for(lambda: self.driver.trains() or self.driver.code is not None, TRAINS_S):
                self._violated(f"no trial runs {TRAINS_S:g} s after the start: {_tail(self.driver.text)}")
                self.driver.end()
            if self.driver.code is None:
                return True
            if self._ended() == 0:
                return False
            self._start()
        self._violated(f"no trial runs after {TRIES} starts: {_tail(self.driver.text)}")
        return False

    def _finish(self) -> None:
        """The same command until the sweep is done."""
        tries = 0
        while True:
            if not self.driver.wait(ENDS_S):
                self._violated(f"the driver has not ended after {ENDS_S:g} s: {_tail(self.driver.text)}")
                self.driver.end()
            code = self._ended()
            if code == 0:
                return
            tries += not self.driver.injected
            if tries >= 2 or self.result.starts > 4 * TRIES:
                self._violated(f"without further faults the command ends with {code}: {_tail(self.driver.text)}")
                return
            if self.cluster is not None:
                self.cluster.settle()
            self._start()

    def _ended(self) -> int:
        """Check a driver that has ended; its exit code."""
        driver = self.driver
        driver.wait(10)
        code = driver.code or 0
        self._check_code(driver, code)
        for text in (*words_of_a_bug(driver.text), *driver.silences()):
            self._violated(text)
        if CANARY in driver.text:
            self._violated("the output has the password")
        if not wait_for(lambda: not driver.left_behind(), 15):
            self._violated(f"processes of the driver are left: {driver.left_behind()}")
        self.record.calm()
        if code == 0 and self.cluster is not None:
            left = self.cluster.left_workers(20)
            if left:
                names = ", ".join(f"{pid} {command_of(pid)} on {self.cluster.host_of(pid)}" for pid in left)
                self._violated(f"workers are left 20 s after the end of the driver: {names}")
        self._look()
        (self._folder / f"driver-{len(self._drivers)}.log").write_text(driver.text)
        return code

    def _check_code(self, driver: Driver, code: int) -> None:
        last = driver.injected[-1] if driver.injected else "nothing"
        if code > 128:
            if code - 128 not in driver.sent:
                self._violated(f"the driver ended by signal {code - 128}, which was not sent, after {last}")
        elif code == 75:
            if not any(KINDS[kind].outage for kind in driver.injected):
                self._violated(f"exit code 75 without an outage, after {last}: {_tail(driver.text)}")
            else:
                self.result.notes.append(f"75 after {last}")
        elif code:
            self._violated(f"exit code {code} after {last}: {_tail(driver.text)}")

    def _look(self) -> None:
        """What is FINISHED now: nothing that was FINISHED before has changed."""
        now = self._finished_now()
        for trial in regressed(self._finished, now):
            self._violated(f"trial {trial} was FINISHED, and is not any more or has another curve")
        self._finished = now

    def _finished_now(self) -> dict[str, str]:
        trials = [trial.id for trial in self._sweep.trials()]
        with contextlib.closing(open_tracker(self.record.read_uri, experiment=self._experiment)) as tracker:
            index = tracker.index(trials)
            done = [trial for trial in trials if trial in index and index[trial].status is Status.FINISHED]
            return digests(done, tracker.curves)

    def _check_the_end(self) -> None:
        """The checks from outside, once the sweep says that it is done."""
        trials = self._sweep.trials()
        missing = [trial.id for trial in trials if trial.id not in self._finished]
        if missing:
            self._violated(f"{len(missing)} of {len(trials)} trials are not FINISHED, such as {missing[0]}")
        expected = {trial.id: trial for trial in trials}
        with contextlib.closing(open_tracker(self.record.read_uri, experiment=self._experiment)) as tracker:
            for trial_id, curves in tracker.curves(list(expected)):
                trial = expected[trial_id]
                settings = trial.settings()
                steps = range(1, int(settings["steps"]) + 1)
                rows = [chaos_job.measured(float(settings["x"]), trial.seed, step) for step in steps]
                same = np.array_equal(curves.step, list(steps)) and all(
                    np.array_equal(curves.values.get(name), [row[name] for row in rows]) for name in chaos_job.METRICS
                )
                if not same:
                    self._violated(f"the curve of trial {trial_id} is not that of an undisturbed run")
        count, wanted = self.record.count_rows(), len(trials) * 10 * len(chaos_job.METRICS)
        if count != wanted:
            self._violated(f"{count} curve rows are recorded, not {wanted}")
        code, text = self._audit()
        if code:
            broken = [line for line in text.splitlines() if line.startswith(("VIOLATED", "          "))]
            self._violated(f"audit ended with {code}: {' | '.join(broken[:6]) or _tail(text)}")
        if CANARY in text:
            self._violated("the output of audit has the password")

    def _audit(self) -> tuple[int, str]:
        output = io.StringIO()
        with (
            _environment({"SOME_TOKEN": CANARY}),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            code = main(["audit", str(self._file), "--set", f"tracking.uri={self.record.read_uri}"])
        return code, output.getvalue()

    def _violated(self, what: str) -> None:
        last = self.result.injected[-1] if self.result.injected else "nothing"
        self.result.violations.append((last, what))
        _say(f"    VIOLATED after {last}: {what}")

    def _clean(self) -> None:
        for driver in self._drivers:
            driver.end()
        self.record.calm()
        if isinstance(self.record, DiskRecord):
            self.record.close()
        if self.cluster is not None:
            self.cluster.settle()


@contextlib.contextmanager
def _environment(names: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _say(text: str) -> None:
    print(text, flush=True)


def _tail(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-4:])[-500:]


def words_of_a_bug(text: str) -> list[str]:
    found = [word for word in ("this is a bug in phasefront", "Traceback (most recent call last)") if word in text]
    return [f"the output has {word!r}: {_tail(text)}" for word in found]
