"""Grokking protocols trained twice, by the packed job and by plain PyTorch as the authors do it, and compared.

`python tests/protocols.py 40` compares 40 seeds a side and prints the table of configs/README.md; names of protocols
after the number choose among them. `--first-seed` draws another sample of both sides. Sizes are such that one core
trains both sides in some minutes.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import authors_protocols as authors
import numpy as np
import torch
from authors_protocols import Watched
from packing import curves_of
from scipy.stats import mannwhitneyu, rankdata

from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Member, log_spaced_steps

LEVEL, POINTS, PERMUTATIONS = 0.9, 60, 9_999
LEARNING = ("memorisation", "generalisation", "final training accuracy", "final test accuracy")
MEASURES = (*LEARNING, "final weight norm")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A setting of the job, and the authors' training with the same sizes."""

    values: Mapping[str, Any]
    train: Callable[..., Watched]
    sizes: Mapping[str, Any]
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that are not the authors' and that the comparison tells from theirs."""


LIU: dict[str, Any] = {
    "operation": "sum",
    "modulus": 10,
    "data_fraction": 45 / 55,
    "model": "embedding_mlp",
    "embedding": 1,
    "combine": "sum",
    "activation": "tanh",
    "layers": 2,
    "width": 48,
    "loss": "cross_entropy",
    "class_mean": True,
    "init": "liu",
    "beta2": 0.999,
    "embedding_learning_rate": 0.001,
    "decay_embedding": False,
    "learning_rate": 0.002,
    "weight_decay": 1.0,
    "steps": 2500,
}
PRIETO: dict[str, Any] = {
    "model": "embedding_mlp",
    "embedding": 0,
    "biases": False,
    "init": "torch",
    "count_rounding": "down",
    "layers": 2,
    "weight_decay": 0.0,
    "beta2": 0.999,
    "learning_rate": 0.01,
}
TRANSFORMER: dict[str, Any] = {
    "model": "transformer",
    "heads": 4,
    "width": 32,
    "loss": "cross_entropy",
    "warmup_steps": 10,
    "warmup_from_zero": True,
}
PROTOCOLS = {
    "liu2022": Protocol(values=LIU, train=authors.liu, sizes={"width": 48, "rate": 0.002, "decay": 1.0}),
    "nanda2023": Protocol(
        values={
            **TRANSFORMER,
            "modulus": 13,
            "data_fraction": 0.8,
            "init": "nanda",
            "vocabulary": 14,
            "count_rounding": "down",
            "learning_rate": 0.005,
            "weight_decay": 1.0,
            "steps": 800,
        },
        train=authors.nanda,
        sizes={"p": 13, "d": 32, "heads": 4, "fraction": 0.8, "rate": 0.005, "decay": 1.0},
    ),
    "doshi2023": Protocol(
        values={
            "modulus": 23,
            "width": 128,
            "class_mean": True,
            "count_rounding": "down",
            "noise_count": "exact",
            "label_noise": 0.1,
            "data_fraction": 0.8,
            "learning_rate": 0.01,
            "weight_decay": 5.0,
            "steps": 400,
        },
        train=authors.doshi,
        sizes={"p": 23, "width": 128, "fraction": 0.8, "noise": 0.1, "decay": 5.0},
    ),
    "grokfast2024": Protocol(
        values={
            **TRANSFORMER,
            "operation": "multiply_nonzero",
            "modulus": 13,
            "data_fraction": 0.5,
            "layers": 2,
            "layer_norm": True,
            "norm_order": "grokfast",
            "activation": "gelu",
            "attention_biases": True,
            "init": "torch",
            "sequence": "operator",
            "vocabulary": 15,
            "count_rounding": "down",
            "batch_size": 50,
            "last_batch": "smaller",
            "optimiser": "adam",
            "learning_rate": 0.003,
            "weight_decay": 0.01,
            "grokfast_alpha": 0.98,
            "grokfast_lambda": 2.0,
            "steps": 800,
        },
        train=authors.grokfast,
        sizes={
            "p": 13,
            "d": 32,
            "heads": 4,
            "layers": 2,
            "batch": 50,
            "fraction": 0.5,
            "rate": 0.003,
            "decay": 0.01,
            "alpha": 0.98,
            "strength": 2.0,
        },
    ),
    "prieto2025 perpGrad": Protocol(
        values={
            **PRIETO,
            "loss": "cross_entropy",
            "perp_grad": "layers_rescaled",
            "modulus": 23,
            "data_fraction": 0.7,
            "width": 100,
            "steps": 300,
        },
        train=authors.prieto,
        sizes={"p": 23, "width": 100, "fraction": 0.7, "rate": 0.01, "stablemax": False},
    ),
    "prieto2025 StableMax": Protocol(
        values={
            **PRIETO,
            "loss": "stablemax",
            "loss_precision": 64,
            "epsilon": 1e-25,
            "modulus": 17,
            "data_fraction": 0.8,
            "width": 64,
            "steps": 400,
        },
        train=authors.prieto,
        sizes={"p": 17, "width": 64, "fraction": 0.8, "rate": 0.01, "stablemax": True},
        controls={"other initial weights": {"init": "scaled"}},
    ),
    "power2022": Protocol(
        values={
            **TRANSFORMER,
            "modulus": 11,
            "data_fraction": 0.8,
            "layers": 2,
            "layer_norm": True,
            "init": "torch",
            "biases": False,
            "positions": "sinusoidal",
            "sequence": "equation",
            "vocabulary": 11 + 142,
            "batch_size": 512,
            "batch_fraction": 0.5,
            "last_batch": "smaller",
            "learning_rate": 0.005,
            "weight_decay": 1.0,
            "steps": 400,
        },
        train=authors.power,
        sizes={"p": 11, "d": 32, "heads": 4, "layers": 2, "fraction": 0.8, "rate": 0.005, "decay": 1.0},
        controls={"other initial weights": {"init": "scaled"}},
    ),
}


