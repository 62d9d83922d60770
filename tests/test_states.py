"""A trial that is continued from a saved state has the curve of the undisturbed trial."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Job, Member, Params
from jobs.packed import loop
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from jobs.state import StateError, TrialState, fitted
from tests import test_module_layers
from tests.image_files import write_cifar
from tests.test_module_job import Small, members

Rows = dict[int, dict[int, Mapping[str, float]]]
"""Position -> step -> metric -> value."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, states are offered after every step; before, never."""
    monkeypatch.setattr(loop, "OFFER_S", 1e9)

    def at_every_step() -> None:
        monkeypatch.setattr(loop, "OFFER_S", 0.0)
        monkeypatch.setattr(loop, "FIRST_PIECE", 1)

    return at_every_step


@dataclass(frozen=True)
class Saved:
    """What a pack offered at one step."""

    states: dict[int, TrialState]
    rows: Rows
    """What it had reported by then."""


def trained(job: Job[Any], pack: Sequence[Member[Any]], save_at: Sequence[int] = ()) -> tuple[Rows, dict[int, Saved]]:
    """The rows of a pack, and what it offered at these steps."""
    rows: Rows = {position: {} for position in range(len(pack))}
    saved: dict[int, Saved] = {}
    for report in job.train(pack, device="cpu"):
        for k, position in enumerate(report.members.tolist()):
            rows[position][report.step] = {name: float(values[k]) for name, values in report.values.items()}
        if report.state is not None and report.step in save_at:
            states = {
                position: replace(state, arrays={name: np.array(value) for name, value in state.arrays.items()})
                for position, state in report.state().items()
            }
            saved[report.step] = Saved(states, {position: dict(measured) for position, measured in rows.items()})
    return rows, saved


def rest(rows: Rows, position: int, before: Saved) -> dict[int, Mapping[str, float]]:
    """The rows of a trial that had not been reported."""
    return {step: values for step, values in rows[position].items() if step not in before.rows[position]}


def image_params(archive: str, **changed: Any) -> ImageParams:
    given: dict[str, Any] = {
        "data": "cifar10",
        "archive": archive,
        "pool": 40,
        "test_count": 20,
        "batch_size": 8,
        "steps": 14,
        "curve_points": 4,
    }
    return ImageParams(**{**given, **changed})


def cases(archive: str) -> dict[str, tuple[Job[Any], list[Params]]]:
    """Packs of every job; the trials differ in what may differ, and one ends early."""
    descent: dict[str, Any] = {
        "data": "gaussian_teacher",
        "pool": 60,
        "test_count": 50,
        "inputs": 7,
        "depth": 2,
        "batch_size": 16,
        "curve_points": 5,
        "learning_rate": 0.05,
    }
    add: dict[str, Any] = {
        "operation": "add",
        "modulus": 7,
        "steps": 40,
        "curve_points": 5,
        "learning_rate": 0.01,
        "data_fraction": 0.6,
    }

    def perceptrons(**changed: Any) -> list[Params]:
        given = descent | changed
        return [
            DoubleDescentParams(**given, width=5, steps=40, label_noise=0.2),
            DoubleDescentParams(**given, width=13, steps=40, init_scale=1.5),
            DoubleDescentParams(**given, width=30, steps=9),
        ]

    def images(**changed: Any) -> list[Params]:
        return [
            image_params(archive, width=1, **changed),
            image_params(archive, width=3, **changed),
            image_params(archive, width=2, **(changed | {"steps": 5})),
        ]

    def modular(**changed: Any) -> list[Params]:
        given = add | changed
        wide = {} if given.get("model") == "transformer" else {"width": 24}
        return [
            GrokkingParams(**{"width": 16, **given, **wide}, weight_decay=1.0),
            GrokkingParams(**{"width": 16, **given}, weight_decay=0.1),
            GrokkingParams(**{"width": 16, **given, "steps": 11}),
        ]

    def linear(**changed: Any) -> list[Params]:
        given: dict[str, Any] = {"solver": "gradient_descent", "learning_rate": 0.05, "curve_points": 6, **changed}
        return [
            RidgeParams(**given, features=6, sample_count=20, inputs=12, steps=60, weight_decay=0.01),
            RidgeParams(**given, features=12, sample_count=20, inputs=12, steps=60),
            RidgeParams(**given, features=9, sample_count=16, inputs=12, steps=11),
        ]

    return {
        "perceptrons, sgd with decay": (
            DoubleDescent(),
            perceptrons(optimiser="sgd", momentum=0.9, rate_decay=0.5, rate_decay_epochs=3),
        ),
        "perceptrons, adam": (DoubleDescent(), perceptrons(optimiser="adam", learning_rate=0.01)),
        "perceptrons, adamw, full batch": (
            DoubleDescent(),
            [
                replace(p, optimiser="adamw", weight_decay=0.1, batch_size=p.pool)
                for p in perceptrons()
                if isinstance(p, DoubleDescentParams)
            ],
        ),
        "images, sgd": (ImageDoubleDescent(), images(model="cnn5", optimiser="sgd", learning_rate=0.05, rate_every=3)),
        "images, adam": (ImageDoubleDescent(), images(model="preact_resnet18", optimiser="adam", steps=8)),
        "quadratic, adamw": (Grokking(), modular(model="quadratic_mlp", optimiser="adamw")),
        "quadratic, levels": (
            Grokking(),
            modular(model="quadratic_mlp", train_level=0.6, test_level=0.15, batch_size=9, learning_rate=0.003),
        ),
        "embedding, grokfast": (
            Grokking(),
            modular(model="embedding_mlp", embedding=6, grokfast_lambda=2.0, test_level=0.3),
        ),
        "embedding, sgd with warm-up": (
            Grokking(),
            modular(
                model="embedding_mlp",
                optimiser="sgd",
                momentum=0.9,
                warmup_steps=25,
                learning_rate=0.1,
                train_level=0.2,
            ),
        ),
        "transformer": (Grokking(), modular(model="transformer", heads=2, warmup_steps=10, progress="basic")),
        "ridge": (Ridge(), linear()),
        "ridge, levels": (Ridge(), linear(train_level=0.5, test_level=0.7)),
        "ridge, float32": (Ridge(), linear(precision="float32")),
    }


