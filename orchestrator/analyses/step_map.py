"""A metric over an axis and the step: a picture, with the peaks along the axis and along the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.analyses.base import Analysis, Needs
from orchestrator.axes import key

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.analyses.result import Cell, Result
    from orchestrator.analyses.source import Source
    from orchestrator.analysis.peaks import PeakSearch
    from orchestrator.phases.diagram import PhaseDiagram
    from orchestrator.phases.steps import MetricMap, StepMap

_ESTIMATES = ("place", "height")


class StepMapAnalysis(Analysis):
    """Figure 2 of Nakkiran et al. 2019 from recorded curves; see `orchestrator.phases.steps`."""

    kind_name: ClassVar[str] = "step_map"

    kind: Literal["step_map"] = key(..., "A metric over an axis and the step, with its peaks.", "step_map")
    of: str = key(..., "The metric.", "a metric such as test_error", min_length=1)
    along: str = key(..., "The axis beside the step.", "the name of an axis", min_length=1)

    @property
    def default_name(self) -> str:
        """The kind, the metric, and the axis."""
        return f"step_map_{self.of}_{self.along}"

    @property
    def needs(self) -> Needs:
        """A metric and an axis."""
        return Needs(settings=(("along", self.along),), metrics=(("of", self.of),))

    def compute(self, source: Source) -> Result:
        """For each setting of the other axes, the peak along the axis at the last step, and those along the steps."""
        from orchestrator.analyses.result import Result
        from orchestrator.analysis.peaks import RULE
        from orchestrator.phases.step_text import heading, peak_lines
        from orchestrator.phases.steps import NoSuchMetric, read_step_map

        diagram = _diagram(source)
        x = diagram.represented(self.along)
        rows: list[dict[str, Cell]] = []
        notes: list[str] = []
        picture = None
        try:
            if x is None:
                notes.append(f"not drawn: only one value of {self.along} has trials")
            else:
                step_map = read_step_map(
                    diagram, source.table, [self.of], lambda ids: source.read(ids, [self.of]), x=x, level=self.level
                )
                (of,) = step_map.maps
                rows = list(self._rows(step_map, of))
                notes += [heading(step_map, of), *peak_lines(step_map, of), *([RULE] if rows else [])]
                picture = partial(_draw, step_map, of)
        except NoSuchMetric:
            notes.append(f"not drawn: no finished trial has a curve of {self.of}")
        setting = [axis.name for a, axis in enumerate(diagram.axes) if a != x]
        return Result(
            name=self.label,
            kind=self.kind_name,
            title=f"{self.of} over {self.along} and the step",
            rows=tuple(rows),
            setting=tuple(setting),
            parts=("peak_along", "at"),
            main=("peak_along", "at", "replicates", "peak", "place", "height", "ratio", "threshold", "p_value"),
            estimates=_ESTIMATES,
            level=self.level,
            notes=tuple(notes),
            picture=picture,
        )

    def _rows(self, step_map: StepMap, of: MetricMap) -> Iterator[dict[str, Cell]]:
        last = len(step_map.steps) - 1
        for one in of.slices:
            setting: dict[str, Cell] = dict(one.panel.fixed)
            if last in one.along_axis:
                at = int(step_map.steps[last])
                yield setting | {"peak_along": step_map.axis.name, "at": at} | _found(one.along_axis[last])
            for x, search in one.along_steps.items():
                yield setting | {"peak_along": "step", "at": step_map.axis.values[x]} | _found(search)


def _diagram(source: Source) -> PhaseDiagram:
    """The settings of the sweep; neighbouring ones are joined where there are too many for a picture."""
    from jobs.job import specs
    from orchestrator.phases.diagram import phase_diagram
    from orchestrator.phases.steps import MOST_CELLS

    kinds = dict.fromkeys(type(params) for params in source.params)
    known = {name: spec for kind in kinds for name, spec in specs(kind).items()}
    return phase_diagram("", source.axes, source.job.phases, source.table, known, most_cells=MOST_CELLS)


def _found(search: PeakSearch) -> dict[str, Cell]:
    peak = search.peak
    found: dict[str, Cell] = {"replicates": search.replicates, "peak": "none" if peak is None else "yes"}
    found |= dict.fromkeys(_ESTIMATES) if peak is None else {"place": peak.x, "height": peak.height}
    numbers = ("prominence", "standard_error", "ratio", "threshold", "p_value")
    return found | {name: float(getattr(search, name)) for name in numbers}


def _draw(step_map: StepMap, of: MetricMap, sweep: str, path: Path) -> None:
    from orchestrator.phases.draw.png_steps import draw_step_map

    draw_step_map(replace(step_map, diagram=replace(step_map.diagram, name=sweep)), of, path)
