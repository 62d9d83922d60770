"""Phases as the target of a search: labels of any number, and the trials that tell where each ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.surface.base import Evidence, Points, Snap, Surrogate
from orchestrator.surface.classifier import GpClasses, fit_classifier
from orchestrator.surface.placement import place

__all__ = ["PhaseSurrogate", "fit_classifier"]


@dataclass(frozen=True, kw_only=True)
class PhaseSurrogate(Surrogate[GpClasses]):
    """The boundaries between the classes that the trials' labels show."""

    classes: int
    """K: labels run from 0 to K - 1."""
    start: int = 64
    """Trials at positions of a scrambled Sobol sequence before the belief is used."""
    replicates: int = 1
    """How many trials a setting of a grid may have."""

    def fit(self, evidence: Evidence, *, previous: GpClasses | None = None) -> GpClasses:
        """The belief after this evidence; trials labelled -1 say nothing."""
        return fit_classifier(evidence.x, evidence.label, classes=self.classes, previous=previous)

    def suggest(
        self,
        surface: GpClasses,
        evidence: Evidence,
        *,
        pending: Points,
        count: int,
        snap: Snap,
        rng: np.random.Generator,
    ) -> Points:
        return place(
            surface,
            evidence.x,
            evidence.label,
            pending=pending,
            count=count,
            snap=snap,
            rng=rng,
            replicates=self.replicates,
        )


PhaseTarget = PhaseSurrogate
"""The name under which `PhaseBoundarySampler` users import it."""
