"""A packed trial is the trial: each kind of layer, random architectures, and what a user may override."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from jobs.job import Member
from jobs.module import Data, ModuleJob, ModuleParams, Random, param
from jobs.module import pack as packs
from jobs.module.pack import Way, why_alone
from tests.packing import assert_packed_is_solo, assert_same_curves, curves_of

CLASSES = 3


class Residual(nn.Module):
    def __init__(self, width: int, *, post: bool = False) -> None:
        super().__init__()
        self.norm, self.linear, self.post = nn.LayerNorm(width), nn.Linear(width, width), post

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear(x)) if self.post else x + functional.gelu(self.linear(self.norm(x)))


class Attention(nn.Module):
    """One causal layer on tokens, by `nn.MultiheadAttention` or by `scaled_dot_product_attention`."""

    def __init__(self, *, functional_: bool, dropout: float = 0.0, weights: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 8), nn.Parameter(torch.randn(5, 8))
        self.attend = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.project, self.read = nn.Linear(8, 24), nn.Linear(8, CLASSES)
        self.functional, self.rate, self.weights = functional_, dropout, weights

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        if self.functional:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
            rate = self.rate if self.training else 0.0
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
            y = y.transpose(1, 2).flatten(2)
        else:
            mask = nn.Transformer.generate_square_subsequent_mask(5)
            y, _ = self.attend(x, x, x, attn_mask=mask, is_causal=True, need_weights=self.weights)
        return self.read((x + y)[:, -1])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.read = nn.Embedding(7, 6), nn.GRUCell(6, 6), nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x, state = self.embed(tokens), torch.zeros(len(tokens), 6)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.read(state)


class Tied(nn.Module):
    """The readout is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embed(tokens).mean(1))


class Buffered(nn.Module):
    """Random features that are not trained, and a counter of its calls."""

    calls: Tensor
    features: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(10, CLASSES)
        self.register_buffer("features", torch.randn(6, 10))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.read(torch.tanh(x @ self.features)) * (1 + self.calls / 100)


