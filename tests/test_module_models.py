"""The modules of `jobs.module.models`: packed as alone, with the weights and outputs of the hand-written jobs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from packing import assert_packed_is_solo, curves_of
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from jobs.grokking.initial import initial, layout
from jobs.grokking.pack import make_block
from jobs.grokking.params import SEQUENCES, SPECIAL_TOKENS, GrokkingParams
from jobs.grokking.transformer import sinusoids as sinusoids_of_grokking
from jobs.job import Member
from jobs.module import Data, ModuleJob, ModuleParams, Random, param
from jobs.module.models import MLP, ResNet, Transformer, ViT, greedy, scaled, sinusoids
from jobs.module.pack import why_alone
from tests.plain_grokking import examples

TOKENS, LENGTH, CLASSES, SIZE = 7, 5, 3, 8
MODELS: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), MLP(SIZE * SIZE, CLASSES, width=6, layers=2)),
    "mlp_scaled": lambda: nn.Sequential(nn.Flatten(), scaled(MLP(SIZE * SIZE, CLASSES, width=6, bias=False), 2.0)),
    "transformer_pre": lambda: Transformer(TOKENS, LENGTH, width=8, heads=2, attention_bias=True, activation="gelu"),
    "transformer_post": lambda: Transformer(TOKENS, LENGTH, width=8, heads=2, norm="post", last_only=True),
    "transformer_no_positions": lambda: Transformer(TOKENS, LENGTH, width=8, heads=2, layers=1, positions="none"),
    "power2022": lambda: Transformer.power2022(TOKENS, LENGTH, width=8),
    "nanda2023": lambda: Transformer.nanda2023(TOKENS, LENGTH, width=8),
    "resnet": lambda: ResNet(1, CLASSES, width=2, blocks=(1, 1)),
    "resnet_batch": lambda: ResNet(1, CLASSES, width=2, blocks=(1, 1), norm="batch"),
    "vit": lambda: ViT(1, CLASSES, size=SIZE, patch=4, width=8, heads=2, layers=1),
}
OF_LAST = {"transformer_post", "nanda2023"}
OF_IMAGES = {"mlp", "mlp_scaled", "resnet", "resnet_batch", "vit"}


class Zoo(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        kind: str = param("mlp", choices=tuple(MODELS), meaning="model")

    def model(self, params: Any) -> nn.Module:
        model: nn.Module = MODELS[params.kind]()
        return model

    def data(self, params: Any, random: Random) -> Data:
        if params.kind in OF_IMAGES:
            x, y = random.normal("x", 60, 1, SIZE, SIZE), random.integers("y", CLASSES, 60)
        else:
            x = random.integers("x", TOKENS, 60, LENGTH)
            y = x[:, 0] if params.kind in OF_LAST else x.flip(1)
        return Data(train=(x[:40], y[:40]), test=(x[40:], y[40:]))


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_trial_is_the_trial(kind: str) -> None:
    job = Zoo()
    values = {"kind": kind, "steps": 8, "curve_points": 3, "batch_size": 10, "learning_rate": 0.02, "optimiser": "sgd"}
    trained = [Member(params=job.params_for(values), seed=71 + k) for k in range(3)]
    assert why_alone(job, trained[0].params) == ""
    assert_packed_is_solo(job, trained)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("layers", "bias"), [(1, True), (3, True), (2, False)])
def test_the_parameters_of_a_perceptron(layers: int, bias: bool) -> None:
    found = parameters(MLP(11, 3, width=7, layers=layers, bias=bias))
    one = int(bias)
    assert found == (11 + one) * 7 + (layers - 1) * (7 + one) * 7 + (7 + one) * 3


def test_the_parameters_of_a_transformer() -> None:
    v, t, d = 19, 6, 8
    block, offsets, norm = 12 * d * d, 4 * d + d, 2 * d
    assert (
        parameters(Transformer(v, t, width=d, layers=3)) == 2 * v * d + t * d + 3 * (block + offsets + 2 * norm) + norm
    )
    assert parameters(Transformer.power2022(v, t, width=d)) == 2 * v * d + 2 * (block + 2 * norm)
    assert parameters(Transformer.nanda2023(v, t, width=d)) == 2 * v * d + t * d + block + offsets
    more = parameters(Transformer(v, t, width=d, layers=1, attention_bias=True, outputs=5))
    assert more == v * d + 5 * d + t * d + block + offsets + 4 * d + 3 * norm


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("k", [2, 5])
def test_the_parameters_of_a_resnet(norm: str, k: int) -> None:
    """Four stages of two blocks: the first one has no shortcut and no wider input."""
    first = 2 * (2 * 9 * k * k + 2 * 2 * k)
    others = sum(9 * (w * w // 2 + 3 * w * w) + w * w // 2 + 2 * (w // 2 + 3 * w) for w in (2 * k, 4 * k, 8 * k))
    assert parameters(ResNet(3, 10, width=k, norm=norm)) == 27 * k + first + others + 80 * k + 10


def test_the_parameters_of_a_vision_transformer() -> None:
    c, d, patches, pixels = 3, 8, 16, 49
    block = 12 * d * d + 4 * d + 5 * d + 4 * d
    expected = (c * pixels + 1) * d + patches * d + 2 * block + 2 * d + (d + 1) * 10
    assert parameters(ViT(c, 10, size=28, patch=7, width=d)) == expected


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm", ["pre", "post", "none"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_a_later_token_changes_no_earlier_output(norm: str, positions: str) -> None:
    torch.manual_seed(1)
    model = Transformer(TOKENS, LENGTH, width=8, heads=2, norm=norm, positions=positions)
    tokens = torch.randint(TOKENS, (4, LENGTH))
    before = model(tokens)
    for place in range(LENGTH):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % TOKENS
        after = model(other)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
        assert (after[:, place:] - before[:, place:]).abs().amax((0, 2)).min() > 1e-6
    torch.testing.assert_close(model(tokens[:, :3]), before[:, :3], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_transformer_is_that_of_pytorch(norm: str) -> None:
    torch.manual_seed(2)
    model = Transformer(TOKENS, LENGTH, width=8, heads=2, norm=norm, attention_bias=True, activation="gelu")
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=norm == "pre")
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {"qkv.": "self_attn.in_proj_", "output.": "self_attn.out_proj.", "mlp.0.": "linear1.", "mlp.2.": "linear2."}
    names |= {"norm_1.": "norm1.", "norm_2.": "norm2."}
    with torch.no_grad():
        for place in model.parameters():
            place.add_(0.1 * torch.randn_like(place))  # norms and biases too
        for own, other in zip(model.blocks, theirs.layers, strict=True):
            for ours, its in names.items():
                for kind in ("weight", "bias"):
                    other.get_parameter(f"{its}{kind}").copy_(own.get_parameter(f"{ours}{kind}"))
    tokens = torch.randint(TOKENS, (4, LENGTH))
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    expected = theirs(model.tokens(tokens) + model.positions, mask=mask, is_causal=True)
    torch.testing.assert_close(model(tokens), model.readout(model.norm(expected)), rtol=0, atol=1e-12)


# Against the hand-written grokking job

PRIME, WIDTH, MANY = 7, 16, 500
COMMON = {"model": "transformer", "modulus": PRIME, "width": WIDTH, "heads": 4, "loss": "cross_entropy"}
POWER = {"layers": 2, "layer_norm": True, "init": "torch", "biases": False, "positions": "sinusoidal"}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "power2022": (
        {**POWER, "sequence": "equation", "vocabulary": PRIME + 3},
        lambda: Transformer.power2022(PRIME + 3, 6, width=WIDTH),
    ),
    "nanda2023": (
        {"init": "nanda", "vocabulary": PRIME + 1},
        lambda: Transformer.nanda2023(PRIME + 1, 3, width=WIDTH),
    ),
    "attention_bias": (
        {"layers": 2, "layer_norm": True, "init": "torch", "attention_biases": True, "activation": "gelu"},
        lambda: Transformer(
            PRIME + 1,
            3,
            outputs=PRIME,
            width=WIDTH,
            norm="post",
            attention_bias=True,
            activation="gelu",
            last_only=True,
        ),
    ),
}


def by_name_of_the_job(model: nn.Module) -> dict[str, Tensor]:
    """Name of a tensor of the grokking job -> that of the module, as a view in the job's orientation."""
    names = {"output": "output", "mlp.0": "in", "mlp.2": "out", "norm_1": "norm 1", "norm_2": "norm 2"}
    found = {}
    for name, parameter in model.named_parameters():
        p = parameter.data
        if not (match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)):
            found[name.removesuffix(".weight")] = p
            continue
        block, part, kind = match.groups()
        norm, bias = part.startswith("norm"), " bias" * (kind == "bias")
        view = p[None] if p.dim() == 1 else p.T
        if part == "qkv":
            found |= {f"{block}/{n}{bias}": v for n, v in zip(("query", "key", "value"), view.chunk(3, 1), strict=True)}
        else:
            end = {"weight": " gain", "bias": " offset"}[kind] if norm else bias
            found[f"{block}/{names[part]}{end}"] = view
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_initial_weights_are_distributed_as_in_the_grokking_job(case: str) -> None:
    """By two-sample Kolmogorov-Smirnov tests at 1e-4, of 8,000 numbers or more of each tensor."""
    values, make = CASES[case]
    params = GrokkingParams(**{**COMMON, **values})
    torch.manual_seed(3)
    models = [by_name_of_the_job(make()) for _ in range(MANY)]
    theirs = initial([params] * MANY, range(MANY), "cpu").views()
    jobs = {layer.name: view for layer, view in zip(layout(params, WIDTH), theirs, strict=True)}
    absent = {name for name in jobs if name not in models[0]}
    assert all(re.fullmatch("./(in|out) bias", name) and not jobs[name].any() for name in absent)
    for name in models[0]:
        mine = torch.stack([model[name] for model in models])
        other = jobs[name][:, : params.outputs] if name == "readout" else jobs[name]
        assert mine.shape == other.shape, name
        if (mine == mine.flatten()[0]).all():
            assert torch.equal(mine, other), name
        else:
            assert stats.ks_2samp(mine.numpy().ravel(), other.numpy().ravel()).pvalue > 1e-4, name


