"""A user's plain function as a job: `train(params, seed, device, report)`.

    def train(params, seed, device, report):
        rng = random.Random(seed)
        for step in range(1, params["steps"] + 1):
            ...
            report(step, loss=loss)
        return {"accuracy": accuracy}

`params` is a dict with the parameters of the sweep file. A function may declare its parameters instead
(`jobs.declared`); their names and ranges then check the sweep file. `report` takes an increasing step and any metrics.
The function may return a dict, which is recorded with its last report. When the function changes in meaning, set its
attribute `version` (`train.version = 2`), so that older trials are not reused. Its attribute `metrics` may name what it
reports (`train.metrics = ("loss", "accuracy")`); a sweep file is then checked against these names.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs.declared import OpenParams, WatchedParams, declaration_of, open_params
from jobs.function_state import FunctionState, from_arrays, held_of, with_held
from jobs.job import (
    FINAL,
    LARGEST_STEP,
    LONGEST_METRIC_NAME,
    Cost,
    Curves,
    Job,
    JobNotFound,
    Member,
    Observations,
    ParamError,
    Report,
    Scalar,
    as_dict,
    is_metric_name,
    param,
)
from jobs.job import Params as ParamsBase
from jobs.state import TrialState

QUEUE_ROWS = 4096
"""Reports that may wait for the consumer; when there are as many, the function waits."""
_POLL_S = 0.05
"""Longest wait of a report before the consumer reads it, where the queue does not fill."""
_END_S = 1.0
"""Longest wait at closing for the function to make its next report."""
_PULSE_S = 1.0
"""How often it is reported which member trains."""
_THREAD = "phasefront function"
_LONGEST_SHOWN = 200
"""Characters of a value that a message shows."""
_LONGEST_NAME = LONGEST_METRIC_NAME - len(FINAL)


@dataclass(frozen=True, kw_only=True)
class FunctionThresholds(ParamsBase):
    """How the trials of a function are labelled."""

    metric: str = param("", meaning="metric whose final value gives the phase; empty: all trials are 'finished'")
    level: float = param(0.0, meaning="final value from which on a trial is 'at or above'")


class FunctionJob(Job[Any]):
    """Wraps `train(params, seed, device, report)`; the members of a pack train one after another."""

    Params: ClassVar[type[ParamsBase]] = OpenParams
    Thresholds: ClassVar[type[ParamsBase]] = FunctionThresholds
    metrics: ClassVar[tuple[str, ...]] = ()
    phases: ClassVar[tuple[str, ...]] = ("below", "at or above", "finished", "not reported", "diverged")
    one_by_one: ClassVar[bool] = True
    reporting_advice: ClassVar[str] = (
        'If only some trials report it, name it in the function: train.metrics = ("{metric}",)'
    )
    needs_torch: ClassVar[bool] = False
    """The worker does not import torch for this job; the function's module imports what it uses."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises:
        JobNotFound: the function takes other arguments, or an annotation or an attribute of it is not valid.
        """
        self.function, self.declaration = function, declaration_of(function)
        declared, version = self.declaration.params, getattr(function, "version", 1)
        if type(version) is not int:
            rule = f"its attribute version must be a whole number; got {version!r}"
            raise JobNotFound(f"function {function.__qualname__!r}: {rule}")
        self.named_metrics = _named_metrics(function)
        self._watch = self.declaration.takes_dict
        """Whether the next trial is watched: the first one in this process is."""
        # These are class attributes of other jobs; here they differ between functions.
        self.__dict__.update(open_params=declared is None, Params=declared or OpenParams, version=version)

    def params_for(self, values: Mapping[str, Any]) -> ParamsBase:
        own = self.declaration.by_name or ()
        for name in (*own, "state") if own and self.declaration.takes_state else own:
            if name in values:
                raise ParamError(name, "is an argument that every trial of this function gets", values[name])
        return open_params(values) if self.open_params else super().params_for(values)

    def pack_key(self, params: ParamsBase) -> Hashable:
        return ()

    def cost(self, params: ParamsBase, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=0.0, matmul_flop=0.0, element_visits=0.0, memory_bytes=0.0)

    def train(self, pack: Sequence[Member[Any]], *, device: str) -> Iterator[Report]:
        """Reports of the members, one member after another, each in order of increasing step.

        A member's last report is held until the function reports again or returns, because the returned metrics are
        recorded at the same step.
        """
        channel = _Channel(self, pack, device, watch=self._watch)
        self._watch = False
        thread = threading.Thread(target=channel.run, name=_THREAD, daemon=True)
        thread.start()
        pulse_at = time.monotonic() + _PULSE_S
        offered: tuple[int, TrialState] | None = None
        try:
            while not channel.over:
                channel.wait()
                kept = channel.kept  # before its rows are read, so that all of them are
                yield from channel.drain()
                if time.monotonic() >= pulse_at or kept is not offered:  # a checkpoint that is due waits for `kept`
                    offered = kept
                    yield channel.pulse(kept)
                    pulse_at = time.monotonic() + _PULSE_S
        finally:
            channel.stop()
            thread.join(_END_S)

    def observe(self, params: ParamsBase, curves: Curves, thresholds: Any) -> Observations:
        """`final_<metric>`: the value last reported, for each metric."""
        last = {name: _last_reported(curves, name) for name in curves.values}
        return {f"{FINAL}{name}": value for name, value in last.items() if value is not None}

    def phase(self, params: ParamsBase, observations: Observations, thresholds: Any) -> str:
        """By the final value of the metric `phases: metric`; "diverged" where it (without one: any) is not finite."""
        finals = {name: value for name, value in observations.items() if isinstance(value, float)}
        if not thresholds.metric:
            return "finished" if all(map(np.isfinite, finals.values())) else "diverged"
        value = next((finals[name] for name in self.labelled_by(thresholds) if name in finals), None)
        if value is None:
            return "not reported"
        if not np.isfinite(value):
            return "diverged"
        return "at or above" if value >= thresholds.level else "below"

    def labelled_by(self, thresholds: Any) -> tuple[str, ...]:
        """`metric: loss` and `metric: final_loss` mean the same: the last value of `loss`."""
        metric = thresholds.metric
        names = (f"{FINAL}{metric}", metric)
        return names[: 2 if metric.startswith(FINAL) else 1] if metric else ()

    def label_names(self, thresholds: Any) -> dict[str, str]:
        """`loss below 0.02`."""
        if not thresholds.metric:
            return {}
        metric = f"{thresholds.metric.removeprefix(FINAL).replace('_', ' ')} "
        return {side: f"{metric}{side} {thresholds.level:g}" for side in ("below", "at or above")}

    def labels(self, thresholds: Any) -> tuple[str, ...]:
        return ("below", "at or above", "not reported", "diverged") if thresholds.metric else ("finished", "diverged")


def _named_metrics(function: Callable[..., Any]) -> tuple[str, ...]:
    """The attribute `metrics` of a function; empty where it has none."""
    named = getattr(function, "metrics", ())
    if isinstance(named, (tuple, list)) and all(is_metric_name(name, longest=_LONGEST_NAME) for name in named):
        return tuple(named)
    rule = f'its attribute metrics must be names of metrics, as in ("loss", "accuracy"); got {shown(named)}'
    raise JobNotFound(f"function {function.__qualname__!r}: {rule}")


def _last_reported(curves: Curves, name: str) -> float | None:
    values = curves.values[name]
    rows = np.arange(len(values)) if curves.present is None else np.flatnonzero(curves.present[name])
    return float(values[rows[-1]]) if len(rows) else None


# A function pushes its reports and a job yields them: a thread runs the function, and a queue is between the two.


class ReportError(ValueError):
    """A function's report, or what it returned, breaks a rule; the message has the rule and the value."""


