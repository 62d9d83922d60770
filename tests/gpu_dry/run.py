"""Train a pack on the stand-in device, twice: from the start, and from the states that it offered on the way."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from jobs.packed import loop
from jobs.state import TrialState
from tests.gpu_dry.cases import Case
from tests.gpu_dry.stand_in import NAME, MixedDevices, Place, StandIn, ValueNeeded

_SAVED_AT = 3
"""The step whose states are loaded again."""
_REACHED_AFTER = 2
"""Reports after which every read says that a level is reached: models are trained again from the last report."""
_SETTLED = 2
"""Steps after which a block holds what it makes lazily."""


@dataclass
class Outcome:
    """What crossed the border of the device, and what stayed on it."""

    name: str
    mixed: Counter[Place] = field(default_factory=Counter)
    reads: Counter[Place] = field(default_factory=Counter)
    uploads: Counter[Place] = field(default_factory=Counter)
    growth: float | None = None
    """The most bytes per step that stay on the device; None: no two reports were far enough apart to tell."""
    loaded: bool = False
    """Whether states were saved and loaded."""

    def saw(self, samples: Sequence[tuple[int, int]]) -> None:
        """Note the growth from (step, bytes) between two reports."""
        settled = samples[_SETTLED:]
        if len(settled) > 1:
            (first, held), (last, holds) = settled[0], settled[-1]
            self.growth = max(self.growth or 0.0, (holds - held) / (last - first))

    def violations(self) -> list[str]:
        """What the device law forbids, with the places."""
        found = [f"mixed devices: {at.line}" for at in self.mixed]
        found += [f"read in advance: {at.line}" for at in self.reads if at.advancing]
        found += [f"read outside to_host: {at.line}" for at in self.reads if not at.advancing and not at.named]
        found += [f"upload in advance: {at.line}" for at in self.uploads if at.advancing]
        if self.growth:
            found.append(f"grows by {self.growth:.0f} bytes per step")
        return found


def dry_run(case: Case) -> Outcome:
    """Train the pack, save and load its states, and count."""
    outcome = Outcome(case.name)
    mode = StandIn()
    try:
        with mode:
            states = _train(case, mode, outcome)
            if states:
                live = [replace(case.pack[p], state=state) for p, state in sorted(states.items())]
                _train(replace(case, pack=live), mode, outcome)
                outcome.loaded = True
    except (MixedDevices, ValueNeeded):
        pass  # they are counted, with their places
    outcome.mixed, outcome.reads, outcome.uploads = mode.mixed, mode.reads, mode.uploads
    return outcome


def _train(case: Case, mode: StandIn, outcome: Outcome) -> Mapping[int, TrialState]:
    """Returns the states offered at `_SAVED_AT`."""
    states: Mapping[int, TrialState] = {}
    samples: list[tuple[int, int]] = []
    reports, trained, mode.answer = 0, 0, 0.0
    divided = loop._Pieces.steps

    def steps(pieces: loop._Pieces, left: int) -> int:
        """Sample the bytes before each piece, of blocks that cannot be saved too."""
        nonlocal trained
        if not samples:
            gc.freeze()  # what is there by now is not searched for garbage at every step
        samples.append((trained, mode.live_bytes()))
        trained += (count := divided(pieces, left))
        return count

    with (
        patch.object(loop, "OFFER_S", 0.0),  # states are offered, and pieces end, at every step
        patch.object(loop, "FIRST_PIECE", 1),
        patch.object(loop._Pieces, "steps", steps),
    ):
        for report in case.job.train(case.pack, device=NAME):
            if report.state is not None:
                if report.step == _SAVED_AT:
                    states = report.state()
                continue
            if report.final is not None:
                report.final()
            reports += 1
            if reports == _REACHED_AFTER:
                mode.answer = case.reached
            # A report may leave a copy of the block behind (`jobs.packed.crossings`): only steps are compared.
            outcome.saw(samples)
            samples.clear()
    return states
