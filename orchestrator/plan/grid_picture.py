"""A sweep as text: what is known of each cell of its grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.job import Params, Scalar
from orchestrator.axes import Axis
from orchestrator.trial import Trial

MOST_COLUMNS, MOST_ROWS = 60, 20
FINISHED, PARTLY, FAILED, TO_RUN = "#", "+", "x", "."
LEGEND = {FINISHED: "finished", PARTLY: "partly finished", FAILED: "failed, runs again", TO_RUN: "to run"}


def grid_picture(axes: Sequence[Axis], trials: Sequence[Trial], state: Mapping[str, str]) -> list[str]:
    """The grid over its two longest axes, the first of them upwards; trials of the other axes share a cell.

    Args:
        axes: of the sweep.
        trials: all of them; of a search those that are known.
        state: trial id -> `FINISHED` or `FAILED`; any other trial is to run.

    Returns:
        Lines; none where no axis varies or there is no trial.
    """
    varying = [axis for axis in axes if len(set(axis.values)) > 1 and axis.group is None]
    longest = sorted(varying, key=lambda axis: -(MOST_COLUMNS if axis.between else len(axis.values)))[:2]
    chosen = [axis for axis in varying if axis in longest]
    if not chosen or not trials:
        return []
    y, x = chosen if len(chosen) == 2 else (None, chosen[0])
    columns, rows = _Bins(x, MOST_COLUMNS), _Bins(y, MOST_ROWS)
    cells: dict[tuple[int, int], set[str]] = defaultdict(set)
    for trial in trials:
        place = rows.place(trial.params), columns.place(trial.params)
        if min(place) >= 0:
            cells[place].add(state.get(trial.id, TO_RUN))
    drawn = [[_mark(cells.get((r, c), set())) for c in range(len(columns.texts))] for r in range(len(rows.texts))]
    labels = rows.texts
    if y is not None:  # upwards
        drawn, labels = drawn[::-1], labels[::-1]
    wide = max(map(len, labels))
    space = " " if 2 * len(columns.texts) <= MOST_COLUMNS else ""
    lines = [
        f"          {text:>{wide}}  {space.join(marks)}".rstrip() for text, marks in zip(labels, drawn, strict=True)
    ]
    lines[0] = f"grid{lines[0][4:]}"
    up = f"{y.name} upwards, " if y is not None else ""
    across = f"{x.name} {columns.texts[0]} to {columns.texts[-1]} to the right"
    used = [mark for mark in LEGEND if any(mark in marks for marks in drawn)]
    key = ", ".join(f"{mark} {LEGEND[mark]}" for mark in used)
    return [*lines, f"          {up}{across}; {key}"]


def _mark(states: set[str]) -> str:
    if not states:
        return " "
    if FAILED in states:
        return FAILED
    if len(states) > 1:
        return PARTLY
    return next(iter(states))


class _Bins:
    """The rows or columns of the picture: the values of an axis, or neighbours together where there are too many.

    Args:
        axis: None for a single row.
        most: rows or columns at most.
    """

    def __init__(self, axis: Axis | None, most: int) -> None:
        self._axis = axis
        values = list(dict.fromkeys(axis.values)) if axis is not None else [""]
        self._edges: NDArray[np.float64] | None = None
        self._index: dict[Scalar, int] = {}
        if axis is not None and axis.between:
            low, high = (float(value) for value in values)
            log = axis.scale in ("log", "integer") and low > 0
            self._edges = np.geomspace(low, high, most + 1) if log else np.linspace(low, high, most + 1)
            self.texts = [*(_text(float(value)) for value in self._edges[: most - 1]), _text(high)]
        else:
            share = -(-len(values) // most)
            self._index = {value: index // share for index, value in enumerate(values)}
            self.texts = [_text(value) for value in values[::share]]

    def place(self, params: Params) -> int:
        """The bin of a trial with these parameters; -1 where it has none."""
        if self._axis is None:
            return 0
        value: Scalar | None = getattr(params, self._axis.name, None)
        if value is None or self._edges is None:
            return -1 if value is None else self._index.get(value, -1)
        return int(np.clip(np.searchsorted(self._edges, float(value), side="right") - 1, 0, len(self.texts) - 1))


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:20]