class _Cancelled(BaseException):
    """Ends the function at its next report; an `except Exception` in the user's code does not catch it."""


class _Channel:
    """The thread that runs the functions on one side, the consumer of their reports on the other.

    The queue is bounded, so a function waits for a slow consumer. Appending to a deque and counting it need no lock;
    the events only wake the side that waits.
    """

    def __init__(self, job: FunctionJob, pack: Sequence[Member[Any]], device: str, *, watch: bool) -> None:
        self._function, self._declaration = job.function, job.declaration
        self._pack, self._device, self._watch = pack, device, watch
        self._rows: deque[_Row] = deque()
        self._ends: deque[tuple[int, int, str | None]] = deque()
        """(position, last step, traceback or None) of members that have ended, appended after their rows."""
        self._unread: dict[int, tuple[str, ...]] = {}
        """Position -> the parameters that it did not read, of a watched member that has ended."""
        self._news, self._room = threading.Event(), threading.Event()
        self._stopping = self._ended = False
        self._running = 0
        self._wanted = False
        """Whether a checkpoint is due that waits for a state: the next `state.save` is kept."""
        self.kept: tuple[int, TrialState] | None = None
        """The position of the member that has saved since, and its state."""
        self._over: set[int] = set()
        """The members whose ends were reported."""
        self._broken: BaseException | None = None
        """What ended the thread, apart from the errors of the members."""
        self.over = False
        """Whether the thread has ended and everything is drained."""

    # The function's side.

    def run(self) -> None:
        """Train the members, one after another."""
        try:
            for position, member in enumerate(self._pack):
                if self._stopping:
                    return
                self._running = position
                self._train(position, member)
        except _Cancelled:
            pass
        except BaseException as error:  # such as no memory for a traceback; `drain` raises it for the whole pack
            self._broken = error
        finally:
            self._ended = True
            self._news.set()

    def _train(self, position: int, member: Member[Any]) -> None:
        report = _Reporter(self, position)
        error: str | None = None
        state = self._state_of(position, member, report) if self._declaration.takes_state else None
        given: ParamsBase | dict[str, Scalar] = member.params
        watched: WatchedParams | None = None
        if self._declaration.takes_dict:
            given = as_dict(member.params)
            if self._watch:
                self._watch, given = False, (watched := WatchedParams(given))
        try:
            result = self._declaration.call(self._function, given, member.seed, self._device, report, state)
            report.returned(result, _place_of(self._function))
        except _Cancelled:
            raise
        except BaseException as raised:  # SystemExit too: the other members continue
            error = _users_traceback(raised)
        report.ended = True
        report.release()
        if watched is not None:
            self._unread[position] = tuple(name for name in as_dict(member.params) if name in watched.unread)
        self._ends.append((position, max(report.step, 0), error))

    def _state_of(self, position: int, member: Member[Any], report: _Reporter) -> FunctionState:
        """The `state` argument of a member, which continues after its last report where it has a state."""

        def keep(arrays: dict[str, NDArray[Any]]) -> None:
            step = max(report.step, 0)
            held = with_held(arrays, report.held)
            self._wanted, self.kept = False, (position, TrialState(step=step, arrays=held, through=step - 1))
            self._news.set()

        saved: dict[str, Any] = {}
        if member.state is not None:
            saved = from_arrays(member.state)
            if held := held_of(member.state):  # otherwise it was saved before the first report
                report.step, report.held = member.state.step, held
        return FunctionState(saved, lambda: self._wanted, keep)

    def put(self, row: _Row) -> None:
        """Append a row; wait while the queue is full.

        Raises:
            _Cancelled: the reports are no longer read.
        """
        self._rows.append(row)
        while len(self._rows) >= QUEUE_ROWS and not self._stopping:
            self._room.clear()
            self._news.set()
            self._room.wait(_POLL_S)
        if self._stopping:
            raise _Cancelled

    # The consumer's side.

    def wait(self) -> None:
        """Wait until the queue is full, the thread has ended, or `_POLL_S` seconds have passed."""
        self._news.wait(_POLL_S)
        self._news.clear()

    def drain(self) -> Iterator[Report]:
        """The reports that wait; rows of one step with the same metrics are joined."""
        over = self._ended
        # Ends first: a member's rows are appended before its end, so they are among the rows counted next.
        ends = [self._ends.popleft() for _ in range(len(self._ends))]
        groups: dict[tuple[int, tuple[str, ...]], list[_Row]] = {}
        for _ in range(len(self._rows)):
            row = self._rows.popleft()
            groups.setdefault(row[1:3], []).append(row)
        self._room.set()
        none = np.empty(0, dtype=np.int64)
        for step, names in sorted(groups):
            rows = groups[step, names]
            table = np.array([row[3] for row in rows], dtype=np.float64)
            yield Report(
                step=step,
                members=np.array([row[0] for row in rows], dtype=np.int64),
                values={name: table[:, k] for k, name in enumerate(names)},
                finished=none,
            )
        if ends:
            self._over.update(position for position, _, _ in ends)
            yield Report(
                step=max(step for _, step, _ in ends),
                members=none,
                values={},
                finished=np.array([position for position, _, _ in ends], dtype=np.int64),
                failed={position: error for position, _, error in ends if error is not None},
                unread={p: self._unread.pop(p) for p, _, _ in ends if p in self._unread},
            )
        if over and self._broken is not None:
            raise self._broken
        self.over = over

    def pulse(self, kept: tuple[int, TrialState] | None) -> Report:
        """A report without measurements, which names the member that trains.

        It offers the state that this member has kept since a checkpoint is due; where there is none, the next one is
        kept. So a checkpoint has a state of the moment at which it is due.
        """
        none = np.empty(0, dtype=np.int64)

        def states() -> dict[int, TrialState]:
            if kept is None or kept[0] in self._over:
                self._wanted = True
                return {}
            self.kept = None
            position, state = kept
            later = {p: m.state for p, m in enumerate(self._pack) if p > position and m.state is not None}
            return {position: state, **later}

        return Report(
            step=0,
            members=none,
            values={},
            finished=none,
            running=self._running,
            state=states if self._declaration.takes_state else None,
        )

    def stop(self) -> None:
        """End the function at its next report."""
        self._stopping = True
        self._room.set()