def test_another_scale_of_the_weights_is_found() -> None:
    """The test above can fail: at a tenth more."""
    one, other = (nn.Linear(16, 960).weight.detach().numpy().ravel() for _ in range(2))
    assert stats.ks_2samp(one, 1.1 * other).pvalue < 1e-4


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("case", CASES)
def test_the_outputs_are_those_of_the_grokking_job(case: str) -> None:
    values, make = CASES[case]
    params = GrokkingParams(**{**COMMON, **values})
    block = make_block([Member(params=params, seed=4)], "cpu")
    views = [view + 0.1 * torch.randn_like(view) for view in block.parameters.views()]
    jobs = {layer.name: view[0] for layer, view in zip(layout(params, WIDTH), views, strict=True)}
    model = make()
    for name, place in by_name_of_the_job(model).items():
        place.copy_(jobs[name][: params.outputs] if name == "readout" else jobs[name])
    for name, view in zip(jobs, views, strict=True):
        if not params.biases and name.endswith(("in bias", "out bias")):
            view.zero_()
    x, y, z = examples(params)
    special = {name: torch.full_like(x, PRIME + k) for k, name in enumerate(SPECIAL_TOKENS)}
    tokens = torch.stack([{"x": x, "y": y, "z": z, **special}[name] for name in SEQUENCES[params.sequence]], 1)
    theirs_OB = block.forward(views, x[None], y[None])[0]
    mine = model(tokens)
    if params.sequence == "equation":
        mine = mine[:, -2:].transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(mine.T, theirs_OB, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [1, 7, 16])
