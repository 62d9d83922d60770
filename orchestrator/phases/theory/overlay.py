"""Theory as the figures draw it: lines over one axis, and the boundary of the predicted phases over a map."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import Panel, grid_of
from orchestrator.phases.map.contour import Line, outlines_of_labels
from orchestrator.phases.text import percent, plural, words
from orchestrator.phases.theory.ask import Answers
from orchestrator.phases.theory.deviation import Deviations

COLOURS = ("#E0007F", "#6A3DE8", "#00806B", "#B85C00")
"""Of theory lines, by the observation's place in the panel: no phase and no measurement has one of them."""
DASH = (0, (4.5, 2.2))
"""Of every theory line (matplotlib)."""
MEAN = "measured mean ± standard error"
_STRIDES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True, eq=False)
class TheoryLine:
    """One observation's prediction over the cells."""

    value: NDArray[np.float64]
    """(C,) NaN where nothing, nothing finite or no number is predicted."""
    error: NDArray[np.float64]
    """(C,) its standard error."""
    source: str
    mean: NDArray[np.float64]
    """(C,) the measured mean; NaN where the prediction is compared with the median."""
    mean_error: NDArray[np.float64]
    """(C,) its standard error; NaN for one replicate."""

    def label(self, name: str, several: bool) -> str:
        """What a legend calls it."""
        return f"theory{': ' + words(name) if several else ''} ({self.source})"


@dataclass(frozen=True, kw_only=True, eq=False)
class TheoryMap:
    """The predicted phases of one panel beside the measured ones."""

    lines: tuple[Line, ...]
    """Where the predicted phase changes, in drawing positions."""
    compared: int
    """Cells that have both phases."""
    differ: int
    """Of these, the cells whose two phases differ."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """What theory predicts for a diagram's cells."""

    lines: Mapping[str, TheoryLine]
    phase: NDArray[np.int64]
    """(C,) index of the predicted label, -1 where none is predicted."""

    def agreement(self, diagram: PhaseDiagram, cells: NDArray[np.int64] | None = None) -> tuple[int, int]:
        """Cells that have a predicted and a measured phase, and how many of them differ."""
        chosen = np.arange(len(self.phase)) if cells is None else cells
        predicted, measured = self.phase[chosen], diagram.majority[chosen]
        both = (predicted >= 0) & (measured >= 0)
        return int(both.sum()), int((both & (predicted != measured)).sum())

    def map_of(self, diagram: PhaseDiagram, panel: Panel, x: int, y: int | None) -> TheoryMap | None:
        """The predicted boundary of one panel; None where no phase is predicted in it."""
        compared, differ = self.agreement(diagram, panel.cells)
        if y is None or not (self.phase[panel.cells] >= 0).any():
            return None
        across, up = diagram.axes[x], diagram.axes[y]
        grid = grid_of(diagram, panel, x, y)
        lines: list[Line] = []
        if grid is not None and across.numeric and up.numeric:
            label = np.where(grid < 0, -1, self.phase[grid])[across.special :, up.special :]
            u, v = across.position[across.special :], up.position[up.special :]
            stride = _whole_stride(label)
            label, u, v = label[::stride, ::stride], u[::stride], v[::stride]
            for line in outlines_of_labels(label):
                at = (np.interp(line[:, k], np.arange(len(w)), w) for k, w in enumerate((u, v)))
                lines.append(np.column_stack(list(at)))
        return TheoryMap(lines=tuple(drawn_once(lines)), compared=compared, differ=differ)


def drawn_once(lines: Sequence[Line]) -> list[Line]:
    """The lines without what an earlier one has drawn: two outlines that coincide would fill each other's dashes."""
    drawn: set[frozenset[tuple[float, ...]]] = set()
    pieces: list[list[tuple[float, ...]]] = []
    for line in lines:
        new = True
        for a, b in itertools.pairwise(map(tuple, line.tolist())):
            step = frozenset((a, b))
            if step not in drawn:
                if new:
                    pieces.append([a])
                pieces[-1].append(b)
            new = step in drawn
            drawn.add(step)
    return [np.array(piece) for piece in pieces]


def _whole_stride(label: NDArray[np.int64]) -> int:
    """The finest spacing at which the labels are about complete: when time runs out, they are thinned evenly."""
    coarsest = max(s for s in _STRIDES if s == 1 or min(label.shape) > 2 * s)
    wanted = (label[::coarsest, ::coarsest] >= 0).mean()
    return next(s for s in _STRIDES if s == coarsest or (label[::s, ::s] >= 0).mean() >= 0.9 * wanted)


def overlay(
    answers: Answers, phases: Sequence[str | None], diagram: PhaseDiagram, measured: Deviations | None = None
) -> Overlay:
    """Lay a theory's answers over the cells of a diagram (nothing joined); a cell takes its first setting's.

    Args:
        answers: of the theory.
        phases: (S,) predicted.
        diagram: whose cells.
        measured: for the means that are drawn beside a predicted mean.
    """
    count = len(diagram.codes)
    first = np.full(count, -1, dtype=np.int64)
    given = np.flatnonzero([bool(p) for p in answers.predictions])[::-1]
    first[answers.cell[given]] = given
    lines: dict[str, TheoryLine] = {}
    some = np.flatnonzero(first >= 0)
    for name in answers.observed():
        value, error, source = np.full(count, np.nan), np.zeros(count), ""
        for c in some:
            predicted = answers.predictions[first[c]].get(name)
            if predicted is not None and predicted.step is None:
                source = source or predicted.source
                if not isinstance(predicted.value, Censored) and np.isfinite(predicted.value):
                    value[c], error[c] = predicted.value, predicted.standard_error
        if np.isfinite(value).any():
            mean, mean_error = np.full(count, np.nan), np.full(count, np.nan)
            if measured is not None:
                rows = np.flatnonzero((measured.observation == name) & (measured.rule == "mean"))[::-1]
                where = answers.cell[measured.setting[rows]]
                mean[where], mean_error[where] = measured.measured.mean[rows], measured.measured.mean_error[rows]
            lines[name] = TheoryLine(value=value, error=error, source=source, mean=mean, mean_error=mean_error)
    index = {label: i for i, label in enumerate(diagram.labels)}
    phase = np.full(count, -1, dtype=np.int64)
    phase[some] = [index.get(phases[s] or "", -1) for s in first[some]]
    return Overlay(lines=lines, phase=phase)


def caption(compared: int, differ: int) -> str:
    """In how many cells the predicted phase is not the measured one."""
    return f"theory: {percent(differ / compared) if compared else 'none'} of {plural(compared, 'cell')} differ"