_Row = tuple[int, int, tuple[str, ...], tuple[float, ...]]
"""Position in the pack, step, names of the metrics, their values."""


class _Reporter:
    """The `report` argument of one member's function."""

    def __init__(self, channel: _Channel, position: int) -> None:
        self._channel, self._position = channel, position
        self.step = -1
        self.held: dict[str, float] = {}
        self.ended = False
        """Whether the function has ended; a thread that it has left behind may still report."""

    def __call__(self, /, *at: int, **metrics: float) -> None:
        """Record metrics at a step: `report(step, **metrics)`, where a metric may have any name, `step` too.

        Raises:
            ReportError: the step is missing, is not a whole number up to `LARGEST_STEP` or does not increase, a metric
                is not a number, or the function has ended.
        """
        if self.ended:
            raise ReportError(f"{_place()}report: the trial has ended; a thread that it left behind still reports")
        if not at and "step" in metrics:  # as in report(step=1, loss=0.5)
            at = (metrics.pop("step"),)  # type: ignore[assignment]
        if len(at) != 1:
            raise ReportError(f"{_place()}report: needs a step, then metrics by name, as in report(1, loss=0.5)")
        step = at[0] if type(at[0]) is int else _whole(at[0])
        if not self.step < step <= LARGEST_STEP:
            if step > LARGEST_STEP:
                rule = f"the step must be at most 2**62; got {shown(step)}"
            elif self.step < 0:
                rule = f"the step must be at least 0; got {shown(step)}"
            else:
                rule = f"the step must increase from report to report; got {shown(step)} after {self.step}"
            raise ReportError(f"{_place()}report: {rule}")
        if not metrics:
            rule = f"needs at least one metric, as in report({step}, loss=0.5); got none"
            raise ReportError(f"{_place()}report: {rule}")
        values = _numbers(metrics, "report")
        self.release()
        self.step, self.held = step, values

    def returned(self, result: object, place: str) -> None:
        """Add what the function, which is defined at `place`, returned to its last report (or to step 0)."""
        if result is None:
            return
        if not isinstance(result, Mapping):
            rule = f"a function must return a dict of final metrics, or nothing; got {shown(result)}"
            raise ReportError(f"{place}{rule}")
        self.held = {**self.held, **_numbers(result, "return", place)}
        self.step = max(self.step, 0)

    def release(self) -> None:
        """Send the last report, which is held until the next one."""
        if self.held:
            held, self.held = self.held, {}
            self._channel.put((self._position, self.step, tuple(held), tuple(held.values())))


