"""Modules for `ModuleJob.model`, as the papers on grokking and double descent train them.

Their initial weights are PyTorch's defaults unless the docstring says otherwise. All of them can be stacked.

Shapes: B examples, T tokens, D residual width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """A perceptron with `layers` hidden layers of `width` units: (..., inputs) -> (..., outputs).

    Put `nn.Flatten()` before it for images. It has (inputs + 1) width + (layers - 1) (width + 1) width
    + (width + 1) outputs parameters.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, layers: int = 1, activation: str = "relu", bias: bool = True
    ) -> None:
        """`activation`: relu, gelu or tanh; `bias`: whether all layers have biases, or none."""
        _check("MLP", "activation", activation, ACTIVATIONS)
        parts: list[nn.Module] = []
        for before, after in pairwise([inputs, *[width] * layers]):
            parts += [nn.Linear(before, after, bias=bias), ACTIVATIONS[activation]()]
        super().__init__(*parts, nn.Linear(width if layers else inputs, outputs, bias=bias))


class TransformerBlock(nn.Module):
    """Attention and a perceptron of 4 D units, each added to its input: (B, T, D) -> (B, T, D).

    `norm`: layer norm after each sum (post, Vaswani et al. 2017), of the input of each sublayer (pre, Xiong et al.
    2020), or none.
    """

    def __init__(
        self, width: int, heads: int, *, norm: str, causal: bool, activation: str, bias: bool, attention_bias: bool
    ) -> None:
        super().__init__()
        _check("transformer", "norm", norm, NORMS)
        if width % heads:
            raise ValueError(f"transformer: heads must divide width ({width}); got {heads}")
        self.heads, self.post, self.causal = heads, norm == "post", causal
        self.qkv = nn.Linear(width, 3 * width, bias=attention_bias)
        self.output = nn.Linear(width, width, bias=attention_bias)
        if attention_bias:  # as torch.nn.MultiheadAttention
            nn.init.xavier_uniform_(self.qkv.weight)
            nn.init.zeros_(self.qkv.bias)
            nn.init.zeros_(self.output.bias)
        self.mlp = MLP(width, width, width=4 * width, activation=activation, bias=bias)
        self.norm_1, self.norm_2 = (nn.Identity() if norm == "none" else nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm_1(x + self.attend(x))
            x = self.norm_2(x + self.mlp(x))
        else:
            x = x + self.attend(self.norm_1(x))
            x = x + self.mlp(self.norm_2(x))
        return x

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        attended: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return attended


class Transformer(nn.Module):
    """A causal transformer: (B, T) int64 tokens -> (B, T, outputs) logits, or with `last_only` (B, outputs).

    An output depends on its own token and on earlier ones. `power2022` and `nanda2023` are the networks of two papers.
    """

    positions: nn.Parameter | Tensor | None

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        outputs: int = 0,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        norm: str = "pre",
        positions: str = "learned",
        init: str = "torch",
        activation: str = "relu",
        bias: bool = True,
        attention_bias: bool = False,
        last_only: bool = False,
    ) -> None:
        """A network before training.

        Args:
            vocabulary: tokens, numbered from 0.
            length: largest T.
            outputs: logits of each token; 0: one for each token of the vocabulary.
            width: D; `heads` must divide it.
            heads: attention heads of a block.
            layers: blocks.
            norm: see `TransformerBlock`; with pre, another layer norm precedes the readout.
            positions: what is added to the embeddings: learned, sinusoidal (Vaswani et al. 2017), or none.
            init: torch: PyTorch's defaults of `nn.Linear`, `nn.Embedding` and, with `attention_bias`, of
                `nn.MultiheadAttention`; learned positions are drawn as an embedding. nanda: those of Nanda et al. 2023,
                normal with deviation 1 / sqrt(D), readout 1 / sqrt(outputs), biases zero.
            activation: relu, gelu or tanh.
            bias: whether the perceptrons have biases; the readout has none.
            attention_bias: whether attention has.
            last_only: read out the last token alone, as for x + y = .
        """
        super().__init__()
        _check("Transformer", "positions", positions, POSITIONS)
        _check("Transformer", "init", init, INITS)
        self.length, self.last_only = length, last_only
        self.tokens = nn.Embedding(vocabulary, width)
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(length, width))
        else:
            self.register_buffer("positions", sinusoids(length, width) if positions == "sinusoidal" else None)
        options: dict[str, Any] = {
            "norm": norm,
            "activation": activation,
            "bias": bias,
            "attention_bias": attention_bias,
        }
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True, **options) for _ in range(layers)))
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.readout = nn.Linear(width, outputs or vocabulary, bias=False)
        if init == "nanda":
            self._draw_nanda()

    @torch.no_grad()
    def _draw_nanda(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" not in name:
                width_or_outputs = len(parameter) if name == "readout.weight" else self.tokens.embedding_dim
                parameter.normal_(0, width_or_outputs**-0.5)

    @classmethod
    def power2022(cls, vocabulary: int, length: int, **options: Any) -> Transformer:
        """The network of Power et al. 2022 (openai/grok, grok/transformer.py), without its dropout.

        Two blocks of width 128 with 4 heads and ReLU, layer norm after each sublayer, sinusoidal positions, no biases,
        PyTorch's initial weights.
        """
        paper = {"norm": "post", "positions": "sinusoidal", "bias": False}
        return cls(vocabulary, length, **{**paper, **options})

    @classmethod
    def nanda2023(cls, vocabulary: int, length: int, **options: Any) -> Transformer:
        """The network of Nanda et al. 2023 (progress-measures-paper, transformers.py), which reads the last token.

        One block of width 128 with 4 heads and ReLU, no layer norm, learned positions, biases in the perceptron alone.
        """
        paper = {"layers": 1, "norm": "none", "init": "nanda", "last_only": True}
        return cls(vocabulary, length, **{**paper, **options})

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.length:
            raise ValueError(f"Transformer: at most {self.length} tokens (length); got {length}")
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions[:length]
        x = self.blocks(x)
        logits: Tensor = self.readout(self.norm(x[:, -1] if self.last_only else x))
        return logits


NORMS, POSITIONS, INITS = ("pre", "post", "none"), ("learned", "sinusoidal", "none"), ("torch", "nanda")


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): columns 2 i and 2 i + 1 are sin and cos of position / 10000^(2 i / width) (Vaswani et al.)."""
    column = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-(column - column % 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(torch.get_default_dtype())


@torch.no_grad()
def greedy(model: Callable[[Tensor], Tensor], tokens: Tensor, count: int) -> Tensor:
    """(B, T) tokens, continued by `count` tokens, each the most probable one: (B, T + count).

    `model` maps (B, T) to (B, T, outputs), or to (B, outputs) of the last token. In `ModuleJob.probe`, its argument
    `model` can be given.
    """
    for _ in range(count):
        logits = model(tokens)
        last = logits[:, -1] if logits.dim() == 3 else logits
        tokens = torch.cat([tokens, last.max(-1, keepdim=True).indices], 1)
    return tokens


class ResNet(nn.Module):
    """A pre-activation ResNet: (B, C, H, W) -> (B, outputs).

    With `norm="batch"` and four stages of two blocks it is ResNet18 of width k in Nakkiran et al. 2020 (`resnet18k.py`
    of their code; k = 64 is ResNet18 of He et al. 2016). Stage s has 2^s k channels, and halves height and width, the
    first one excepted.
    """

    def __init__(
        self, channels: int, outputs: int, *, width: int = 16, blocks: Sequence[int] = (2, 2, 2, 2), norm: str = "group"
    ) -> None:
        """`width`: k; `blocks`: of each stage.

        `norm`: group is group normalisation with one group, so that an output depends on its own example alone; batch
        is batch normalisation.
        """
        super().__init__()
        _check("ResNet", "norm", norm, ("group", "batch"))
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        before = width
        for stage, count in enumerate(blocks):
            for k in range(count):
                after = width << stage
                parts.append(ResidualBlock(before, after, stride=2 if stage and not k else 1, norm=norm))
                before = after
        self.features = nn.Sequential(*parts)
        self.readout = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.features(images).mean((2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Norm, ReLU and a 3 x 3 convolution, twice, added to the input (He et al. 2016, identity mappings)."""

    def __init__(self, before: int, after: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (
            nn.BatchNorm2d(c) if norm == "batch" else nn.GroupNorm(1, c) for c in (before, after)
        )
        self.conv_1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = stride == 1 and before == after
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm_1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        added: Tensor = self.conv_2(functional.relu(self.norm_2(self.conv_1(y))))
        return x + added


class ViT(nn.Module):
    """A vision transformer: (B, C, size, size) -> (B, outputs).

    Linear patches, learned positions with deviation 0.02, pre-norm blocks with biases (Dosovitskiy et al. 2021), and
    the mean over patches in place of a class token (Beyer et al. 2022).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        size: int,
        patch: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        activation: str = "gelu",
    ) -> None:
        """`size`: height and width of an image; `patch`: of a patch; `patch` must divide `size`."""
        super().__init__()
        if size % patch:
            raise ValueError(f"ViT: patch must divide size ({size}); got {patch}")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        options: dict[str, Any] = {"norm": "pre", "activation": activation, "bias": True, "attention_bias": True}
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False, **options) for _ in range(layers)))
        self.norm, self.readout = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.readout(self.norm(self.blocks(x)).mean(1))
        return logits


@torch.no_grad()
def scaled(model: nn.Module, factor: float) -> nn.Module:
    """The model with its initial weights and biases multiplied by a factor, as Liu et al. 2023 (Omnigrok) do.

    Parameters of normalisation are not multiplied.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    kept = {id(p) for part in model.modules() if isinstance(part, norms) for p in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.mul_(factor)
    return model


def _check(where: str, name: str, value: str, choices: Sequence[str] | dict[str, Any]) -> None:
    if value not in choices:
        raise ValueError(f"{where}: {name} must be one of {', '.join(choices)}; got {value!r}")