class Asking(nn.Module):
    """Its control flow depends on values that all models share, which vmap allows and a recording does not."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        return self.read(x * 2 if (place.diff() == 1).all() else x)


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3, padding=1), *layers)


MODELS: Mapping[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)),
    "conv": lambda: image(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)),
    "conv_stride": lambda: image(
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    ),
    "group_norm": lambda: image(nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)),
    "batch_norm": lambda: image(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)),
    "layer_norm": lambda: nn.Sequential(nn.Linear(6, 8), Residual(8), Residual(8, post=True), nn.Linear(8, CLASSES)),
    "attention": lambda: Attention(functional_=False),
    "attention_dropout": lambda: Attention(functional_=False, dropout=0.3),
    "attention_weights": lambda: Attention(functional_=False, dropout=0.3, weights=True),
    "sdpa": lambda: Attention(functional_=True),
    "sdpa_dropout": lambda: Attention(functional_=True, dropout=0.3),
    "gru_cell": Recurrent,
    "tied": Tied,
    "buffers": Buffered,
    "asking": Asking,
    "padding": lambda: nn.Sequential(nn.Embedding(7, 8, padding_idx=-1), nn.Flatten(), nn.Linear(40, CLASSES)),
    "dropout": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.4), nn.ReLU(), nn.Dropout1d(0.2), nn.Linear(8, CLASSES)
    ),
    "encoder": lambda: nn.Sequential(
        nn.Embedding(7, 8),
        nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True),
        nn.Flatten(),
        nn.Linear(40, CLASSES),
    ),
}
TOKENS = {
    "attention",
    "attention_dropout",
    "attention_weights",
    "sdpa",
    "sdpa_dropout",
    "gru_cell",
    "tied",
    "encoder",
    "padding",
}
IMAGES = {"conv", "conv_stride", "group_norm", "batch_norm"}


class Layers(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        kind: str = param("linear", choices=tuple(MODELS), meaning="model")

    def model(self, params: Any) -> nn.Module:
        model: nn.Module = MODELS[params.kind]()
        return model

    def data(self, params: Any, random: Random) -> Data:
        y = random.integers("y", CLASSES, 60)
        if params.kind in TOKENS:
            x = random.integers("x", 7, 60, 5)
        else:
            x = random.normal("x", 60, 36 if params.kind in IMAGES else 6)
        return Data(train=(x[:40], y[:40]), test=(x[40:], y[40:]))


def members(job: ModuleJob, count: int = 3, **values: Any) -> list[Member[Any]]:
    common = {"steps": 8, "curve_points": 3, "batch_size": 10, "learning_rate": 0.02, "optimiser": "sgd", **values}
    return [Member(params=job.params_for(common), seed=71 + k) for k in range(count)]


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_trial_is_the_trial_for_every_kind_of_layer(kind: str) -> None:
    job = Layers()
    trained = members(job, kind=kind)
    assert why_alone(job, trained[0].params) == ""
    assert_packed_is_solo(job, trained)


@pytest.mark.parametrize("kind", ["linear", "batch_norm", "attention_dropout", "buffers", "conv", "asking"])
def test_a_recording_computes_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Layers()
    trained = members(job, kind=kind)
    eager = curves_of(job, trained)
    way = Way(size=3, recorded=True)
    monkeypatch.setattr(packs, "_way", lambda *_: way)
    recorded = curves_of(job, trained)
    assert way.graphs and all((graph is None) == (kind == "asking") for graph in way.graphs.values())
    for position in eager:
        assert_same_curves(eager[position], recorded[position], rtol=1e-5, atol=1e-6)


LAYERS = {
    "relu": lambda _: nn.ReLU(),
    "tanh": lambda _: nn.Tanh(),
    "linear": lambda width: nn.Linear(width, width),
    "norm": nn.LayerNorm,
    "batch_norm": nn.BatchNorm1d,
    "dropout": lambda _: nn.Dropout(0.2),
    "residual": Residual,
    "post": lambda width: Residual(width, post=True),
    "no_bias": lambda width: nn.Linear(width, width, bias=False),
    "prelu": lambda _: nn.PReLU(),
}


class Drawn(Layers):
    """An architecture as a text: a width, and names of layers."""

    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        layers: str = param("", meaning="names of layers")
        width: int = param(4, low=1, meaning="units")
        kind: str = param("linear", meaning="of the data")

    def model(self, params: Any) -> nn.Module:
        hidden = [LAYERS[name](params.width) for name in params.layers.split()]
        return nn.Sequential(nn.Linear(6, params.width), *hidden, nn.Linear(params.width, CLASSES))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    width=st.integers(2, 9),
    optimiser=st.sampled_from(["sgd", "adam", "adamw"]),
    clip=st.sampled_from([0.0, 0.5]),
)
def test_a_packed_trial_is_the_trial_for_random_architectures(
    layers: list[str], width: int, optimiser: str, clip: float
) -> None:
    job = Drawn()
    values = {"layers": " ".join(layers), "width": width, "optimiser": optimiser, "clip_norm": clip, "steps": 4}
    trained = members(job, learning_rate=0.003, **values)
    assert why_alone(job, trained[0].params) == ""
    assert_packed_is_solo(job, trained, rtol=1e-3, atol=1e-4, atols={"train_accuracy": 0.03, "test_accuracy": 0.06})


class Own(Layers):
    """Fresh batches, per-token losses with a mask, a regulariser, pruning and a probe."""

    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):
        strength: float = param(0.1, meaning="of the regulariser")

    def model(self, params: Any) -> nn.Module:
        return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, CLASSES))

    def data(self, params: Any, random: Random) -> Data:
        x = random.integers("x", 7, 30, 5)
        mask = random.bits("mask", 30, 5).float()
        return Data(train=(x[:20], x[:20] % CLASSES, mask[:20]), test=(x[20:], x[20:] % CLASSES, mask[20:]))

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Any, ...]:
        x = random.integers("batch", 7, 12, 5)
        return x, x % CLASSES, random.bits("kept", 12, 5).float()

    def regulariser(self, params: Any, weights: Mapping[str, Tensor]) -> Tensor:
        return params.strength * weights["1.weight"].abs().sum()

    def weight_masks(self, params: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"1.weight": (weights["1.weight"].abs() > 0.2).float()}

    def probe(self, params: Any, model: Any, weights: Mapping[str, Tensor], data: Data) -> Mapping[str, Tensor]:
        return {
            "norm": weights["0.weight"].norm(),
            "kept": (weights["1.weight"] != 0).float().mean(),
            "confidence": model(data.test[0]).softmax(-1).amax(-1).mean(),
        }


def test_what_a_job_overrides_is_the_same_in_a_pack() -> None:
    job = Own()
    trained = members(job, steps=12)
    assert why_alone(job, trained[0].params) == ""
    course = assert_packed_is_solo(job, trained)
    first = course.curves[0].values
    assert set(first) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "norm", "kept", "confidence"}
    assert 0 < first["kept"][-1] < 1 and first["kept"][0] == first["kept"][-1]


class RmsProp(Layers):
    def torch_optimiser(self, params: Any, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(weights, lr=params.learning_rate)


def test_an_optimiser_of_pytorch_trains_one_model_at_a_time() -> None:
    job = RmsProp()
    trained = members(job, schedule="cosine")
    assert "optimiser of PyTorch" in why_alone(job, trained[0].params)
    rms = assert_packed_is_solo(job, trained, rtol=0, atol=0)
    sgd = curves_of(Layers(), trained)
    assert rms.curves[0].values["train_loss"][-1] != sgd[0].values["train_loss"][-1]


class Noisy(Layers):
    """Draws from PyTorch's generator in its forward pass."""

    def model(self, params: Any) -> nn.Module:
        class Noise(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x + torch.randn_like(x) if self.training else x)

        return Noise(6, CLASSES)


