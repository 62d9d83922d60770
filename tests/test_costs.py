"""Laws of a pack's cost: what the planner may rely on, and that the counts are those of the tensors' real work."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking import cost as modular_cost
from jobs.grokking.job import Grokking
from jobs.grokking.modular import OPERATIONS
from jobs.grokking.pack import make_block as grokking_block
from jobs.grokking.params import MODELS, GrokkingParams
from jobs.job import Cost, Job, Member
from jobs.ridge.job import Ridge
from tests.test_memory import HAS_STAND_IN, ROOT

GROKKING, DESCENT = Grokking(), DoubleDescent()
ARITHMETIC = ("launches", "matmul_flop", "element_visits")
COUNTS = (*ARITHMETIC, "memory_bytes")
GAUSSIAN = {"data": "gaussian_teacher", "pool": 60, "test_count": 40}

grokking_params = st.builds(
    GrokkingParams,
    model=st.sampled_from(MODELS),
    operation=st.sampled_from(OPERATIONS),
    modulus=st.integers(2, 97),
    width=st.sampled_from((4, 16, 100, 128)),
    layers=st.integers(1, 4),
    heads=st.sampled_from((1, 4)),
    layer_norm=st.booleans(),
    data_fraction=st.floats(0.05, 0.95),
    batch_size=st.sampled_from((0, 1, 100, 10**6)),
    optimiser=st.sampled_from(("adamw", "adam", "sgd")),
    steps=st.integers(1, 10**6),
    curve_points=st.integers(2, 320),
)
descent_params = st.builds(
    DoubleDescentParams,
    pool=st.integers(2, 5000),
    width=st.integers(1, 500),
    depth=st.integers(0, 4),
    optimiser=st.sampled_from(("sgd", "adam", "adamw")),
    batch_size=st.sampled_from((0, 1, 100)),
    steps=st.integers(1, 10**6),
    epochs=st.sampled_from((0, 0, 7)),
    curve_points=st.integers(2, 320),
)
trials = st.one_of(st.tuples(st.just(GROKKING), grokking_params), st.tuples(st.just(DESCENT), descent_params))


def cost(job: Job[Any], params: Any, *, models: int = 1, extent: tuple[int, ...] | None = None) -> Cost:
    return job.cost(params, extent=job.extent(params) if extent is None else extent, models=models)


def assert_at_least(more: Cost, less: Cost) -> None:
    for name in (*ARITHMETIC, "seconds"):
        assert getattr(more, name) >= getattr(less, name), name


@given(trial=trials, models=st.integers(1, 10_000))
def test_every_count_is_a_positive_finite_number(trial: tuple[Job[Any], Any], models: int) -> None:
    made = cost(*trial, models=models)
    for name in COUNTS:
        value = getattr(made, name)
        assert math.isfinite(value), name
        # A network without layers to multiply does no matrix product; nothing else is free.
        assert value > 0, name
    assert made.seconds == 0


@given(trial=trials, models=st.integers(1, 2000), more=st.integers(1, 2000))
def test_more_models_never_cost_less(trial: tuple[Job[Any], Any], models: int, more: int) -> None:
    """Arithmetic grows with every model, memory in steps of a block; launches are what a pack saves."""
    few, many = (cost(*trial, models=count) for count in (models, models + more))
    assert_at_least(many, few)
    assert many.memory_bytes >= few.memory_bytes
    for name in ("matmul_flop", "element_visits"):
        assert getattr(many, name) == pytest.approx(getattr(few, name) * (models + more) / models), name
    alone = cost(*trial)
    assert many.launches <= (models + more) * alone.launches


@given(trial=trials, more=st.integers(1, 10**6))
def test_more_steps_never_cost_less_and_a_long_training_takes_no_more_memory(
    trial: tuple[Job[Any], Any], more: int
) -> None:
    job, params = trial
    longer = dataclasses.replace(params, steps=params.steps + more)
    assert_at_least(cost(job, longer), cost(job, params))
    by_steps = {"curve_points": 2} | ({"epochs": 0} if isinstance(params, DoubleDescentParams) else {})
    long, twice = (dataclasses.replace(params, steps=steps, **by_steps) for steps in (10**6, 2 * 10**6))
    assert cost(job, twice).memory_bytes == cost(job, long).memory_bytes


@given(trial=trials, more=st.lists(st.integers(0, 200), min_size=2, max_size=2), models=st.integers(1, 50))
def test_padding_never_costs_less(trial: tuple[Job[Any], Any], more: list[int], models: int) -> None:
    job, params = trial
    extent = job.extent(params)
    padded = tuple(size + extra for size, extra in zip(extent, more, strict=False))
    assert_at_least(cost(job, params, extent=padded, models=models), cost(job, params, models=models))


@given(params=st.one_of(grokking_params, descent_params), factor=st.integers(2, 5))
def test_a_wider_network_costs_more_arithmetic(params: Any, factor: int) -> None:
    job: Job[Any] = GROKKING if isinstance(params, GrokkingParams) else DESCENT
    wider = dataclasses.replace(params, width=params.width * 4 * factor + 16 * 4)
    assert_at_least(cost(job, wider), cost(job, params))
    if getattr(params, "depth", 1):
        assert cost(job, wider).matmul_flop > cost(job, params).matmul_flop


@given(first=grokking_params, widths=st.tuples(st.integers(1, 300), st.integers(1, 300)), data=st.data())
def test_trials_of_one_pack_can_be_padded_to_their_largest_extents(
    first: GrokkingParams, widths: tuple[int, int], data: st.DataObject
) -> None:
    """Equal keys mean extents of equal length; the elementwise maximum is an extent that all can be padded to."""
    changes: dict[str, Any] = {"data_fraction": data.draw(st.floats(0.05, 0.95))}
    if first.model != "transformer":
        changes["width"] = data.draw(st.integers(1, 300))
    second = dataclasses.replace(first, **changes)
    if GROKKING.pack_key(first) == GROKKING.pack_key(second):
        extents = GROKKING.extent(first), GROKKING.extent(second)
        largest = tuple(max(sizes) for sizes in zip(*extents, strict=True))
        for params in (first, second):
            assert_at_least(cost(GROKKING, params, extent=largest), cost(GROKKING, params))


# The counts against what torch really does

REAL: list[tuple[Job[Any], dict[str, Any]]] = [
    (GROKKING, {"model": "quadratic_mlp", "width": 64, "modulus": 17}),
    (GROKKING, {"model": "quadratic_mlp", "width": 200, "modulus": 31, "batch_size": 100}),
    (GROKKING, {"model": "quadratic_mlp", "width": 64, "modulus": 17, "optimiser": "sgd", "loss": "cross_entropy"}),
    (GROKKING, {"model": "embedding_mlp", "width": 128, "embedding": 16, "modulus": 31}),
    (GROKKING, {"model": "embedding_mlp", "width": 64, "embedding": 32, "layers": 3, "modulus": 17}),
    (GROKKING, {"model": "transformer", "width": 32, "heads": 4, "modulus": 17}),
    (GROKKING, {"model": "transformer", "width": 32, "layers": 3, "layer_norm": True, "modulus": 17, "batch_size": 64}),
    (DESCENT, {**GAUSSIAN, "width": 48, "batch_size": 20}),
    (DESCENT, {**GAUSSIAN, "width": 48, "depth": 1, "optimiser": "adam", "batch_size": 0}),
    (DESCENT, {**GAUSSIAN, "depth": 0, "data": "gaussian_linear", "loss": "squared", "inputs": 30, "batch_size": 0}),
]
SMALL_TABLE = (GROKKING, {"model": "embedding_mlp", "modulus": 13})
"""An embedding perceptron of the default widths on a small modulus."""
WITHOUT_WORK = {
    "device",
    "view",
    "_unsafe_view",
    "reshape",
    "split",
    "split_with_sizes",
    "transpose",
    "t",
    "expand",
    "slice",
    "unsqueeze",
    "squeeze",
    "select",
    "detach",
    "alias",
    "as_strided",
    "permute",
    "unbind",
    "lift_fresh",
    "_local_scalar_dense",
}


def named(value: Any) -> str:
    """A test's name from a job or from its settings."""
    return "-".join(str(v) for v in value.values()) if isinstance(value, dict) else type(value).__name__


