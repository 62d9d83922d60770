"""Grokking as a plain PyTorch program: one model at a time, autograd, torch.optim.AdamW, one process a core.

Trains `--models` networks one after another on one thread and prints one JSON line. Full batch, mean
over the batch, the same operation, model size, steps and measurements as the packed benchmark: train and
test loss and accuracy at log-spaced steps.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Quadratic(nn.Module):
    """W2 (W1 [onehot a, onehot b])^2."""

    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.p = p
        self.first, self.second = nn.Linear(2 * p, width, bias=False), nn.Linear(width, p, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.5 / (2 * width) ** (1 / 3))

    def prepare(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.one_hot(a, self.p), functional.one_hot(b, self.p)], 1).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) ** 2)


class Transformer(nn.Module):
    """One layer, four heads, no layer norm, learned positions, tokens a, b, "=" (Nanda et al. 2023)."""

    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.p, self.heads = p, 4
        self.tokens = nn.Parameter(torch.randn(p + 1, width) / width**0.5)
        self.positions = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.readout = nn.Linear(width, p, bias=False)

    def prepare(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a, b, torch.full_like(a, self.p)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens[x] + self.positions
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        h = h + self.down(self.up(h).relu())
        return self.readout(h[:, -1])


def train(model: nn.Module, p: int, steps: int, points: int, seed: int, loss: str) -> float:
    """One training; the final test accuracy."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    y, order = (a + b) % p, torch.randperm(p * p, generator=generator)
    half = len(order) // 2
    inputs = model.prepare(a, b)
    x, x_test, y, y_test = inputs[order[:half]], inputs[order[half:]], y[order[:half]], y[order[half:]]
    target = functional.one_hot(y, p).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01 if loss == "squared" else 0.001, weight_decay=1.0,
                                  betas=(0.9, 0.98))
    report_at = {int(round(s)) for s in np.geomspace(1, steps, points)}
    accuracy = 0.0
    for step in range(1, steps + 1):
        out = model(x)
        value = functional.cross_entropy(out, y) if loss != "squared" else (out - target).square().sum(1).mean() / 2
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        if step in report_at:
            with torch.no_grad():
                train_out, test_out = model(x), model(x_test)
                float(functional.cross_entropy(train_out, y)), float(functional.cross_entropy(test_out, y_test))
                float((train_out.argmax(1) == y).float().mean())
                accuracy = float((test_out.argmax(1) == y_test).float().mean())
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("quadratic_mlp", "transformer"), default="quadratic_mlp")
    parser.add_argument("--modulus", type=int, default=31)
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    # What converged weights would otherwise cost both programs; the packed one sets it too.
    torch.set_flush_denormal(True)
    kind, loss = (Quadratic, "squared") if a.model == "quadratic_mlp" else (Transformer, "cross_entropy")
    torch.manual_seed(a.seed)
    train(kind(a.modulus, a.width), a.modulus, 5, 2, a.seed, loss)
    began = time.perf_counter()
    final = [train(kind(a.modulus, a.width), a.modulus, a.steps, a.points, a.seed + i, loss) for i in range(a.models)]
    seconds = time.perf_counter() - began
    print(json.dumps({"peer": "plain-pytorch", "models": a.models, "seconds": seconds, "test_accuracy": final}))


if __name__ == "__main__":
    main()
