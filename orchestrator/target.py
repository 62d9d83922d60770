"""What a boundary search looks for, and what each trial says about it.

A sweep file writes a target under `search.target`. The search, the map and the theory drawn over it ask the target for
the classes, for the class of each trial and for the surrogate, so that all three follow one rule. To add a kind of
target, write its class here, name it in `TARGETS`, and write its surrogate in `surface/`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema, core_schema

from jobs.job import Censored
from orchestrator.axes import FileModel, key
from orchestrator.errors import nearest
from orchestrator.records import Status, TrialResult
from orchestrator.surface.base import Surrogate, TrialEvidence

NO_VALUE = "no value"
"""The class of a finished trial that has no finite value of the metric."""


class Target(FileModel, ABC):
    """What a search looks for; written in a sweep file, immutable."""

    kind: ClassVar[str]
    example: ClassVar[str]
    """How a sweep file writes it, for messages."""
    axis_key: ClassVar[str | None] = None
    """The key that names an axis, where the target singles one out."""

    @property
    def axis(self) -> str | None:
        """The axis that it singles out: the search then needs at least one other axis."""
        return getattr(self, self.axis_key) if self.axis_key else None

    @property
    @abstractmethod
    def description(self) -> str:
        """What it looks for, in words."""

    @property
    def title(self) -> str:
        """What its map shows, in words."""
        return self.description.replace("_", " ")

    @abstractmethod
    def classes(self, phases: Sequence[str]) -> tuple[str, ...]:
        """(K,) the names of the classes, as a study keeps them; `phases` are the job's. Empty: it has none."""

    def class_titles(self, phases: Sequence[str]) -> tuple[str, ...]:
        """(K,) the classes as a map shows them."""
        return self.classes(phases)

    @abstractmethod
    def evidence(self, result: TrialResult, classes: Sequence[str]) -> TrialEvidence | None:
        """What a trial that has ended says, with its class as an index into `classes`; None: nothing, as if not run.

        A failed or killed trial is no evidence. A diverged trial has finished, and is evidence like any other.
        """

    @abstractmethod
    def surrogate(self, classes: int, axes: Sequence[Collection[str]], replicates: int = 1) -> Surrogate[Any]:
        """What is fitted to the evidence of one slice.

        Args:
            classes: K.
            axes: (d,) the parameters that each axis of the slice sets (several where axes are zipped).
            replicates: the most trials that a setting of a grid may have.

        Raises:
            ValueError: the slice lacks the axis that the target singles out.
        """


class PhaseTarget(Target):
    """Where one phase ends and another begins."""

    kind = "phase"
    example = "phase"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, written: Any) -> Any:
        return {} if written == cls.kind else written

    @model_serializer
    def _written(self) -> str:
        return self.kind

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"const": cls.kind, "type": "string"}

    @property
    def description(self) -> str:
        return "where one phase ends and another begins"

    @property
    def title(self) -> str:
        return "phases"

    def classes(self, phases: Sequence[str]) -> tuple[str, ...]:
        return tuple(phases)

    def evidence(self, result: TrialResult, classes: Sequence[str]) -> TrialEvidence | None:
        """A trial's class is its phase, "diverged" like any other. A trial without a phase is no evidence."""
        if result.status is not Status.FINISHED or result.phase is None:
            return None
        return TrialEvidence(label=classes.index(result.phase))

    def surrogate(self, classes: int, axes: Sequence[Collection[str]], replicates: int = 1) -> Surrogate[Any]:
        from orchestrator.surface.phase import PhaseSurrogate

        return PhaseSurrogate(classes=classes, replicates=replicates)


class MetricTarget(Target):
    """A target that is looked for in one observation of the job."""

    metric_key: ClassVar[str] = "metric"
    """The key that names the observation."""

    @property
    def observation(self) -> str:
        """The name of the observation."""
        return str(getattr(self, self.metric_key))

    def side(self, observed: float | Censored | None) -> int:
        """The class that an observation, measured or predicted, shows; -1 where it shows none."""
        return -1

    def evidence(self, result: TrialResult, classes: Sequence[str]) -> TrialEvidence | None:
        """A finished trial whose metric is missing, NaN or infinite shows the last class, `NO_VALUE`, if there are any.

        That holds whatever phase the trial has, "diverged" included. A censored metric keeps its bound as its value.
        """
        if result.status is not Status.FINISHED:
            return None
        observed = result.observations.get(self.observation)
        value = observed.at if isinstance(observed, Censored) else math.nan if observed is None else float(observed)
        is_finite = math.isfinite(value)
        return TrialEvidence(
            label=self.side(observed) if is_finite else len(classes) - 1,
            value=value if is_finite else math.nan,
            censored=isinstance(observed, Censored),
        )


