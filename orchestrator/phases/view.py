"""What the phase diagram needs to know of a sweep, and of one of its axes.

`orchestrator.sweep.sweep.Sweep` fits; so does anything else with these read-only attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jobs.job import Job, Params, Scalar


class AxisView(Protocol):
    """One axis of a sweep."""

    @property
    def name(self) -> str:
        """The parameter that varies."""

    @property
    def scale(self) -> str:
        """How its values were spaced: linear, log, integer or values."""

    @property
    def values(self) -> Sequence[Scalar]:
        """Its values, in the order of the sweep file."""

    @property
    def when(self) -> Mapping[str, Any]:
        """Parameter -> value (or list of values) for which the axis exists; empty: always."""

    @property
    def group(self) -> int | None:
        """Axes of the same group move together."""


class SweepView(Protocol):
    """One sweep."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def axes(self) -> Sequence[AxisView]:
        """What varies, in the order of the sweep file."""

    def job_object(self) -> Job[Any]:
        """The job itself."""

    def thresholds(self) -> Params:
        """What the phases are decided by."""
