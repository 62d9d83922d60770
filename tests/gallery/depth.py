"""Row 8: depth against width; what exists, and what training finds at equal parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import UNDECIDED, Finding, Row, above, agrees, below, every, mean_interval

WIDTH, FOLDS = 32, 6
"""Units a layer of the random networks; folds of the tent map that is learned."""
REPLICATES, CHOOSING = 8, 4
"""Those that compare, and the ones before them, which choose the rate of each network."""
DEEPER = (("ball", 4, 1, 0), ("ball", 4, 2, 0), ("teacher", 4, 1, 0), ("teacher", 4, 2, 0), ("tent", 4, 1, 0))
"""Target, layers of the teacher, and of its networks, in order of depth, which must have a lower loss than which."""
VARIANCE_OF_TENT = 1 / 12


def pieces(folds: int) -> int:
    """Linear pieces of the tent map composed with itself: every fold halves each piece."""
    return int(2**folds)


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The pieces that exist, and paired ratios of what is learned."""
    built, trained = (sweep.trials() for sweep in results)
    yield every("tent map: loss 0", built[built.start == "tent"].final_test_loss == 0)
    for (start, layers), group in built.groupby(["start", "layers"]):
        k = int(layers)
        if start == "tent":
            expected, series = pieces(k), "tent map, 2 units a layer"
            yield agrees(f"tent map, k {k}: pieces", group.final_pieces, expected, series=series, x=float(k))
        else:
            most, series = float(k * WIDTH + 1), f"random, {WIDTH} units a layer"
            found = mean_interval(group.final_pieces)
            yield below(f"random, {k} layers: pieces", *found, most, n=len(group), series=series, x=float(k))
    for target, teacher, more, less in DEEPER:
        yield below(*ratio(trained, target, teacher, more, less), 1.0, n=REPLICATES)
    yield above(*ratio(trained, "teacher", 1, 2, 0), 1.0, n=REPLICATES)
    deep = compared(trained, "tent", 4, 1)
    relative = deep.final_test_loss / VARIANCE_OF_TENT
    yield above(f"tent, {FOLDS} layers trained: loss / variance", *mean_interval(relative), 0.5, n=len(deep))
    found = mean_interval(deep.final_pieces)
    yield below(f"tent, {FOLDS} layers trained: pieces", *found, float(pieces(FOLDS)), n=len(deep))


def compared(trials: Any, target: str, teacher: int, place: int) -> Any:
    """Trials of the replicates that compare, at the rate with the smallest mean log loss of those that choose."""
    of = trials[(trials.target == target) & (trials.teacher_layers == teacher)]
    of = of[of.layers == sorted(of.layers.unique())[place]]
    choosing = of[of.replicate < CHOOSING]
    losses = np.log(choosing.final_test_loss.fillna(np.inf)).groupby(choosing.learning_rate).mean()
    return of[(of.learning_rate == losses.idxmin()) & (of.replicate >= CHOOSING)].sort_values("replicate")


def notes(results: Sequence[Any]) -> Iterator[str]:
    """The chosen rates."""
    trials = results[1].trials()
    for (target, teacher), of in trials.groupby(["target", "teacher_layers"]):
        for place, layers in enumerate(sorted(of.layers.unique())):
            rate = compared(trials, target, teacher, place).learning_rate.iloc[0]
            yield f"{target}, teacher of {teacher}, {layers} layers: chosen learning rate {rate:g}"


def ratio(trials: Any, target: str, teacher: int, more: int, less: int) -> tuple[str, float, float, float]:
    """What is compared, the geometric mean of the paired ratios of the losses, and its interval."""
    deep, wide = (compared(trials, target, teacher, place) for place in (more, less))
    name = f"teacher of {teacher}" if target == "teacher" else target
    found = np.exp(mean_interval(np.log(deep.final_test_loss.to_numpy() / wide.final_test_loss.to_numpy())))
    return f"{name}: loss of {deep.layers.iloc[0]} layers / of {wide.layers.iloc[0]}", *map(float, found)


ROW = Row(
    number=8,
    name="depth against width",
    source="Telgarsky 2016; Eldan, Shamir 2016; Vardi et al. 2022",
    sweeps=("telgarsky2016/pieces_small.yaml", "telgarsky2016/depth_width_small.yaml"),
    check=check,
    notes=notes,
    axes=("layers", "linear pieces"),
    absent={"tent: loss of 6 layers / of 1": UNDECIDED},
)
