"""The checks of `make gallery` pass on parts of their sweeps, and fail with a wrong formula, label or seed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional

from jobs.gallery import distillation
from jobs.gallery import quanta as quanta_job
from jobs.gallery.chain import EQUALS, FILLER, ChainOfThought, ChainParams
from jobs.gallery.crate import DISTORTION, PENALTY, STEP, Layer, coding_rate
from jobs.gallery.depth import DepthAgainstWidth, DepthParams
from jobs.gallery.distillation import train as distil
from jobs.gallery.hull import is_inside
from jobs.gallery.in_context import NOISE as NOISE_OF_PAIRS
from jobs.gallery.in_context import ContextParams, InContextRegression
from jobs.gallery.parity import FiniteParams, FiniteParity, SparseParity
from jobs.gallery.pruning import PrunedAdam, PruningParams, TrainThenCompress
from jobs.gallery.quanta import Quanta, QuantaParams
from jobs.gallery.strings import StringParams, Strings
from jobs.gallery.trees import smoother
from jobs.gallery.verifier import train as train_verified
from jobs.job import ParamError
from jobs.module import Data
from jobs.module.data import Random
from jobs.theory import equivalent, minimum_norm
from tests.gallery import __main__ as program
from tests.gallery import (
    attention,
    benign,
    chain,
    depth,
    fold_back,
    generations,
    hull,
    model_wise,
    parity,
    progress,
    pruning,
    quanta,
    random_labels,
    scaling,
    strings,
    summary,
    verifier,
    white_box,
)
from tests.gallery.catalogue import ROWS
from tests.gallery.processor import ProcessorTime
from tests.gallery.row import DOES_NOT, SHOWS, UNDECIDED, Row, above, agrees, below, every, within

PARTS: dict[int, list[list[str] | None]] = {
    1: [None, None],
    2: [["replicates=60"], []],
    3: [
        [
            "axes.small_features=[250,4000]",
            "axes.inputs=[255,4005]",
            "axes.small_scale=[0.141421356,0.0353553391]",
            "axes.sample_count=[50,200]",
            "replicates=40",
        ],
        ["axes.sample_count=[50,200]", "axes.covariance_exponent=[1.5]", "replicates=30"],
    ],
    4: [None, None],
    5: [[], None],
    6: [
        ["axes.sample_count=[40,320]", "replicates=50"],
        ["replicates=4"],
        None,
    ],
    7: [None],
    8: [["replicates=6"], None],
    9: [None],
    10: [None],
    11: [["axes.dimension=[4,4,6,6]", "axes.sample_count=[30,80,140,350]", "replicates=60"], ["replicates=30"]],
    12: [None, None],
    13: [["axes.degree=[2,2,3,3,4,4]", "axes.bits=[10,25,10,25,10,17]", "replicates=6"], None],
    14: [
        [
            "axes.sample_count=[18,36,72,72,144,288,288,576,1152]",
            "axes.inputs=[6,6,6,12,12,12,24,24,24]",
            "axes.context_length=[6,6,6,12,12,12,24,24,24]",
            "replicates=30",
        ],
        [
            "axes.tasks=[3,24,6,48,12,96,12,96]",
            "axes.inputs=[6,6,12,12,24,24,24,24]",
            "axes.sample_count=[144,144,576,576,1152,1152,2304,2304]",
            "axes.context_length=[6,6,12,12,24,24,24,24]",
            "replicates=30",
        ],
        None,
    ],
    15: [["replicates=1000"], [], []],
    16: [None],
}
"""Of each row: changes to its sweeps that leave enough for every finding, in seconds; None: the trials were recorded,
because training them takes a minute or more."""
LONG = (2, 6, 11, 13, 14, 15)
"""Rows whose training and checks take half a minute or more together."""


def marks(row: Row) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if row.number in LONG else []


EACH_ROW = [pytest.param(row, marks=marks(row), id=row.name) for row in ROWS]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], list[Any]]:
    """The results of a part of a row's sweeps, trained once."""
    trained: dict[int, list[Any]] = {}

    def of(row: Row) -> list[Any]:
        if row.number not in trained:
            folder = tmp_path_factory.mktemp(f"row{row.number}")
            parts = zip(row.sweeps, PARTS[row.number], strict=True)
            trained[row.number] = [
                result
                for sweep, changes in parts
                for result in (
                    [Recorded(sweep)]
                    if changes is None
                    else program.results_of(
                        dataclasses.replace(row, sweeps=(sweep,)), folder, inline=True, changes=changes
                    )
                )
            ]
        return trained[row.number]

    return of


class Recorded:
    """The trials of a sweep, its curves, or both, as they were measured; the columns before `replicate` are axes."""

    def __init__(self, sweep: str) -> None:
        name = Path(sweep).stem.removesuffix("_small")
        folder = Path(__file__).parent / "gallery"
        self._trials = pd.read_csv(folder / f"{name}.csv")
        curves = folder / f"{name}_curves.csv"
        self._curves = pd.read_csv(curves) if curves.exists() else self._trials
        self.axes = tuple(self._trials.columns[: list(self._trials).index("replicate")])

    def trials(self) -> Any:
        return self._trials

    def curves(self, metrics: Sequence[str], *, axes: bool) -> Any:
        return self._curves


class Altered:
    """Results whose tables are changed before the check reads them."""

    def __init__(self, results: Any, change: Callable[[Any, Sequence[str]], Any]) -> None:
        self._results, self._change = results, change

    def trials(self) -> Any:
        return self._change(self._results.trials(), list(self._results.axes))

    def curves(self, metrics: Sequence[str], *, axes: bool) -> Any:
        return self._change(self._results.curves(metrics, axes=axes), [*self._results.axes, "step"])


