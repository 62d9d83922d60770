"""Laws of local complexity: it counts what a loop over vertices, points and units counts, and alters nothing."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from packing import assert_packed_is_solo, assert_same_curves, curves_of
from plain_grokking import PlainEmbedding, PlainImage, fresh_block, plain_network
from torch import Tensor, nn

from jobs.grokking import local_complexity
from jobs.grokking.job import Grokking
from jobs.grokking.params import BASE_METRICS, BASIC_METRICS, COMPLEXITY_METRICS, GrokkingParams
from jobs.job import Cost, Member, ParamError

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
JOB = Grokking()
NETWORKS: dict[str, dict[str, Any]] = {
    "one-hot": {"model": "embedding_mlp", "embedding": 0, "layers": 2, "loss": "cross_entropy"},
    "embeddings": {"model": "embedding_mlp", "embedding": 5, "layers": 3},
    "embeddings added": {"model": "embedding_mlp", "embedding": 5, "combine": "sum"},
    "no biases": {"model": "embedding_mlp", "embedding": 5, "layers": 2, "biases": False},
    "images": {"model": "image_mlp", "operation": "digits", "data_fraction": 0.02, "layers": 2},
}


@pytest.fixture
def _double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def member(seed: int = 1, **values: Any) -> Member[GrokkingParams]:
    given = {
        "modulus": 7,
        "width": 20,
        "steps": 12,
        "curve_points": 4,
        "data_fraction": 0.5,
        "label_noise": 0.2,
        "progress": "complexity",
        "complexity_radius": 0.3,
        "complexity_directions": 4,
        "complexity_points": 9,
    } | values
    return Member(params=GrokkingParams(**given), seed=seed)


def neighbours(network: dict[str, Any]) -> list[Member[GrokkingParams]]:
    """Three that share a pack and differ in all that is each one's own."""
    first = member(11, **network)
    fraction = first.params.data_fraction * 1.4
    second = member(12, **{**network, "width": 37, "data_fraction": fraction, "complexity_radius": 1.0, "steps": 9})
    return [first, second, member(13, **network)]


