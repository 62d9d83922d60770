"""What is likely to go wrong with a sweep, as its job knows before anything runs, each with its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ENOUGH = 5
"""Finished trials from which a constant is taken, in place of the usual one."""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """Something that the user should know before a run."""

    what: str
    """What is likely, and in which settings."""
    source: str
    """Where this is known from: a law and its paper, or a measurement."""
    next_step: str


def short_horizons(
    decays: Sequence[tuple[float, float, float]], reached: Sequence[float], *, usual: float = 1.0
) -> Caution | None:
    """Horizons that are short for the weight decay, by the law that the time to generalise is c / (lr wd).

    Source of the law: Liu, Michaud, Tegmark 2022, "Omnigrok" (arXiv 2210.01117); `jobs.theory.weight_decay`. With
    c = ln(w0 / wc) unknown, `usual` = 1 stands for it: until lr wd steps = 1, the weights shrink by a factor e at most.

    Args:
        decays: of each setting that is to run, (learning rate, weight decay > 0, steps).
        reached: lr wd t of finished trials that generalised at step t; five or more replace `usual` by their median.
        usual: c without such trials.
    """
    known = len(reached) >= ENOUGH
    constant = sorted(reached)[len(reached) // 2] if known else usual
    short = [(rate, decay, steps) for rate, decay, steps in decays if rate * decay * steps < constant]
    if not short:
        return None
    rate, decay, steps = min(short, key=lambda each: each[0] * each[1])
    needed = constant / (rate * decay)
    share = f"{len(short)} of {len(decays)} settings" if len(short) < len(decays) else "all settings"
    basis = f"{len(reached)} finished trials generalised at lr wd t = {constant:.2g} (median)" if known else "c = 1"
    return Caution(
        what=f"the horizon may be too short for the weight decay in {share}: at weight_decay {decay:g} and "
        f"learning_rate {rate:g}, {steps:g} steps shrink the weights to {math.exp(-rate * decay * steps):.0%} at least",
        source="a network that generalises through weight decay needs about c / (learning_rate weight_decay) steps "
        f"(Liu et al. 2022, arXiv 2210.01117); here {basis}",
        next_step=f"steps: {rounded(needed)} reaches that time at weight_decay {decay:g}; or expect memorisation there",
    )


def gap_out_of_reach(steps: Sequence[float], gap: float) -> Caution | None:
    """A gap from which on a trial is grokking, where no trial is as long.

    Args:
        steps: of each setting.
        gap: steps from memorisation to generalisation from which on a trial is grokking.
    """
    if not steps or max(steps) > gap:
        return None
    return Caution(
        what=f"grokking_gap {gap:g} is not below steps {max(steps):g}: no trial can be labelled grokking",
        source="a trial is grokking if it generalises at least grokking_gap steps after it has memorised",
        next_step=f"set phases.grokking_gap below {max(steps):g}, or train for more steps",
    )


def peak_outside(
    ratios: Sequence[float], *, low: float, high: float, source: str, sized: str | Callable[[float], str]
) -> Caution | None:
    """A range of sizes without the interpolation threshold, near which the test error peaks.

    Args:
        ratios: of each setting, trained parameters over the number of labels (examples times outputs).
        low: a ratio below which networks do not interpolate.
        high: a ratio above which they do.
        source: of both.
        sized: advice, which may depend on the ratio that is missing.
    """
    if not ratios or max(ratios) <= 1.001 * min(ratios):
        return None  # nothing varies that decides it
    if max(ratios) < low:
        side, edge, at = "below", f"at most {max(ratios):.2g}", low
    elif min(ratios) > high:
        side, edge, at = "above", f"at least {min(ratios):.2g}", high
    else:
        return None
    return Caution(
        what=f"the peak of the test error is likely outside of the sweep: all networks are {side} the interpolation "
        f"threshold, with {edge} parameters per label",
        source=source,
        next_step=sized if isinstance(sized, str) else sized(at),
    )


def rounded(number: float) -> str:
    """A number of steps or units, rounded up to two digits."""
    if number < 100:
        return str(math.ceil(number))
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / unit) * unit:.0f}"