def seedless(table: Any, keys: Sequence[str]) -> Any:
    """Every replicate has the results of the first: a seed that nothing reads."""
    table = table.copy()
    values = [name for name in table.select_dtypes("float") if name not in keys]
    table[values] = table.groupby(list(keys), observed=True)[values].transform("first")
    return table


def mislabelled(table: Any, keys: Sequence[str]) -> Any:
    """The values of the last axis that has several are exchanged, the largest for the smallest."""
    table = table.copy()
    axes = [key for key in keys if key != "step"]
    name = [axes[0], *(key for key in axes if table[key].nunique() > 1)][-1]
    values = sorted(table[name].unique())
    table[name] = table[name].map(dict(zip(values, reversed(values), strict=True)))
    return table


@pytest.mark.parametrize("row", EACH_ROW)
def test_a_row_is_as_reported(row: Row, results: Callable[[Row], list[Any]]) -> None:
    findings = list(row.check(results(row)))
    assert findings and row.off(findings) == []
    assert all(part for _, part in summary.claims(row, findings))
    assert summary.of_row(row, findings) == {int(number): said for number, *_, said, _, _ in table(SUMMARY)}[row.number]
    assert all(note for note in (row.notes or (lambda _: ()))(results(row)))


@pytest.mark.parametrize("change", [seedless, mislabelled])
@pytest.mark.parametrize("row", EACH_ROW)
def test_a_row_of_wrong_results_is_off(
    row: Row, change: Callable[[Any, Sequence[str]], Any], results: Callable[[Row], list[Any]]
) -> None:
    assert any(row.off([finding]) for finding in row.check([Altered(result, change) for result in results(row)]))


ORIGINAL_RISK = equivalent.excess_risk
ORIGINAL_COUNT = minimum_norm.effective_parameters