def by_hand(network: nn.Module, point: Tensor, directions: Tensor, radius: float) -> int:
    """Units whose side changes among the vertices, counted one by one."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    cut = 0
    values = [point + sign * radius * direction for direction in directions for sign in (1, -1)]
    for layer in linear[:-1]:
        values = [layer(value) for value in values]
        for unit in range(layer.out_features):
            sides = {bool(value[unit] > 0) for value in values}
            cut += len(sides) == 2
        values = [torch.relu(value) for value in values]
    return cut


def input_of(network: nn.Module, params: GrokkingParams, x: int, y: int) -> Tensor:
    """What the first linear layer of the plain network sees."""
    if isinstance(network, PlainImage):
        return network.pixels[x]
    assert isinstance(network, PlainEmbedding)
    one_hot = torch.eye(params.elements)
    first, second = ((network.embedding.weight if network.embedding else one_hot)[z] for z in (x, y))
    return first + second if params.combine == "sum" else torch.cat([first, second])


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("trained", [0, 7], ids=["untrained", "trained"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_it_is_the_count_of_a_loop_over_a_plain_network(network: dict[str, Any], trained: int) -> None:
    """To the last unit, for the second of three; with chunks of every size."""
    members = neighbours(network)
    block = fresh_block(members)
    block.advance(0, trained)
    seen = block.measure()
    around, position, params = block._around, 1, members[1].params
    assert around is not None
    plain = plain_network(params, [view[position].clone() for view in block.parameters.views()])
    train = set(block.pairs.order_MP[position, : params.train_pairs].tolist())
    rows, counted = around.rows_MS[position].tolist(), around.counted_MS[position].tolist()
    half = len(rows) // 2
    for name, part in (("train_complexity", slice(0, half)), ("test_complexity", slice(half, None))):
        points = [row for row, is_one in zip(rows[part], counted[part], strict=True) if is_one]
        assert len(points) == min(half, len(train) if name[:2] == "tr" else len(block.pairs.x_P) - len(train))
        assert len(set(points)) == len(points)
        assert all((point in train) == (name == "train_complexity") for point in points)
        counts = []
        for row in points:
            x, y = int(block.pairs.x_P[row]), int(block.pairs.y_P[row])
            point = input_of(plain, params, x, y)
            counts.append(by_hand(plain, point, around.directions_MQD[position], params.complexity_radius))
        assert float(seen[name][position]) == pytest.approx(np.mean(counts), abs=1e-12), name
        assert 0 < np.mean(counts) < params.width * params.layers, "the count would show nothing"


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_packed_trial_is_measured_as_the_trial(network: dict[str, Any]) -> None:
    assert_packed_is_solo(JOB, neighbours(network), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_directions_are_orthonormal_and_each_seed_s_own(network: dict[str, Any]) -> None:
    trial = member(1, **network)
    block, again = fresh_block([trial, member(2, **network)]), fresh_block([trial])
    assert block._around is not None and again._around is not None
    frames = block._around.directions_MQD
    assert frames.shape == (2, 4, trial.params.first_inputs)
    torch.testing.assert_close(frames @ frames.transpose(1, 2), torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    assert torch.equal(frames[0], again._around.directions_MQD[0])
    assert not torch.allclose(frames[0], frames[1])


def test_chunks_do_not_change_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    block = fresh_block(neighbours(NETWORKS["images"]))
    whole = {name: value for name, value in block.measure().items() if name in COMPLEXITY_METRICS}
    monkeypatch.setattr(local_complexity, "COMPLEXITY_BYTES", 1)
    for name, value in block.measure().items():
        if name in COMPLEXITY_METRICS:
            assert torch.equal(value, whole[name])


def test_of_one_layer_it_is_the_number_of_hyperplanes_within_reach() -> None:
    """A cross-polytope reaches r max |q . w| towards a hyperplane w . x + b = 0: known without any vertex."""
    trial = member(1, **{**NETWORKS["images"], "layers": 1, "complexity_points": 30})
    block = fresh_block([trial])
    around, images = block._around, block.pairs.images_PD
    assert around is not None and images is not None
    weight, bias = (view[0] for view in block.parameters.views()[:2])
    distance = (images[around.rows_MS[0, :30]] @ weight + bias).abs()
    reach = 0.3 * (around.directions_MQD[0] @ weight).abs().max(0).values
    expected = (distance < reach)[:, : trial.params.width].sum(1).double().mean()
    assert float(block.measure()["train_complexity"][0]) == pytest.approx(float(expected))


def test_it_goes_to_nothing_with_the_radius_and_to_all_units_without_bound() -> None:
    seen = {
        radius: fresh_block([member(1, **{**NETWORKS["images"], "complexity_radius": radius})]).measure()
        for radius in (1e-6, 0.1, 1.0, 1e4)
    }
    values = [float(measured["test_complexity"][0]) for measured in seen.values()]
    assert values[0] == 0.0
    assert values[0] < values[1] < values[2] <= values[3]
    assert values[3] > 0.9 * 2 * 20


def test_to_be_measured_changes_nothing_else() -> None:
    trial = member(1, **NETWORKS["one-hot"])
    plain = Member(params=dataclasses.replace(trial.params, progress="basic"), seed=1)
    seen, before = (curves_of(JOB, [one])[0] for one in (trial, plain))
    assert tuple(seen.values) == BASE_METRICS + BASIC_METRICS + COMPLEXITY_METRICS == JOB.metrics_of(trial.params)
    common = dataclasses.replace(seen, values={name: seen.values[name] for name in before.values})
    assert_same_curves(common, before, rtol=0, atol=0)


def test_what_it_costs_is_counted() -> None:
    def cost(**values: Any) -> Cost:
        params = member(1, **{**NETWORKS["one-hot"], **values}).params
        return JOB.cost(params, extent=JOB.extent(params), models=3)

    some, more, none = cost(), cost(complexity_points=18, modulus=11), cost(progress="basic")
    assert none.matmul_flop < some.matmul_flop < more.matmul_flop
    assert none.element_visits < some.element_visits


@pytest.mark.parametrize(
    ("values", "field", "rule"),
    [
        ({"model": "quadratic_mlp"}, "progress", "ReLU.*quadratic_mlp"),
        ({"model": "transformer", "width": 8}, "progress", "ReLU.*transformer"),
        ({"model": "embedding_mlp", "activation": "tanh"}, "progress", "activation is tanh"),
        ({"model": "embedding_mlp", "combine": "sum", "embedding": 3}, "complexity_directions", r"inputs \(3\).*got 4"),
    ],
)
def test_where_there_is_nothing_to_count_it_is_refused(values: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(ParamError, match=rule) as caught:
        member(1, **values)
    assert caught.value.name == field


def test_a_neighbourhood_of_padding_is_never_counted() -> None:
    """A narrow network beside a wide one has no more units than its own."""
    narrow = member(1, **{**NETWORKS["images"], "width": 3, "complexity_radius": 1e5})
    wide = member(2, **{**NETWORKS["images"], "width": 60})
    value = float(fresh_block([narrow, wide]).measure()["train_complexity"][0])
    assert 0 < value <= 2 * 3 and not math.isnan(value)
