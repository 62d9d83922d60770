"""The kinds of analysis, and how a sweep file writes one. To add a kind, write its class and name it here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter

from jobs.job import Scalar
from orchestrator.analyses.base import Analysis
from orchestrator.analyses.complexity import ComplexityAnalysis, ThresholdAnalysis
from orchestrator.analyses.critical import CriticalAnalysis
from orchestrator.analyses.law import LawAnalysis
from orchestrator.analyses.more_data import MoreDataAnalysis
from orchestrator.analyses.peak import PeakAnalysis
from orchestrator.analyses.step_map import StepMapAnalysis
from orchestrator.analyses.times import TimesAnalysis
from orchestrator.axes import Axis

_ALL: tuple[type[Analysis], ...] = (
    PeakAnalysis,
    ComplexityAnalysis,
    ThresholdAnalysis,
    MoreDataAnalysis,
    StepMapAnalysis,
    TimesAnalysis,
    LawAnalysis,
    CriticalAnalysis,
)
KINDS: Mapping[str, type[Analysis]] = {kind.kind_name: kind for kind in _ALL}
MOST_ROWS = 64
"""Rows of a result up to which a job's default applies."""


def analysis_kind(written: Any) -> str | None:
    """Which of `KINDS` an entry is meant to be; None where it does not say."""
    if isinstance(written, BaseModel):
        return str(getattr(written, "kind", ""))
    kind = written.get("kind") if isinstance(written, Mapping) else None
    return kind if isinstance(kind, str) and kind in KINDS else None


AnalysisWritten = Annotated[
    Annotated[PeakAnalysis, Tag("peak")]
    | Annotated[ComplexityAnalysis, Tag("complexity")]
    | Annotated[ThresholdAnalysis, Tag("threshold")]
    | Annotated[MoreDataAnalysis, Tag("more_data")]
    | Annotated[StepMapAnalysis, Tag("step_map")]
    | Annotated[TimesAnalysis, Tag("times")]
    | Annotated[LawAnalysis, Tag("law")]
    | Annotated[CriticalAnalysis, Tag("critical")],
    Discriminator(analysis_kind),
]
"""An analysis as the file writes it."""

_ONE: TypeAdapter[Any] = TypeAdapter(AnalysisWritten)


def defaults(
    written: Sequence[Mapping[str, Scalar]], axes: Sequence[Axis], *, settings: int, replicates: int
) -> tuple[Analysis, ...]:
    """The defaults of a job that apply to a grid: axes vary enough, with enough replicates, and not too many rows.

    Args:
        written: of the job, as a sweep file writes them.
        axes: of the sweep.
        settings: of the grid.
        replicates: of each setting.
    """
    varied = {axis.name: len(set(axis.values)) for axis in axes}
    chosen = []
    for entry in written:
        analysis: Analysis = _ONE.validate_python(dict(entry))
        enough = all(varied.get(axis, 0) >= analysis.fewest for _, axis in analysis.needs.axes)
        few = settings // math.prod(varied.get(axis, 1) for _, axis in analysis.needs.axes) <= MOST_ROWS
        if enough and few and replicates >= analysis.fewest_replicates:
            chosen.append(analysis)
    return tuple(chosen)