NAMES = sorted(cases(""))
SEEDS = (11, 12, 13)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cifar(tmp_path_factory.mktemp("cifar") / "small.tar.gz", train=40, test=40))


def pack_of(archive: str, name: str) -> tuple[Job[Any], list[Member[Any]]]:
    job, params = cases(archive)[name]
    assert len({job.pack_key(p) for p in params}) == 1
    return job, [Member(params=p, seed=seed) for p, seed in zip(params, SEEDS, strict=True)]


def assert_equal(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]], what: str) -> None:
    assert list(one) == list(other), what
    for step, values in one.items():
        np.testing.assert_array_equal(list(values.values()), list(other[step].values()), err_msg=f"{what} {step}")


def assert_near(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]], what: str) -> None:
    """Within rounding; an accuracy may differ by an example or two, and with it the step at which it is reached."""
    common = sorted(one.keys() & other.keys())
    assert len(common) >= len(one) - 4 and common[-1:] == sorted(one)[-1:], what
    for step in common:
        for name, value in one[step].items():
            atol = 0.11 if "error" in name or "accuracy" in name else 2e-4
            np.testing.assert_allclose(other[step][name], value, rtol=5e-3, atol=atol, err_msg=f"{what} {step} {name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_trial_is_the_trial(archive: str, name: str, offered: Callable[[], None]) -> None:
    """Bit for bit among the same trials; within rounding alone, without the padding that the others cause."""
    job, pack = pack_of(archive, name)
    undisturbed, none = trained(job, pack, range(100))
    assert not none
    offered()
    last = max(undisturbed[0])
    steps = sorted({1, 2, 7, last // 2, last - 2})
    divided, offers = trained(job, pack, steps)
    for position in undisturbed:
        assert_equal(undisturbed[position], divided[position], "divided differently")
    assert sorted(offers) == steps
    for step, offer in offers.items():
        live = [replace(member, state=offer.states.get(position)) for position, member in enumerate(pack)]
        if len(offer.states) == len(pack):
            continued, _ = trained(job, live)
            for position in continued:
                assert_equal(rest(undisturbed, position, offer), continued[position], f"from step {step}:")
        for position in offer.states:
            alone, _ = trained(job, [live[position]])
            assert_near(rest(undisturbed, position, offer), alone[0], f"{position} alone from step {step}:")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_a_pack_continues_and_is_saved_again(
    archive: str, name: str, offered: Callable[[], None]
) -> None:
    """Interrupted twice, the second time among other trials: as the undisturbed pack."""
    job, pack = pack_of(archive, name)
    undisturbed, _ = trained(job, pack)
    offered()
    last = max(undisturbed[0])
    first, second = last - 5, last - 2
    _, offers = trained(job, pack, [first])
    left = sorted(offers[first].states)
    again = [replace(pack[position], state=offers[first].states[position]) for position in left]
    _, later = trained(job, again, [second])
    places = sorted(later[second].states)
    continued, _ = trained(job, [replace(pack[left[k]], state=later[second].states[k]) for k in places])
    for at, k in enumerate(places):
        known = offers[first].rows[left[k]] | later[second].rows[k]
        wanted = {step: values for step, values in undisturbed[left[k]].items() if step not in known}
        assert_near(wanted, continued[at], f"{left[k]}:")


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_module_of_a_user_continues(optimiser: str, offered: Callable[[], None]) -> None:
    """After a trial has ended, while the tensors still have its place. How modules are stacked depends on timing."""
    job = Small()
    pack = members(job, 5, optimiser=optimiser, warmup_steps=5)
    pack[3] = replace(pack[3], params=replace(pack[3].params, steps=9))
    pack[1] = replace(pack[1], params=replace(pack[1].params, momentum=0.5, beta1=0.5, beta2=0.9))
    assert len({job.pack_key(member.params) for member in pack}) == 1
    undisturbed, _ = trained(job, pack)
    offered()
    _, offers = trained(job, pack, [3, 14])
    for step, offer in offers.items():
        places = sorted(offer.states)
        assert (3 in places) == (step < 9)
        continued, _ = trained(job, [replace(pack[p], state=offer.states[p]) for p in places])
        for at, position in enumerate(places):
            assert_near(rest(undisturbed, position, offer), continued[at], f"{position} from step {step}:")
    assert sorted(offers) == [3, 14]


@pytest.mark.parametrize(("kind", "count"), [("batch_norm", 3), ("buffers", 3), ("buffers", 1)])
def test_a_module_continues_with_its_buffers(kind: str, count: int, offered: Callable[[], None]) -> None:
    """Stacked, and one model by itself."""
    job = test_module_layers.Layers()
    pack = test_module_layers.members(job, count, kind=kind, steps=20)
    undisturbed, _ = trained(job, pack)
    offered()
    _, offers = trained(job, pack, [9])
    offer = offers[9]
    continued, _ = trained(job, [replace(pack[k], state=offer.states[k]) for k in range(count)])
    for position in range(count):
        assert_near(rest(undisturbed, position, offer), continued[position], f"{kind} {position}:")


def test_a_state_that_does_not_fit_is_refused_before_the_first_report(
    archive: str, offered: Callable[[], None]
) -> None:
    job, pack = pack_of(archive, "perceptrons, adam")
    offered()
    _, offers = trained(job, pack, [6])
    good = offers[6].states[1]

    def refused(state: TrialState, member: Member[Any]) -> str:
        with pytest.raises(StateError) as error:
            next(iter(job.train([replace(member, state=state)], device="cpu")))
        return str(error.value)

    lacking = {name: value for name, value in good.arrays.items() if name != "first_moment.0"}
    assert "first_moment.0" in refused(replace(good, arrays=lacking), pack[1])
    wide = offers[6].states[2]
    assert "does not fit" in refused(wide, pack[0])
    flat = {name: value.reshape(-1) for name, value in good.arrays.items()}
    assert "shape" in refused(replace(good, arrays=flat), pack[1])
    assert "where the trial ends" in refused(replace(good, step=40), pack[1])


def test_trials_at_different_steps_do_not_share_a_pack(archive: str, offered: Callable[[], None]) -> None:
    job, pack = pack_of(archive, "ridge")
    offered()
    _, offers = trained(job, pack, [2, 5])
    mixed = [replace(pack[0], state=offers[2].states[0]), replace(pack[1], state=offers[5].states[1])]
    with pytest.raises(StateError, match="different steps"):
        next(iter(job.train(mixed, device="cpu")))


def test_padding_is_cut_off_only_where_it_is_zero() -> None:
    table = np.zeros((3, 4))
    table[:2, :2] = 1.0
    assert fitted(table, (2, 2), "w").tolist() == [[1, 1], [1, 1]]
    assert fitted(table, (2, 6), "w").shape == (2, 6)
    with pytest.raises(StateError, match="does not fit"):
        fitted(table, (3, 1), "w")


def test_a_quick_pack_is_hardly_divided(archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces double from `FIRST_PIECE` on while they take less than `OFFER_S`."""
    from jobs.double_descent.block import MLPBlock

    counts: list[int] = []
    advance = MLPBlock.advance

    def counted(block: MLPBlock, step: int, count: int) -> None:
        counts.append(count)
        advance(block, step, count)

    monkeypatch.setattr(MLPBlock, "advance", counted)
    p = DoubleDescentParams(
        data="gaussian_teacher", pool=20, test_count=10, inputs=3, width=2, steps=1000, curve_points=2
    )
    trained(DoubleDescent(), [Member(params=p, seed=1)])
    assert counts == [1, 64, 128, 256, 512, 39]