def test_the_sinusoids_are_those_of_the_grokking_job(width: int) -> None:
    torch.testing.assert_close(sinusoids(9, width), sinusoids_of_grokking(9, width)[0].float())


# Greedy decoding


class Copy(ModuleJob):
    """Four digits, an end token, and the digits again; the loss is that of the second half."""

    def model(self, params: Any) -> nn.Module:
        return Transformer(TOKENS + 1, 9, width=32, heads=4)

    def data(self, params: Any, random: Random) -> Data:
        half = random.integers("x", TOKENS, 900, 4)
        tokens = torch.cat([half, torch.full((900, 1), TOKENS), half], 1)
        x, y, mask = tokens[:, :-1], tokens[:, 1:], torch.zeros(900, 8)
        mask[:, 4:] = 1
        return Data(train=(x[:700], y[:700], mask[:700]), test=(x[700:], y[700:], mask[700:]))

    def probe(self, params: Any, model: Any, weights: Any, data: Data) -> dict[str, Tensor]:
        start = data.test[0][:, :5]
        return {"copied": (greedy(model, start, 4)[:, 5:] == start[:, :4]).all(1).float().mean()}


def test_a_model_that_is_trained_to_copy_copies() -> None:
    """`greedy` decodes stacked models, too."""
    job = Copy()
    values = {"steps": 400, "curve_points": 2, "learning_rate": 0.005, "batch_size": 50}
    trained = [Member(params=job.params_for(values), seed=k) for k in range(2)]
    assert why_alone(job, trained[0].params) == ""
    for position, curves in curves_of(job, trained).items():
        assert curves.values["copied"][0] < 0.1, position
        assert curves.values["copied"][-1] == 1.0, position


