"""A white-box transformer beside a ViT: `job: jobs.gallery.crate:WhiteBox`.

CRATE, Yu et al. 2023 (arXiv 2306.01129): attention compresses tokens towards subspaces, then a step of sparse coding
follows. Shapes: B images, T tokens, D width, K subspaces (heads) of dimension D / K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.grokking.digits import load
from jobs.job import AnyParams, ParamError, param
from jobs.module import Data, ModuleJob
from jobs.module.data import Random
from jobs.module.models import ViT
from jobs.module.params import ModuleParams

STEP, PENALTY, DISTORTION = 0.1, 0.1, 0.01
"""Of sparse coding, its penalty lambda, and the squared error eps^2 of the coding rate, as in the authors' code."""
TRAIN = 1000
"""Training images of 1,797; the others are tested."""


@dataclass(frozen=True, kw_only=True)
class WhiteBoxParams(ModuleParams):
    """The network."""

    network: str = param("crate", choices=("crate", "vit"), meaning="a white-box transformer, or a ViT")
    width: int = param(40, low=1, high=10_000, unit="units", meaning="D: of a token")
    heads: int = param(4, low=1, high=100, meaning="K: subspaces, or attention heads")
    layers: int = param(6, low=1, high=100, unit="layers", meaning="layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ParamError("heads", f"must divide width ({self.width})", self.heads)


class Layer(nn.Module):
    """Self-attention in K subspaces (MSSA), then one step of ISTA towards a sparse code: (B, T, D) -> (B, T, D).

    Query, key and value are one projection; the second matrix of attention is free, as in the authors' code.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.subspaces, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.dictionary = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(width, width)))

    def project(self, x: Tensor) -> Tensor:
        """(B, K, T, D / K): the tokens in each subspace, U_k' z."""
        projected: Tensor = self.subspaces(self.norm_1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return projected

    def attend(self, x: Tensor) -> Tensor:
        w = self.project(x)
        mixed = functional.scaled_dot_product_attention(w, w, w)
        attended: Tensor = x + self.output(mixed.transpose(1, 2).flatten(2))
        return attended

    def shrink(self, x: Tensor) -> Tensor:
        """ReLU(z + eta D'(z - D z) - eta lambda): a step from a = z down |z - D a|^2 / 2 + lambda |a|_1, a >= 0."""
        z = self.norm_2(x)
        left = z - z @ self.dictionary.T
        return functional.relu(z + STEP * (left @ self.dictionary - PENALTY))

    def forward(self, x: Tensor) -> Tensor:
        return self.shrink(self.attend(x))


class CRATE(ViT):
    """The ViT's patches, positions and readout around layers of the white-box transformer."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__(1, 10, size=8, patch=2, width=width, layers=0)
        self.blocks = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))

    def forward(self, images: Tensor, measured: bool = False) -> Any:
        """Logits, or what is measured in each layer, by name."""
        if not measured:
            return super().forward(images)
        x, measures = self.patches(images).flatten(2).transpose(1, 2) + self.positions, {}
        layer: Any
        for k, layer in enumerate(self.blocks, 1):
            middle = layer.attend(x)
            for name, tokens in (("rate_before", x), ("rate", middle)):
                measures[f"{name}_{k}"] = coding_rate(layer.project(tokens)).mean()
            x = layer.shrink(middle)
            measures[f"nonzeros_{k}"] = (x != 0).float().mean()
        return measures


def coding_rate(w: Tensor) -> Tensor:
    """R^c of (..., K, T, p) tokens in K subspaces: sum over k of logdet(I + p / (T eps^2) W'W) / 2, of unit tokens."""
    w = functional.normalize(w, dim=-1)
    tokens, p = w.shape[-2:]
    gram = torch.eye(p, device=w.device) + p / (tokens * DISTORTION) * (w.transpose(-1, -2) @ w)
    rate: Tensor = torch.linalg.slogdet(gram)[1].sum(-1) / 2
    return rate


class WhiteBox(ModuleJob):
    """Digits of 8 x 8 pixels, as 16 patches; each seed draws its training images."""

    Params: ClassVar[type[AnyParams]] = WhiteBoxParams

    def model(self, params: Any) -> nn.Module:
        if params.network == "crate":
            return CRATE(params.width, params.heads, params.layers)
        return ViT(1, 10, size=8, patch=2, width=params.width, heads=params.heads, layers=params.layers)

    def data(self, params: Any, random: Random) -> Data:
        pixels, classes = map(torch.from_numpy, load("digits"))
        order = random.permutation("order", len(pixels)).to(pixels.device)
        x, y = pixels[order].reshape(-1, 1, 8, 8), classes[order]
        return Data(train=(x[:TRAIN], y[:TRAIN]), test=(x[TRAIN:], y[TRAIN:]), classes=10)

    def probe(
        self, params: Any, model: Callable[..., Any], weights: Mapping[str, Tensor], data: Data
    ) -> Mapping[str, Tensor]:
        """`parameters`; of the white-box transformer on test images also `rate_before_K`, `rate_K` (coding rate in the
        subspaces of layer K, before and after its attention) and `nonzeros_K` (share, after the layer).
        """
        count = {"parameters": torch.tensor(float(sum(weight.numel() for weight in weights.values())))}
        return count if params.network == "vit" else count | model(data.test[0], True)