class LevelTarget(MetricTarget):
    """Where a metric crosses a level."""

    kind = "level"
    example = "{metric: NAME, level: NUMBER}"
    metric: str = key(
        meaning="An observation of the job, such as final_test_accuracy.", valid="text, not empty", min_length=1
    )
    level: float = key(meaning="The value whose crossing is looked for.", valid="a number")

    @property
    def description(self) -> str:
        return f"where {self.metric} passes {self.level:g}"

    def classes(self, phases: Sequence[str]) -> tuple[str, ...]:
        return "below", "at or above", NO_VALUE

    def class_titles(self, phases: Sequence[str]) -> tuple[str, ...]:
        metric = self.metric.replace("_", " ")
        return f"{metric} below {self.level:g}", f"{metric} {self.level:g} or more", NO_VALUE

    def side(self, observed: float | Censored | None) -> int:
        """Below the level (0), at or above it (1), or unknown (-1).

        A censored observation is a lower bound: the metric was not reached by then. A bound at or above the level puts
        the trial above it. A bound below the level leaves the side unknown: the trial has no class, and the surrogate
        uses the bound as a censored value.
        """
        if isinstance(observed, Censored):
            return 1 if observed.at >= self.level else -1
        return -1 if observed is None or math.isnan(observed) else int(observed >= self.level)

    def surrogate(self, classes: int, axes: Sequence[Collection[str]], replicates: int = 1) -> Surrogate[Any]:
        from orchestrator.surface.level import LevelSurrogate

        return LevelSurrogate(level=self.level, classes=classes, replicates=replicates)


class RidgeTarget(MetricTarget):
    """Where a metric peaks along one axis, as the others vary."""

    kind = "ridge"
    example = "{ridge: NAME, along: AXIS}"
    metric_key = "ridge"
    axis_key = "along"
    ridge: str = key(
        meaning="An observation of the job, such as final_test_error.", valid="text, not empty", min_length=1
    )
    along: str = key(meaning="The axis along which it peaks.", valid="the name of an axis", min_length=1)

    @property
    def description(self) -> str:
        return f"where {self.ridge} peaks along {self.along}"

    def classes(self, phases: Sequence[str]) -> tuple[str, ...]:
        return ()

    def surrogate(self, classes: int, axes: Sequence[Collection[str]], replicates: int = 1) -> Surrogate[Any]:
        from orchestrator.surface.ridge import RidgeSurrogate

        index = next((k for k, names in enumerate(axes) if self.along in names), None)
        if index is None:
            raise ValueError(f"{self.along} is not an axis of this slice")
        return RidgeSurrogate(along=index)


TARGETS: tuple[type[Target], ...] = (PhaseTarget, LevelTarget, RidgeTarget)


def target_type(written: Any) -> type[Target] | None:
    """Which of `TARGETS` a value in a sweep file is meant to be, misspelt keys allowed; None where it is none."""
    if isinstance(written, Target):
        return type(written)
    if isinstance(written, str):
        return PhaseTarget
    if not isinstance(written, dict):
        return None
    mappings = [target for target in TARGETS if target.model_fields]
    known = [name for target in mappings for name in target.model_fields]
    meant = {nearest(name, known) for name in written if isinstance(name, str)}
    return max(mappings, key=lambda target: len(meant & target.model_fields.keys()))


class _AnyTarget:
    """Tells pydantic that a field holds one of `TARGETS`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {target.kind: handler.generate_schema(target) for target in TARGETS}
        return core_schema.tagged_union_schema(choices, lambda written: getattr(target_type(written), "kind", None))


TargetWritten = Annotated[Target, _AnyTarget()]
"""A target as the sweep file writes it."""