def of_the_job(values: Mapping[str, Any], seeds: int, *, first_seed: int = 100, device: str = "cpu") -> np.ndarray:
    """(seeds, measures) of the job's trials, trained as one pack."""
    params = GrokkingParams(**values, curve_points=POINTS)
    pack = [Member(params=params, seed=first_seed + seed) for seed in range(seeds)]
    curves = curves_of(Grokking(), pack, device=device)
    at = log_spaced_steps(params.steps, POINTS)
    assert all(np.array_equal(curve.step, at) for curve in curves.values()), "a trial ended early"
    names = ("train_accuracy", "test_accuracy", "weight_norm")
    train, test, norm = (np.array([curve.values[name] for curve in curves.values()]) for name in names)
    return measures(Watched(train=train, test=test, norm=norm), at)


def of_the_authors(protocol: Protocol, seeds: int, *, first_seed: int = 0, device: str = "cpu") -> np.ndarray:
    """(seeds, measures) of the authors' trainings, which draw from one generator seeded with `first_seed`."""
    torch.manual_seed(first_seed)
    at = log_spaced_steps(protocol.values["steps"], POINTS)
    with torch.device(device):
        return measures(protocol.train(seeds, at.tolist(), **protocol.sizes), at)


def measures(watched: Watched, at: np.ndarray) -> np.ndarray:
    """(networks, measures); a step that is not reached is infinite."""
    steps = [np.where(high, at, math.inf).min(1) for high in (watched.train >= LEVEL, watched.test >= LEVEL)]
    return np.stack([*steps, watched.train[:, -1], watched.test[:, -1], watched.norm[:, -1]], 1)


def chance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p of the hypothesis that both samples are of one distribution, for all measures (columns) at once.

    A permutation test of the largest standardised rank sum. All trainings have the same horizon, so a step that is not
    reached ranks last on both sides.
    """
    both = np.concatenate([ours, theirs])
    ranks = rankdata(both, axis=0)
    ranks -= ranks.mean(0)
    ranks /= np.maximum(ranks.std(0), 1e-12)
    rng = np.random.default_rng(0)
    chosen = rng.permuted(np.tile(np.arange(len(both)) < len(ours), (PERMUTATIONS, 1)), axis=1)
    largest = np.abs(chosen @ ranks).max(1)
    seen = np.abs(ranks[: len(ours)].sum(0)).max()
    return float((1 + (largest >= seen - 1e-9).sum()) / (1 + PERMUTATIONS))


def described(ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """A line for each measure: median [quartiles] of both sides, and p of the Mann-Whitney test."""
    lines = []
    for name, *sides in zip(MEASURES, ours.T, theirs.T, strict=True):
        ranked = [np.where(np.isfinite(values), values, 1e9) for values in sides]
        p = 1.0 if len(np.unique(ranked)) == 1 else float(mannwhitneyu(*ranked).pvalue)
        never = [int(np.isinf(values).sum()) for values in sides]
        late = f"; never {never[0]} and {never[1]}" if any(never) else ""
        lines.append(f"  {name}: job {quartiles(sides[0])}, authors {quartiles(sides[1])}, p = {p:.2g}{late}")
    return lines


def quartiles(values: np.ndarray) -> str:
    """Median [quartiles]; "-" is a step that is not reached."""
    chosen = np.percentile(values, (50, 25, 75), method="nearest")
    return "{} [{}, {}]".format(*(f"{value:.4g}" if np.isfinite(value) else "-" for value in chosen))


def main() -> None:
    """Compare the protocols asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first-seed", type=int, help="of both sides; default: those of the tests")
    parser.add_argument("--controls", action="store_true", help="train settings that are not the authors' too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=f"default: all of {', '.join(PROTOCOLS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    of_both: dict[str, Any] = {"device": options.device}
    if options.first_seed is not None:
        of_both["first_seed"] = options.first_seed
    for name in options.protocols or PROTOCOLS:
        protocol, clock = PROTOCOLS[name], [time.perf_counter()]
        ours = of_the_job(protocol.values, options.seeds, **of_both)
        clock.append(time.perf_counter())
        theirs = of_the_authors(protocol, options.seeds, **of_both)
        clock.append(time.perf_counter())
        job, plain = np.diff(clock)
        print(
            f"{name}: n = {options.seeds} each, p = {chance(ours, theirs):.2g} for all measures at once "
            f"({job:.0f} s and {plain:.0f} s)"
        )
        print("\n".join(described(ours, theirs)), flush=True)
        for control, changed in (protocol.controls if options.controls else {}).items():
            other = of_the_job({**protocol.values, **changed}, options.seeds, **of_both)
            learning = slice(len(LEARNING))
            print(f"{name}, {control}: p = {chance(other[:, learning], theirs[:, learning]):.2g}")
            print("\n".join(described(other, theirs)), flush=True)


if __name__ == "__main__":
    main()