class Launches(TorchDispatchMode):
    """Counts the tensor operations that do work: views and the like launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None):
        self.count += function.overloadpacket.__name__ not in WITHOUT_WORK
        return function(*args, **(kwargs or {}))


def pack_of(job: Job[Any], values: Mapping[str, Any], models: int, steps: int) -> list[Member[Any]]:
    params = job.params_for({**values, "steps": steps, "curve_points": 2})
    return [Member(params=params, seed=seed) for seed in range(models)]


@pytest.mark.parametrize(("job", "values"), [*REAL, SMALL_TABLE], ids=named)
def test_matrix_products_are_counted_as_torch_counts_them(job: Job[Any], values: dict[str, Any]) -> None:
    """Within 15%, evaluations and padding included."""
    members = pack_of(job, values, models=3, steps=20)
    with FlopCounterMode(display=False) as counter:
        list(job.train(members, device="cpu"))
    counted = cost(job, members[0].params, models=3)
    assert counted.matmul_flop == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.parametrize(("job", "values"), REAL, ids=named)
def test_launches_are_counted_within_a_factor_of_two(job: Job[Any], values: dict[str, Any]) -> None:
    """Of the steps beyond the first thirty-two, so that what a pack does once is not counted."""
    counts, costs = [], []
    for steps in (32, 96):
        members = pack_of(job, values, models=3, steps=steps)
        with Launches() as launches:
            list(job.train(members, device="cpu"))
        counts.append(launches.count)
        costs.append(cost(job, members[0].params, models=3).launches)
    ratio = (costs[1] - costs[0]) / (counts[1] - counts[0])
    assert 0.5 <= ratio <= 2, f"{ratio:.2f} of the {(counts[1] - counts[0]) / 64:.1f} launches a step"


@given(trial=trials, models=st.integers(1, 10_000))
def test_a_gpu_launches_for_many_models_what_it_launches_for_one(trial: tuple[Job[Any], Any], models: int) -> None:
    alone, many = cost(*trial), cost(*trial, models=models)
    assert many.gpu_launches == alone.gpu_launches == alone.launches
    assert many.launches >= alone.launches


GPU_PACKS: list[tuple[Job[Any], dict[str, Any]]] = [
    *(REAL[k] for k in (0, 1, 3, 5, 7)),
    (Ridge(), {"solver": "gradient_descent", "learning_rate": 0.01, "inputs": 100, "sample_count": 60}),
    (ImageDoubleDescent(), {"data": "mnist1d", "model": "cnn_1d", "augment": False, "width": 16, "batch_size": 8}),
]
ON_A_GPU = """
import json
from tests.gpu_dry.stand_in import NAME, StandIn, register
register()
from tests.test_costs import GPU_PACKS, Launches, cost, pack_of
ratios = []
for job, values in GPU_PACKS:
    counts, costs = [], []
    for steps in (32, 64):
        members = pack_of(job, values, models=60, steps=steps)
        with StandIn(), Launches() as launches:
            for _ in job.train(members, device=NAME):
                pass
        counts.append(launches.count)
        costs.append(cost(job, members[0].params, models=60).gpu_launches)
    ratios.append(((costs[1] - costs[0]) / (counts[1] - counts[0]), type(job).__name__, values))