def _place() -> str:
    """`file:line: ` of the call that entered this module; empty if there is none."""
    frame = sys._getframe()
    while frame.f_code.co_filename == __file__:
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}: "


def _place_of(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}: "


def shown(value: object) -> str:
    """A value as text, cut if it is long; of any object, as it comes from a user's code."""
    try:
        text = repr(value)
    except Exception:  # a `__repr__` of the user's, or an integer that is too long for Python to print
        return "a value that cannot be printed"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _whole(step: object) -> int:
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise ReportError(f"{_place()}report: the step must be a whole number; got {shown(step)}")
    return int(step.__index__())


def _numbers(metrics: Mapping[str, object], where: str, place: str = "") -> dict[str, float]:
    values = {}
    for name, value in metrics.items():
        if not _is_metric_name(name):
            raise ReportError(
                f"{place or _place()}{where}: a metric's name must be at most {_LONGEST_NAME} letters, digits, "
                "_ - . / : or spaces, must not start with / : or a space, and must contain neither // nor a part ..; "
                f"got {shown(name)}"
            )
        values[name] = value if type(value) is float else _number(name, value, where, place)
    return values


@lru_cache(maxsize=4096)
def _is_metric_name(name: object) -> bool:
    return is_metric_name(name, longest=_LONGEST_NAME)