@pytest.mark.parametrize("last_only", [False, True])
def test_greedy_decoding_appends_the_most_probable_token(last_only: bool) -> None:
    """Of a model that gives the successor of a token the largest logit."""

    def successor(tokens: Tensor) -> Tensor:
        logits = functional.one_hot((tokens + 1) % TOKENS, TOKENS).float()
        return logits[:, -1] if last_only else logits

    start = torch.tensor([[3, 5], [0, 1]])
    assert greedy(successor, start, 3).tolist() == [[3, 5, 6, 0, 1], [0, 1, 2, 3, 4]]
    assert torch.equal(greedy(successor, start, 0), start)


# Images


@pytest.mark.usefixtures("double_precision")
def test_a_resnet_by_its_formula() -> None:
    torch.manual_seed(5)
    model, x = ResNet(2, CLASSES, width=3, blocks=(1, 1)), torch.randn(4, 2, SIZE, SIZE)
    w = dict(model.named_parameters())

    def active(y: Tensor, name: str) -> Tensor:
        normal = (y - y.mean((1, 2, 3), keepdim=True)) / (y.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return torch.relu(normal * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None])

    y = functional.conv2d(x, w["features.0.weight"], padding=1)
    for block, stride in (("features.1", 1), ("features.2", 2)):
        before = active(y, f"{block}.norm_1")
        if stride == 2:
            y = functional.conv2d(before, w[f"{block}.shortcut.weight"], stride=2)
        inside = functional.conv2d(before, w[f"{block}.conv_1.weight"], stride=stride, padding=1)
        y = y + functional.conv2d(active(inside, f"{block}.norm_2"), w[f"{block}.conv_2.weight"], padding=1)
    expected = y.mean((2, 3)) @ w["readout.weight"].T + w["readout.bias"]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kind", sorted(OF_IMAGES))
def test_the_output_of_an_image_is_its_own_except_with_batch_normalisation(kind: str) -> None:
    model, x = MODELS[kind](), torch.randn(6, 1, SIZE, SIZE)
    same = torch.allclose(model(x)[:2], model(x[:2]), rtol=0, atol=1e-12)
    assert same == (kind != "resnet_batch")


@pytest.mark.usefixtures("double_precision")
def test_a_vision_transformer_knows_patches_by_their_positions_alone() -> None:
    model, x = MODELS["vit"](), torch.randn(3, 1, SIZE, SIZE)
    swapped = torch.cat([x[..., 4:, :], x[..., :4, :]], 2)  # the lower two patches above the upper two
    before = model(x)
    assert not torch.allclose(model(swapped), before, rtol=0, atol=1e-9)
    with torch.no_grad():
        model.positions.copy_(model.positions[[2, 3, 0, 1]])
    torch.testing.assert_close(model(swapped), before, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double_precision")
def test_scaled_multiplies_weights_but_not_normalisation() -> None:
    """A ReLU perceptron without biases is homogeneous: its degree is its number of weight matrices."""
    x, model = torch.randn(5, 4), MLP(4, 2, width=6, layers=2, bias=False)
    before = model(x).detach()
    torch.testing.assert_close(scaled(model, 3.0)(x), 27 * before)
    for made in (Transformer(TOKENS, LENGTH, width=8), ResNet(1, 2, width=2), ResNet(1, 2, width=2, norm="batch")):
        weights = {name: p.clone() for name, p in made.named_parameters()}
        scaled(made, 3.0)
        for name, p in made.named_parameters():
            assert torch.equal(p, weights[name] * (1 if "norm" in name else 3)), name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLP(2, 2, width=3, activation="selu"), "activation must be one of relu, gelu, tanh; got 'selu'"),
        (lambda: Transformer(9, 4, norm="rms"), "norm must be one of pre, post, none; got 'rms'"),
        (lambda: Transformer(9, 4, positions="rotary"), "positions must be one of learned, sinusoidal, none"),
        (lambda: Transformer(9, 4, init="gpt2"), "init must be one of torch, nanda; got 'gpt2'"),
        (lambda: Transformer(9, 4, width=10), "heads must divide width (10); got 4"),
        (lambda: Transformer(9, 4)(torch.zeros(1, 5, dtype=torch.int64)), "at most 4 tokens (length); got 5"),
        (lambda: ResNet(1, 2, norm="layer"), "norm must be one of group, batch; got 'layer'"),
        (lambda: ViT(1, 2, size=28, patch=5), "patch must divide size (28); got 5"),
    ],
)
def test_a_wrong_choice_is_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()