print(json.dumps(ratios))
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not HAS_STAND_IN, reason="torch cannot register a stand-in")
def test_launches_on_a_gpu_are_counted_within_a_factor_of_two() -> None:
    done = subprocess.run([sys.executable, "-c", ON_A_GPU], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(GPU_PACKS)
    assert [row for row in found if not 0.5 <= row[0] <= 2] == []


@settings(max_examples=30)
@given(
    model=st.sampled_from(MODELS),
    width=st.sampled_from((16, 48)),
    modulus=st.sampled_from((16, 31, 37)),
    layers=st.integers(1, 3),
    layer_norm=st.booleans(),
)
def test_parameters_are_counted_as_the_block_holds_them(
    model: str, width: int, modulus: int, layers: int, layer_norm: bool
) -> None:
    """Exactly, apart from a transformer's layer norms and the padding of the outputs."""
    params = GrokkingParams(model=model, width=width, modulus=modulus, layers=layers, layer_norm=layer_norm)
    shapes = grokking_block([Member(params=params, seed=1)], "cpu").parameters.shapes
    held = sum(math.prod(shape) for shape in shapes)
    counted = modular_cost.parameters(params, width)
    assert counted == pytest.approx(held, rel=0.05 if model == "transformer" or modulus % 16 else 1e-12)