def _number(name: str, value: Any, where: str, place: str) -> float:
    """A Python, numpy or torch number (of one element) as a float."""
    try:
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, (int, float)):
            return float(value)
    except (ValueError, RuntimeError, OverflowError) as error:
        rule = f"metric {name!r} must be one number; {error}"
        raise ReportError(f"{place or _place()}{where}: {rule}") from error
    rule = f"metric {name!r} must be one number; got {shown(value)} of type {type(value).__name__}"
    raise ReportError(f"{place or _place()}{where}: {rule}")


def _users_traceback(error: BaseException) -> str:
    """The traceback of an error in a user's function, without the frames of this module."""
    whole = traceback.TracebackException.from_exception(error)
    done: set[int] = set()
    waiting: list[traceback.TracebackException | None] = [whole]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in done:
            continue
        done.add(id(part))
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename not in _OURS])
        waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return _ending_with_its_name(whole)


def described(error: BaseException) -> str:
    """The traceback of an error; the last line names it."""
    return _ending_with_its_name(traceback.TracebackException.from_exception(error))


def _ending_with_its_name(error: traceback.TracebackException) -> str:
    """Notes and the errors of a group come after the line that names an error: then that line is repeated."""
    lines = [*error.format()]
    if error.__notes__ or error.exceptions:
        lines.append(next(error.format_exception_only()))
    return "".join(lines)


def running_stack() -> str:
    """Where the functions that train in this process are now: a stack of the user's frames for each; empty if none."""
    frames = sys._current_frames()
    stacks = [
        [entry for entry in traceback.extract_stack(frames[thread.ident]) if entry.filename not in _OWN_FILES]
        for thread in threading.enumerate()
        if thread.name == _THREAD and thread.ident in frames
    ]
    return "".join("".join(traceback.format_list(stack)) for stack in stacks)


_OURS = (__file__, declaration_of.__code__.co_filename)
_OWN_FILES = (*_OURS, threading.__file__)