MUTATIONS: list[tuple[Row, Any, str, Any]] = [
    (benign.ROW, equivalent, "implicit_ridge", lambda n, variances, **_: float(np.sum(variances)) / n),
    (
        benign.ROW,
        equivalent,
        "excess_risk",
        lambda n, v, b, *, noise_variance: ORIGINAL_RISK(n, v, b, noise_variance=0),
    ),
    (benign.ROW, equivalent, "excess_risk", lambda n, v, b, **noise: ORIGINAL_RISK(1.1 * n, v, b, **noise)),
    (random_labels.ROW, random_labels, "chance", lambda: 1 - 1 / 9),
    (random_labels.ROW, random_labels, "KINDS", ("random", "original")),
    (depth.ROW, depth, "pieces", lambda k: 2 * k),
    (depth.ROW, depth, "pieces", lambda k: 2 ** (k + 1)),
    (depth.ROW, depth, "DEEPER", [(*of, less, more) for *of, more, less in depth.DEEPER]),
    (depth.ROW, depth, "VARIANCE_OF_TENT", 1 / 3),
    (depth.ROW, depth, "WIDTH", 8),
    (fold_back.ROW, minimum_norm, "effective_parameters", lambda n, p: min(n, p)),
    (fold_back.ROW, minimum_norm, "effective_parameters", lambda n, p: ORIGINAL_COUNT(n + 1, p)),
    (fold_back.ROW, fold_back, "NOISE", 0.35),
    (fold_back.ROW, fold_back, "RISING", {"p < n": (50, 30), "p > n": (70, 120)}),
    (model_wise.ROW, model_wise, "GENERALISED", "memorisation_step"),
    (model_wise.ROW, model_wise, "MEMORISING", 64),
    (model_wise.ROW, model_wise, "REACHED", 0.0),
    (model_wise.ROW, model_wise, "ratio", lambda what, ratios: ORIGINAL_RATIO(what, 1 / ratios)),
    (model_wise.ROW, model_wise, "humps", lambda curves: ORIGINAL_HUMPS(monotonic(curves, "cummax"))),
    (model_wise.ROW, model_wise, "humps", lambda curves: ORIGINAL_HUMPS(monotonic(curves, "cummin"))),
    (model_wise.ROW, model_wise, "exponent", lambda trials, *of: ORIGINAL_EXPONENT(times(trials, *of), *of)),
    (scaling.ROW, scaling, "exponents", lambda a, t: {**ORIGINAL_EXPONENTS(a, t), "examples": a + t - 1}),
    (scaling.ROW, scaling, "exponents", lambda a, t: {**ORIGINAL_EXPONENTS(a, t), "steps": a + t - 1}),
    (scaling.ROW, scaling, "exponents", lambda a, t: {**ORIGINAL_EXPONENTS(a, t), "optimum": 0.5}),
    (scaling.ROW, scaling, "expected", lambda params: 1.5 * benign.expected(params)),
    (scaling.ROW, scaling, "course", lambda params, p, steps: ORIGINAL_COURSE(params, p, np.sqrt(steps))),
    (scaling.ROW, scaling, "by_risks", lambda widths, risk, c, held_out: 0.4 * np.sqrt(held_out)),  # parameters as data
    (scaling.ROW, scaling, "INPUTS", 5),
    (scaling.ROW, scaling, "optima", lambda *of: list(np.log(ORIGINAL_OPTIMA(*of)))),  # of a width, in place of it
    (quanta.ROW, quanta, "frequencies", lambda zipf: ORIGINAL_FREQUENCIES(zipf + 0.5)),
    (quanta.ROW, quanta, "in_steps", lambda zipf: zipf),  # of a step in its rank
    (quanta.ROW, quanta, "stacked", lambda *of: ORIGINAL_STACKED(*of) / np.log(2)),
    (quanta.ROW, quanta, "beyond", lambda count, zipf: ORIGINAL_BEYOND(0, zipf) - ORIGINAL_BEYOND(count, zipf)),
    (quanta.ROW, quanta, "exponent", lambda *of: mirrored(*ORIGINAL_QUANTA(*of))),
    (chain.ROW, chain, "NEAR_CHANCE", (0.95, 1.0)),
    (chain.ROW, chain, "LARGEST", 4),
    (chain.ROW, chain, "RIGHT", 0.2),
    (chain.ROW, chain, "solved", lambda accuracy: ORIGINAL_SOLVED(1 - accuracy)),  # the error
    (chain.ROW, chain, "pooled", lambda *of, **point: ORIGINAL_POOLED(*of[:3], 1 - of[3], *of[4:], **point)),  # errors
    (pruning.ROW, pruning, "parameters", lambda width: width**2 + 51 * width),
    (pruning.ROW, pruning, "compared", lambda *of: 1 - ORIGINAL_ERRORS(*of)),  # accuracies
    (pruning.ROW, pruning, "FORWARD", 4000.0),  # in examples, not in steps of 100
    (pruning.ROW, pruning, "COMPUTE", 5110 * 5697),
    (parity.ROW, parity, "growth", lambda curve: other_inputs(curve)),
    (parity.ROW, parity, "delay", lambda *steps: ORIGINAL_DELAY(*reversed(steps))),
    (parity.ROW, parity, "NEAR_CHANCE", 0.45),
    (parity.ROW, parity, "slope_interval", lambda *of: mirrored(*ORIGINAL_SLOPE(*of))),
    (parity.ROW, parity, "slope_interval", lambda place, steps: ORIGINAL_SLOPE(np.exp(place), steps)),  # in n
    (parity.ROW, parity, "LEARNED", 0.4),  # of chance
    (hull.ROW, hull, "absorbed", lambda n, d: ORIGINAL_ABSORBED(n, d + 1)),
    (hull.ROW, hull, "absorbed", lambda n, d: 1 - 2.0**-n * sum(math.comb(n, k) for k in range(d))),  # Wendel: cones
    (hull.ROW, hull, "half", lambda d: 2.5 * 2 ** (d / 2)),
    (hull.ROW, hull, "half_of", lambda n, share: 3 * ORIGINAL_HALF_OF(n, share)),
    (hull.ROW, hull, "by_dimension", lambda trials: ORIGINAL_DIMENSIONS(exchanged(trials, "dimension", 4, 8))),
    (fold_back.ROW, fold_back, "LEAVES", (1000, 200, 100, 50)),
    (fold_back.ROW, fold_back, "TREES", (1, 2, 5, 20, 50)),
    (white_box.ROW, white_box, "by_layer", lambda *of: ORIGINAL_LAYERS(*of)[:, ::-1]),
    (white_box.ROW, white_box, "by_layer", lambda curves, name, place: ORIGINAL_LAYERS(curves, name, 0)),
    (white_box.ROW, white_box, "chosen", lambda trials, table, _: ORIGINAL_CHOSEN(trials, table, "crate")),
    (strings.ROW, strings, "all_right", lambda p, length, tokens: p ** (length - 1)),
    (strings.ROW, strings, "all_right", lambda p, length, tokens: p.mean() ** length + 0 * p),
    (strings.ROW, strings, "none_right", lambda share: 1 - share),
    (strings.ROW, strings, "none_right", lambda share: (1 - share) ** (strings.FEW // 5)),
    (strings.ROW, strings, "at_half", lambda token, whole: ORIGINAL_HALF(token, token)),
    (attention.ROW, attention, "expected", lambda tau, kappa: ORIGINAL_ATTENTION(tau, kappa, rho=0.05)),
    (attention.ROW, attention, "expected", lambda tau, kappa: ORIGINAL_ATTENTION(tau, kappa, alpha=2.0)),
    (attention.ROW, attention, "expected", lambda tau, kappa: ORIGINAL_ATTENTION(tau, math.inf)),
    (attention.ROW, attention, "stieltjes", lambda x, kappa: 1 / (1 + x)),
    (attention.ROW, attention, "limit", lambda loss: loss[max(loss)]),
    (attention.ROW, attention, "losses_of", lambda *of: ORIGINAL_LOSSES_OF(*of)[::-1]),
    (attention.ROW, attention, "losses_of", lambda trials, _, *names: ORIGINAL_LOSSES_OF(trials, "train", *names)),
    (attention.ROW, attention, "posterior_mean_loss", lambda d, tasks, draws: [1.25] * draws),
    (progress.ROW, progress, "events", lambda curve: ORIGINAL_EVENTS(curve.assign(restricted_loss=curve.test_loss))),
    (progress.ROW, progress, "events", lambda curve: ORIGINAL_EVENTS(memorised_when_generalised(curve))),
    (progress.ROW, progress, "ORDER", (("generalised", below, "restricted"),)),
    (progress.ROW, progress, "MEMORISED", 1.0),
    (generations.ROW, verifier, "broken", lambda error: error / 2 + 0.25),
    (generations.ROW, verifier, "accuracy", lambda n, error, q, **_: q),
    (generations.ROW, verifier, "accuracy", lambda n, error, q, **_: ORIGINAL_ACCURACY(n, error, q, d=40)),
    (generations.ROW, verifier, "accuracy", lambda n, error, q, **_: ORIGINAL_ACCURACY(n / 2, error, q)),
    (generations.ROW, verifier, "NEEDED", 0.95),
    (generations.ROW, generations, "expected", lambda data, designs, t: t * 20 / 39 if data == "replace" else 20 / 39),
    (generations.ROW, generations, "expected", lambda *which: ORIGINAL_GENERATIONS(*which, d=21)),
    (generations.ROW, generations, "expected", lambda *which: ORIGINAL_GENERATIONS(which[0], "repeated", which[2])),
]
MUST_BE_OFF = {
    (4, "exponent"): {"boundary: exponent of generalisation in the embedding size"},
    (6, "optima"): {"C 3e+06: best parameters of the network / those predicted by optima to 1e+06"},
    (9, "pooled"): set(chain.EITHER),
    (11, "by_dimension"): {"digits, d 8: n of one half over that of Gaussian points"},
    (16, "MEMORISED"): {"memorised is reached"},
}
"""Findings that no other mutation reaches, by the row and what is wrong in it."""
ORIGINAL_EXPONENTS, ORIGINAL_COURSE, ORIGINAL_OPTIMA = scaling.exponents, scaling.course, scaling.optima
ORIGINAL_RATIO, ORIGINAL_HUMPS, ORIGINAL_EXPONENT = model_wise.ratio, model_wise.humps, model_wise.exponent
ORIGINAL_GENERATIONS = generations.expected
ORIGINAL_SOLVED, ORIGINAL_POOLED = chain.solved, chain.pooled
ORIGINAL_ACCURACY = verifier.accuracy
ORIGINAL_HALF = strings.at_half
ORIGINAL_ATTENTION, ORIGINAL_LOSSES_OF = attention.expected, attention.losses_of
ORIGINAL_EVENTS = progress.events
ORIGINAL_FREQUENCIES, ORIGINAL_STACKED, ORIGINAL_BEYOND = quanta.frequencies, quanta.stacked, quanta.beyond
ORIGINAL_QUANTA = quanta.exponent
ORIGINAL_ERRORS = pruning.compared
ORIGINAL_GROWTH, ORIGINAL_DELAY, ORIGINAL_SLOPE = parity.growth, parity.delay, parity.slope_interval
ORIGINAL_ABSORBED, ORIGINAL_HALF_OF, ORIGINAL_DIMENSIONS = hull.absorbed, hull.half_of, hull.by_dimension
ORIGINAL_LAYERS, ORIGINAL_CHOSEN = white_box.by_layer, white_box.chosen


def other_inputs(curve: Any) -> float:
    """The growth of the weights of the inputs that the label does not depend on."""
    return ORIGINAL_GROWTH(curve.assign(relevant_share=1 - curve.relevant_share))


def exchanged(trials: Any, name: str, one: Any, other: Any) -> Any:
    """Two values of an axis have each other's trials."""
    return trials.assign(**{name: trials[name].replace({one: other, other: one})})


def monotonic(curves: Any, extremum: str) -> Any:
    """The test loss never falls again (cummax), or never rises (cummin)."""
    return curves.assign(test_loss=getattr(curves.groupby("replicate").test_loss, extremum)())


def times(trials: Any, axis: str, step: str) -> Any:
    """Steps in units of the axis: an exponent that is larger by 1."""
    return trials.assign(**{name: trials[name] * trials[axis] for name in (step, f"{step}_after", "steps")})


def mirrored(found: float, low: float, high: float) -> tuple[float, float, float]:
    """An exponent of the other sign."""
    return -found, -high, -low


def memorised_when_generalised(curve: Any) -> Any:
    """The accuracy of the test pairs in place of that of the training pairs."""
    return curve.assign(train_accuracy=(curve.test_loss <= progress.HALF_CHANCE).astype(float))


@pytest.mark.parametrize(
    ("row", "module", "name", "wrong"),
    [pytest.param(*m, marks=marks(m[0]), id=f"{m[0].name}-{m[2]}-{k}") for k, m in enumerate(MUTATIONS)],
)
def test_a_wrong_formula_is_off(
    row: Row,
    module: Any,
    name: str,
    wrong: Any,
    results: Callable[[Row], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, wrong)
    missing = set(MUST_BE_OFF.get((row.number, name), ()))
    found_off = False
    for finding in row.check(results(row)):
        assert np.isfinite(finding.found)
        found_off |= bool(off := row.off([finding]))
        missing -= {finding.what for finding in off}
        if found_off and not missing:
            return  # the other findings take time and change nothing
    pytest.fail(f"not off: {missing or 'no finding'}")


def test_absorption_agrees_with_what_is_known_by_other_means() -> None:
    assert hull.absorbed(9, 1) == pytest.approx(8 / 10)  # not the smallest or largest of ten
    assert hull.orthant(3, -1 / 4) == pytest.approx((3 * math.acos(1 / 3) - math.pi) / (4 * math.pi))  # tetrahedron
    inside = [is_inside(np.array(point), np.array([[0.0, 0], [1, 0], [0, 1]])) for point in ((0.2, 0.2), (0.6, 0.6))]
    assert inside == [True, False]


def test_verified_examples_are_those_of_a_mixture_whose_classes_labels_and_verdicts_are_drawn() -> None:
    random, found, drawn = np.random.default_rng(0), [], []
    report = lambda step, **values: found.append((values["accuracy"], values["kept"]))  # noqa: E731
    for seed in range(300):
        setting = {"sample_count": 300, "inputs": 10, "generator_error": 0.4, "verifier_accuracy": 0.8}
        train_verified(**setting, seed=seed, report=report)  # type: ignore[arg-type]
        mean, y = np.full(10, 2 / math.sqrt(10)), random.choice([-1.0, 1.0], 300)
        x = y[:, None] * mean + random.standard_normal((300, 10))
        label = np.where(random.random(300) < 0.4, -y, y)
        kept = (label == y) == (random.random(300) < 0.8)
        weights = np.linalg.lstsq(x[kept], label[kept], rcond=None)[0]
        drawn.append((stats.norm.cdf(weights @ mean / np.linalg.norm(weights)), kept.sum()))
    (job, plain), errors = np.mean([found, drawn], axis=1), np.std([found, drawn], axis=1) / math.sqrt(300)
    assert (np.abs(job - plain) < 3 * np.hypot(*errors)).all()
    assert job[0] == pytest.approx(verifier.accuracy(300, 0.4, 0.8, d=10), abs=0.005)


def test_strings_are_of_the_digits_of_a_sum_or_of_images_that_are_not_trained_on() -> None:
    job, random = Strings(), Random.of_seed(7)
    data = job.data(StringParams(task="addition", length=4, sample_count=50, test_count=30), random)
    assert len(data.train[0]) == 50 and len(data.test[0]) == 30
    for inputs, digits in (data.train, data.test):
        terms = inputs.reshape(-1, 2, 3, 10).argmax(-1)  # the digit of the units first
        place = torch.tensor([1, 10, 100, 1000])
        assert torch.equal((terms * place[:3]).sum((1, 2)), (digits * place).sum(1))
    images = job.data(StringParams(length=5, sample_count=996), random)
    assert len(images.train[0]) == 996 and len(images.test[0]) == 800  # of 801
    rows = [{row.numpy().tobytes() for row in part[0]} for part in (images.train, images.test)]
    assert rows[0].isdisjoint(rows[1])
    # The first token of every string is wrong, but for the first string.
    sums = Data(train=data.train, test=(data.test[0], data.test[1]))
    wrong = data.test[1].clone()
    wrong[1:, 0] = (wrong[1:, 0] + 1) % 10
    probed = job.probe(StringParams(task="addition", length=4), lambda _: functional.one_hot(wrong, 10), {}, sums)
    assert [float(probed[name]) for name in probed] == pytest.approx([1 / 30] * 3)


def test_a_subtask_is_the_parity_of_bits_of_its_own_which_differ_by_seed_and_not_by_step() -> None:
    params = QuantaParams(tasks=10, bits=5, degree=3, zipf=1, batch_size=4000, test_count=300)
    found = []
    for seed in (1, 1, 2):
        random, batches = Random.of_seed(seed), Random(Random.of_seed(seed)._key, torch.tensor(7))
        batch, test = Quanta().batch(params, batches, torch.tensor(7)), Quanta().data(params, random).test
        found.append([parities(*part, params) for part in (batch, test[:2])])
        share = batch[0][:, :10].mean(0)
        assert torch.allclose(share, quanta_job.frequencies(params, share.device), atol=0.04)
        assert float(test[2][0] / test[2][-1]) == pytest.approx(10)  # of the loss: frequencies 1 and 1 / 10
        assert not torch.equal(batch[0], Quanta().batch(params, random, torch.tensor(0))[0])
    assert all(batch == test and len(set(batch)) == 10 for batch, test in found)  # 10 subsets are all there are
    assert found[0] == found[1] != found[2]
    with pytest.raises(ParamError, match="at most 10"):
        QuantaParams(tasks=11, bits=5, degree=3)


def parities(inputs: Any, labels: Any, params: Any) -> list[tuple[int, ...]]:
    """Of each subtask, the three bits whose parity all of its labels are."""
    rows = [inputs[inputs[:, task] == 1, params.tasks :] for task in range(params.tasks)]
    of = [labels[inputs[:, task] == 1] for task in range(params.tasks)]
    return [
        next(b for b in itertools.combinations(range(params.bits), 3) if torch.equal(x[:, b].sum(1) % 2, y.float()))
        for x, y in zip(rows, of, strict=True)
    ]


def test_parity_is_learned_from_a_training_set_of_the_seed_by_the_hinge_loss() -> None:
    job, params = FiniteParity(), FiniteParams(bits=20, degree=3, sample_count=50, test_count=30, batch_size=0)
    data = [job.data(params, Random.of_seed(seed)) for seed in (1, 1, 2)]
    for part, count in (("train", 50), ("test", 30)):
        (x, y), *others = (getattr(of, part) for of in data)
        assert len(x) == count and torch.equal(1 - 2 * y, -x[:, :3].prod(1).long())
        assert [torch.equal(x, other[0]) for other in others] == [True, False]
    assert not job.defines("batch") and SparseParity().defines("batch")
    output, target = torch.tensor([[2.0], [0.5], [-0.5]]), torch.tensor([1, 1, 1])
    assert job.loss(params, output, target).tolist() == [0, 0.5, 1.5]
    assert job.loss(params, -output, 1 - target).tolist() == [0, 0.5, 1.5]
    assert [bool(right) for right in job.right(params, output, target)] == [True, True, False]


def test_pairs_of_a_context_are_predicted_from_those_before_by_bayes_and_by_ridge_regression() -> None:
    job, params, random = InContextRegression(), ContextParams(tasks=3, batch_size=500), Random.of_seed(7)
    data = job.data(params, random)
    tasks = random.normal("tasks", 3, 4)
    for seen, target in (data.train, data.test):
        x, before, y, of = seen[..., :4], seen[..., 4:], target[..., 0], seen[5, :3, :4]
        assert torch.equal(before[:, 1:], torch.cat([x, y[..., None]], 2)[:, :-1]) and not before[:, 0].any()
        likelihood = torch.exp(-(y[5, :3] - tasks @ of.T).square().sum(1) / (2 * NOISE_OF_PAIRS))
        mean = (likelihood[:, None] * tasks).sum(0) / likelihood.sum()
        solved = torch.linalg.lstsq(
            torch.cat([of, NOISE_OF_PAIRS**0.5 * torch.eye(4)]), torch.cat([y[5, :3], torch.zeros(4)])[:, None]
        ).solution[:, 0]
        assert torch.allclose(target[5, 3, 1:], torch.stack([mean, solved]) @ x[5, 3], atol=1e-4)
    probed = job.probe(params, lambda _: None, {}, data)
    assert probed["train_posterior"] < probed["train_ridge"] and probed["test_posterior"] > probed["test_ridge"]
    residual = []
    for step in (3, 4):  # of fresh contexts of the same tasks
        tokens, y = job.batch(params, Random(random._key, torch.tensor(step)), torch.tensor(step))
        residual.append((y - tokens[..., :4] @ tasks.T).square().mean(1).min(1).values.mean())
        assert not torch.equal(tokens[:5], data.train[0][:5])
    assert all(0.1 < value < NOISE_OF_PAIRS * 1.05 for value in residual) and residual[0] != residual[1]


@pytest.mark.parametrize("between", ["answer", "filler", "steps"])
def test_a_chain_has_the_parities_of_inputs_that_are_not_trained_on(between: str) -> None:
    params = ChainParams(bits=5, chain=between)
    data = ChainOfThought().data(params, Random.of_seed(7))
    bits = torch.cat([data.train[0], data.test[0]])[:, :5]
    assert [len(data.train[0]), len(data.test[0])] == [24, 8] and len(bits.unique(dim=0)) == 32
    for tokens, targets in (data.train, data.test):
        parities = tokens[:, :5].cumsum(1) % 2
        middle = {"answer": tokens[:, :0], "filler": torch.full((len(tokens), 4), FILLER), "steps": parities[:, :-1]}
        assert (tokens[:, 5] == EQUALS).all() and torch.equal(tokens[:, 6:], middle[between])
        assert torch.equal(targets, parities if between == "steps" else parities[:, -1:])


@pytest.mark.parametrize(("wrong_at", "given", "free"), [(None, 1, 1), (0, 1, 0), (4, 0, 0)])
def test_steps_are_decoded_from_the_models_own_steps(wrong_at: int | None, given: int, free: int) -> None:
    job, params = ChainOfThought(), ChainParams(bits=5, chain="steps")
    data = job.data(params, Random.of_seed(7))

    def model(tokens: Any) -> Any:
        """The next parity, from the last one and a bit; inverted at one step."""
        steps = torch.arange(tokens.shape[1] - 5)
        after = (tokens[:, 5:] % 2 + tokens[:, steps] + (steps == wrong_at)) % 2
        return functional.one_hot(torch.cat([tokens[:, :5] % 2, after], 1), 2).float()

    right = job.right(params, model(data.test[0]), data.test[1])
    assert right is not None and right.float().mean() == given
    assert job.probe(params, model, {}, data) == {"free_accuracy": free}


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_network_has_as_many_parameters_as_fit(layers: int) -> None:
    params = DepthParams(inputs=7, layers=layers, parameters=900)
    network = DepthAgainstWidth().model(params)
    assert sum(weights.numel() for weights in network.parameters()) == params.count(params.width) <= 900
    assert params.count(params.width + 1) > 900


def test_targets_of_depth_are_what_they_are_called() -> None:
    def test_part(**values: Any) -> Any:
        inputs, targets = DepthAgainstWidth().data(DepthParams(**values), Random.of_seed(3)).test
        return inputs, targets.squeeze(1)

    x, y = test_part(target="ball")
    assert torch.equal(y > 0, x.norm(dim=1) < 1) and set(y.tolist()) == {-1.0, 1.0}
    assert abs(float(y.mean())) < 0.05 and abs(float(x.mean())) < 0.01
    x, y = test_part(target="tent", inputs=1, folds=3)
    zigzag = np.interp(x.squeeze(1).numpy(), np.arange(9) / 8, [0, 1, 0, 1, 0, 1, 0, 1, 0])
    assert np.allclose(y.numpy(), zigzag, atol=1e-5)
    assert float(y.var()) == pytest.approx(depth.VARIANCE_OF_TENT, rel=0.05)
    for layers in (1, 4):
        assert float(test_part(target="teacher", teacher_layers=layers)[1].var()) == pytest.approx(1, rel=0.2)


def test_the_largest_weights_are_left_and_the_rest_is_pruned_between_two_steps() -> None:
    params = PruningParams(width=20, final=300, steps=100, learning_rate=0.001)
    network = TrainThenCompress().model(params)
    weights = list(network.parameters())
    optimiser = PrunedAdam(weights, params)
    left = []
    for step in range(params.steps):
        before = [weight.detach().clone() for weight in weights]
        optimiser.zero_grad()
        network(torch.full((1, 40), 0.5)).square().sum().backward()
        optimiser.step()
        left.append(sum(int((weight != 0).sum()) for weight in weights))
        if left[-1] < left[max(step - 1, 0)]:
            gone = [old[(new == 0) & (old != 0)].abs() for old, new in zip(before, weights, strict=True)]
            stay = [new[new != 0].abs() for new in weights if new.dim() > 1]
            assert torch.cat(gone).max() <= torch.cat(stay).min() + 0.003  # a step moves a weight by the rate, about
    assert params.count == pruning.parameters(20) == left[0] == left[39] == 1450
    assert left[43] < left[42] and len(set(left)) == 11 and set(left[79:]) == {300}


def test_a_student_learns_the_outputs_of_its_teacher_with_the_compute_that_is_left() -> None:
    def trained(**values: Any) -> dict[str, float]:
        reports: list[dict[str, float]] = []
        distil(compute=1450 * 200, seed=3, report=lambda step, **found: reports.append(found), **values)
        return reports[0]

    alone, taught = trained(), trained(teacher_width=50)
    assert (alone["teacher_steps"], alone["own_steps"]) == (0, 200)
    assert (taught["teacher_steps"], taught["own_steps"]) == (28, 54)  # of 5,110 parameters; 28 + 40 / 3 of its steps
    assert alone["test_error"] < 0.75 < 0.8 < trained(teacher_width=50, teacher_share=0)["test_error"]  # of no labels
    x, targets = torch.randn(4000, 40), torch.tensor([0.7, 0.3] + 8 * [0.0]).expand(4000, 10)
    network = distillation.MLP(40, 10, width=20, layers=2)
    distillation.fit(network, x, targets, 200, 0.01, temperature=4.0)
    assert torch.allclose(torch.softmax(network(x) / 4, 1).mean(0), targets[0], atol=0.02)


def test_a_layer_attends_in_subspaces_and_takes_a_step_towards_a_sparse_code() -> None:
    torch.manual_seed(0)
    layer, x = Layer(8, 2), torch.randn(3, 5, 8)
    layer.norm_1.weight.data.uniform_(0.5, 2)
    z = layer.norm_1(x)
    parts = []
    for rows in (slice(4), slice(4, 8)):  # U_k is (D, p), a row of the module's weight is a column of it
        w = z @ layer.subspaces.weight[rows].T
        parts.append(torch.softmax(w @ w.transpose(1, 2) / 2, -1) @ w)
    middle = x + layer.output(torch.cat(parts, -1))
    assert torch.allclose(layer.attend(x), middle, atol=1e-5)
    code = layer.norm_2(middle).detach().requires_grad_()
    fit = (layer.norm_2(middle).detach() - code @ layer.dictionary.T).square().sum() / 2
    (gradient,) = torch.autograd.grad(fit, code)
    assert torch.allclose(layer(x), (code - STEP * gradient - STEP * PENALTY).relu(), atol=1e-5)
    w = layer.project(x)
    unit = w / w.norm(dim=-1, keepdim=True)
    tokens = torch.eye(5) + 4 / (5 * DISTORTION) * unit @ unit.transpose(-1, -2)  # (T, T), as in the paper
    assert torch.allclose(coding_rate(w), torch.logdet(tokens).sum(1) / 2, rtol=1e-4)
    same = w[:, :, :1].expand_as(w)
    assert (coding_rate(same) < coding_rate(w)).all()  # equal tokens need fewer bits


def test_weights_of_trees_give_their_predictions() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    x, y = np.random.default_rng(0).standard_normal((2, 80, 1))
    forest = ensemble.RandomForestRegressor(7, max_leaf_nodes=9, bootstrap=False, random_state=0).fit(x[:50], y[:50, 0])
    assert smoother(forest.apply(x), 50) @ y[:50, 0] == pytest.approx(forest.predict(x))


# The comparisons.

NOISE = np.random.default_rng(0).standard_normal(400)
NOISE = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)


@pytest.mark.parametrize(
    ("sample", "expected", "verdict"),
    [
        pytest.param(10 + NOISE, 10.1, SHOWS, id="2 standard errors"),
        pytest.param(10 + NOISE, 10.2, DOES_NOT, id="4 standard errors"),
        pytest.param(0.1 + NOISE, 0.1, UNDECIDED, id="an interval as wide as the value"),
        pytest.param(np.full(50, 10.0), 10.1, DOES_NOT, id="no variation"),
        pytest.param(np.full(50, 10.0), 10.0, SHOWS, id="exact"),
        pytest.param([10.0, np.nan], 10.0, DOES_NOT, id="not a number"),
    ],
)
def test_a_mean_agrees_within_its_standard_error(sample: Any, expected: float, verdict: str) -> None:
    assert agrees("", sample, expected).verdict == verdict


def test_a_bound_is_held_against_the_whole_interval() -> None:
    verdicts = {(1.0, 2.0): (DOES_NOT, SHOWS), (3.0, 4.0): (SHOWS, DOES_NOT), (2.0, 3.0): (UNDECIDED, UNDECIDED)}
    for (low, high), (is_above, is_below) in verdicts.items():
        middle = (low + high) / 2
        assert above("", middle, low, high, 2.5, n=9).verdict == is_above
        assert below("", middle, low, high, 2.5, n=9).verdict == is_below
    same = [above("", 3, 3, 3, 2, n=9), below("", 3, 3, 3, 4, n=9), within("", 3, 3, 3, 2, 4, n=9)]
    assert [finding.verdict for finding in same] == [DOES_NOT] * 3  # of replicates that do not vary
    assert above("", np.nan, np.nan, np.nan, 2.5, n=9).verdict == DOES_NOT
    assert below("", np.nan, np.nan, np.nan, 2.5, n=9).verdict == DOES_NOT
    assert within("", np.nan, np.nan, np.nan, 2, 3, n=9).verdict == DOES_NOT
    bounds = {(1.0, 2.0): SHOWS, (1.0, 2.1): UNDECIDED, (2.1, 3.0): DOES_NOT, (0.0, 0.9): DOES_NOT}
    assert {i: within("", sum(i) / 2, *i, 1, 2, n=9).verdict for i in bounds} == bounds
    assert every("", [True] * 9).verdict == SHOWS and every("", [True] * 8 + [False]).verdict == DOES_NOT


# The program.


@pytest.mark.parametrize(("expected", "code", "word"), [(1.0, 0, "the reported one"), (2.0, 1, "mean: does not show")])
def test_the_program_prints_the_table_and_what_is_off(
    expected: float,
    code: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def check(results: Sequence[Any]) -> Any:
        yield agrees("mean", 1 + 0.1 * NOISE, expected, series="a", x=1.0)

    row = Row(number=99, name="some law", source="nobody", sweeps=(), check=check)
    monkeypatch.setattr(program, "ROWS", (row,))
    assert program.main(["--folder", str(tmp_path)]) == code
    said = capsys.readouterr().out
    assert (
        word in said
        and "n = 400" in said
        and said.split("\n\n")[1].startswith("row ")
        and "99. some law (nobody)" in said
    )
    assert (tmp_path / "some_law.png").stat().st_size > 5_000
    assert program.main(["-k", "no such name"]) == 2
    assert "some law" in capsys.readouterr().err


def test_what_is_reported_as_absent_must_stay_absent() -> None:
    row = Row(number=1, name="", source="", sweeps=(), check=lambda _: (), absent={"a": DOES_NOT})
    shown, absent = every("a", [True]), every("a", [False])
    assert row.off([shown]) == [shown] and row.off([absent]) == []


def test_a_finding_that_is_not_decided_may_have_two_verdicts_and_not_the_third() -> None:
    row = Row(number=1, name="", source="", sweeps=(), check=lambda _: (), either={"a": UNDECIDED})
    findings = [above("a", low + 1, low, low + 2, 2.5, n=9) for low in (3.0, 2.0, 0.0)]
    assert [finding.verdict for finding in findings] == [SHOWS, UNDECIDED, DOES_NOT]
    assert row.off(findings) == findings[2:]
    other = above("b", 3.0, 2.0, 4.0, 2.5, n=9)
    assert row.off([other]) == [other]


def test_a_finding_that_may_hold_for_all_or_not_is_off_where_it_holds_for_too_few() -> None:
    row = Row(number=1, name="", source="", sweeps=(), check=lambda _: (), either={"a": DOES_NOT}, least={"a": 0.95})
    findings = [every("a", [True] * right + [False] * (20 - right)) for right in (20, 19, 18)]
    assert row.off(findings) == findings[2:]


GALLERY = (Path(__file__).parents[1] / "docs" / "gallery.md").read_text("utf-8")
SUMMARY, UNSURE = "## Phenomena at a glance", "### Verdicts that are not decided"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of docs/gallery.md."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), GALLERY.split(f"\n{heading}\n")[1].split("\n"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_gallery_lists_what_is_not_decided_and_nothing_that_is() -> None:
    listed = {(int(number), name.strip("`")): (first, second) for number, name, *_, first, second in table(UNSURE)}
    rows = {
        (row.number, name): ((row.absent or {}).get(name, SHOWS), second)
        for row in ROWS
        for name, second in (row.either or {}).items()
    }
    assert listed == rows and all(first != second for first, second in rows.values())
    for _, name, limit, found, *_ in table(UNSURE):
        if "on another processor" in found:
            continue  # which had this verdict
        if bounds := re.search(r"\[(.+), (.+)\]", found):
            low, high = map(float, bounds.groups())
            assert min(abs(low - float(limit)), abs(high - float(limit))) <= 0.1 * (high - low), name


def test_the_summary_counts_what_does_not_show() -> None:
    summary = {int(number): shown for number, *_, shown in table(SUMMARY)}
    assert sorted(summary) == [row.number for row in ROWS]
    for row in ROWS:
        shown, total = map(int, summary[row.number].split(" of "))
        assert total - shown == len(row.absent or {}), row.name


@pytest.mark.parametrize(
    ("row", "name"), [pytest.param(row, name, marks=marks(row), id=name) for row in ROWS for name in row.pictures or {}]
)
def test_a_further_picture_has_what_is_found(
    row: Row, name: str, results: Callable[[Row], list[Any]], tmp_path: Path
) -> None:
    picture = (row.pictures or {})[name]
    points = list(picture.points(results(row)))
    inverse = [(1 / p.found, 1 / p.high, 1 / p.low) for p in points if p.found > 0]
    drawn = np.array([*((p.found, p.low, p.high) for p in points), *inverse])
    part = [f for f in row.check(results(row)) if f.what.startswith(DRAWN[name])]
    assert part and all(np.isclose(drawn, (f.found, f.low, f.high)).all(axis=1).any() for f in part)
    program.draw(points, picture.axes, picture.scale, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


DRAWN = {"finite_parity": "finite, decay 0: last test accuracy", "task_diversity": "softmax"}
"""Findings that are points of a further picture, as they are or inverted."""


BUSY = """
import sys, time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
sys.stdin.read()
"""
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); sys.stdin.read()"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_processor_time_is_also_that_of_ended_processes_whose_parent_did_not_wait_for_them() -> None:
    with ProcessorTime() as processor:
        command = [sys.executable, "-c", PARENT, BUSY]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None and parent.stdout.readline() == b"done\n"
            all_of_them, own = processor.seconds(), time.process_time()
    assert all_of_them >= own + 0.4 and processor.seconds() >= all_of_them
