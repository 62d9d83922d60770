"""The thread that a plain function runs in, and the queue between it and the reader of its reports.

A function pushes its reports and a job yields them: a thread turns one into the other. The queue is
bounded, so that a function waits for a slow reader, and a closed reader ends the function.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jobs.job import LONGEST_METRIC_NAME, Member, Params, Report, Scalar, as_dict, is_metric_name

QUEUE_ROWS = 4096
"""Reports that may wait for the consumer; the function waits when there are as many."""
POLL_S = 0.05
"""How long a report may wait before the consumer looks, where the queue does not fill."""
END_S = 1.0
"""How long closing waits for the function to come to its next report."""

_LONGEST_NAME = LONGEST_METRIC_NAME - len("final_")


class ReportError(ValueError):
    """A function's report (or what it returned) breaks a rule: the rule and the value."""


class Stopped(BaseException):
    """Ends the function at its next report; no `except Exception` of the user's catches it."""


class Course:
    """The functions' thread on one side, the consumer of its reports on the other.

    Appending to a deque and counting it need no lock; the events only wake who waits.
    """

    def __init__(self, function: Callable[..., Any], pack: Sequence[Member[Any]], device: str, plain: bool) -> None:
        self._function, self._pack, self._device, self._plain = function, pack, device, plain
        self._rows: deque[_Row] = deque()
        self._ends: deque[tuple[int, int, str | None]] = deque()
        """(position, last step, traceback) of members that have ended, put after their rows."""
        self._news, self._room = threading.Event(), threading.Event()
        self._stopping = self._ended = False
        self.over = False
        """The function's thread has ended and everything is drained."""

    # The function's side.

    def run(self) -> None:
        """Train the members, one after another."""
        try:
            for position, member in enumerate(self._pack):
                if self._stopping:
                    return
                self._train(position, member)
        except Stopped:
            pass
        finally:
            self._ended = True
            self._news.set()

    def _train(self, position: int, member: Member[Any]) -> None:
        report = Reporter(self, position)
        error: str | None = None
        params: Params | dict[str, Scalar] = as_dict(member.params) if self._plain else member.params
        try:
            report.returned(self._function(params, member.seed, self._device, report))
        except Stopped:
            raise
        except BaseException as raised:  # SystemExit too: the other members go on
            error = users_traceback(raised)
        report.release()
        self._ends.append((position, max(report.step, 0), error))

    def put(self, row: _Row) -> None:
        """Queue a row; waits while the queue is full.

        Raises:
            Stopped: nobody reads any more.
        """
        self._rows.append(row)
        while len(self._rows) >= QUEUE_ROWS and not self._stopping:
            self._room.clear()
            self._news.set()
            self._room.wait(POLL_S)
        if self._stopping:
            raise Stopped

    # The consumer's side.

    def wait(self) -> None:
        """Until the queue is full, the thread has ended, or `POLL_S` have passed."""
        self._news.wait(POLL_S)
        self._news.clear()

    def drain(self) -> Iterator[Report]:
        """What waits, rows of one step and the same metrics together."""
        over = self._ended
        # The ends first: a member's rows are put before its end, so they are among the rows counted next.
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
            yield Report(
                step=max(step for _, step, _ in ends),
                members=none,
                values={},
                finished=np.array([position for position, _, _ in ends], dtype=np.int64),
                failed={position: error for position, _, error in ends if error is not None},
            )
        self.over = over

    def stop(self) -> None:
        """Nobody reads any more: end the function at its next report."""
        self._stopping = True
        self._room.set()


_Row = tuple[int, int, tuple[str, ...], tuple[float, ...]]
"""Position in the pack, step, names of the metrics, their values."""


class Reporter:
    """The `report` that one member's function is given."""

    def __init__(self, course: Course, position: int) -> None:
        self._course, self._position = course, position
        self.step = -1
        self._held: dict[str, float] = {}

    def __call__(self, step: int, **metrics: float) -> None:
        """Record metrics at a step.

        Raises:
            ReportError: the step is no whole number or does not increase, or a metric is no number.
        """
        if type(step) is not int:
            step = _whole(step)
        if step <= self.step:
            rule = "must increase from report to report" if self.step >= 0 else "must be at least 0"
            raise ReportError(f"report: the step {rule}; got {step}" + f" after {self.step}" * (self.step >= 0))
        if not metrics:
            raise ReportError(f"report: needs at least one metric, as in report({step}, loss=0.5); got none")
        values = _numbers(metrics, "report")
        self.release()
        self.step, self._held = step, values

    def returned(self, result: object) -> None:
        """Join what the function returned to its last report (or to step 0)."""
        if result is None:
            return
        if not isinstance(result, Mapping):
            raise ReportError(f"a function must return a dict of final metrics, or nothing; got {result!r}")
        self._held = {**self._held, **_numbers(result, "return")}
        self.step = max(self.step, 0)

    def release(self) -> None:
        """Send the last report, which was held."""
        if self._held:
            held, self._held = self._held, {}
            self._course.put((self._position, self.step, tuple(held), tuple(held.values())))


def _whole(step: object) -> int:
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise ReportError(f"report: the step must be a whole number; got {step!r}")
    return int(step.__index__())


def _numbers(metrics: Mapping[str, object], where: str) -> dict[str, float]:
    values = {}
    for name, value in metrics.items():
        if not _is_metric_name(name):
            raise ReportError(
                f"{where}: a metric's name must be at most {_LONGEST_NAME} letters, digits, _ - . / : or spaces, "
                f"and not start with / : or a space; got {name!r}"
            )
        values[name] = value if type(value) is float else _number(name, value, where)
    return values


@lru_cache(maxsize=4096)
def _is_metric_name(name: object) -> bool:
    return is_metric_name(name, longest=_LONGEST_NAME)


def _number(name: str, value: Any, where: str) -> float:
    """A Python, numpy or torch number (of one element) as a float."""
    try:
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, (int, float)):
            return float(value)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ReportError(f"{where}: metric {name!r} must be one number; {error}") from error
    raise ReportError(f"{where}: metric {name!r} must be one number; got {value!r} of type {type(value).__name__}")


def users_traceback(error: BaseException) -> str:
    """The traceback of what a user's function raised, without the frames of this module."""
    described = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    waiting: list[traceback.TracebackException | None] = [described]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename != __file__])
        waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(described.format())