def test_a_module_with_random_numbers_of_its_own_trains_alone_and_reproducibly() -> None:
    job = Noisy()
    trained = members(job)
    assert "randn_like" in why_alone(job, trained[0].params) or "random" in why_alone(job, trained[0].params)
    assert_packed_is_solo(job, trained, rtol=0, atol=0)


class Forgetful(Layers):
    """Replaces a buffer in its forward pass: a stacked module does not keep that."""

    def model(self, params: Any) -> nn.Module:
        class Growing(nn.Linear):
            seen: Tensor

            def forward(self, x: Tensor) -> Tensor:
                if self.training:
                    self.seen = self.seen + 5.0
                return super().forward(x) * (1 + self.seen)

        model = Growing(6, CLASSES)
        model.register_buffer("seen", torch.zeros(()))
        return model


def test_a_module_that_computes_something_else_when_stacked_trains_alone() -> None:
    job = Forgetful()
    trained = members(job)
    assert "assign to a buffer" in why_alone(job, trained[0].params)
    assert_packed_is_solo(job, trained, rtol=0, atol=0)


class Counting(Layers):
    """Counts its steps in a Python number: a recording would repeat the first one."""

    def model(self, params: Any) -> nn.Module:
        class Warming(nn.Linear):
            steps = 0

            def forward(self, x: Tensor) -> Tensor:
                if self.training:
                    self.steps += 1
                return super().forward(x) * (1 + self.steps / 10)

        return Warming(6, CLASSES)


def test_a_module_that_counts_in_a_python_number_trains_alone() -> None:
    job = Counting()
    trained = members(job)
    assert "changes the attribute 'steps'" in why_alone(job, trained[0].params)
    assert_packed_is_solo(job, trained, rtol=0, atol=0)


class OfTheFirst(torch.autograd.Function):
    """A product whose rule for vmap is wrong: it has the first model's factor."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad[0] * w, (grad[0] * x).sum(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor) -> tuple[Tensor, int]:
        return OfTheFirst.apply(x, w[0]), 0


class Wrong(Layers):
    def model(self, params: Any) -> nn.Module:
        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w, self.read = nn.Parameter(3 * torch.randn(6)), nn.Linear(6, CLASSES)

            def forward(self, x: Tensor) -> Tensor:
                return self.read(OfTheFirst.apply(x, self.w))

        return Product()


def test_a_module_that_is_wrong_for_all_stacked_models_but_the_first_trains_alone() -> None:
    job = Wrong()
    trained = members(job)
    assert "computes something else" in why_alone(job, trained[0].params)
    assert_packed_is_solo(job, trained, rtol=0, atol=0)
