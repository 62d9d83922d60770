"""The protocols of double-descent papers as their authors train them, in plain PyTorch, float32.

Written anew from the papers and the repositories that configs/README.md names. Nothing here is shared with `jobs`:
subsets of the data, label noise, initial weights, batches and crops are drawn from torch's generator, which the caller
seeds. Sizes are arguments; what is not an argument is the authors' choice. Networks without batch normalisation are
trained beside each other by `torch.func.vmap`, each on data of its own; SGD and the losses act on each of them as if it
were alone.

Shapes: S seeds, N training examples of each, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from authors_protocols import Ensemble, shuffled
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Examples:
    """A pool of training examples, of which each seed has a random subset, and the test set of all."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Errors:
    """Shares of wrong classes at the end of the training: on its own (noisy) labels, and on the test set."""

    train: float
    test: float


def redrawn(y: Tensor, rate: float) -> Tensor:
    """Each label, with this probability, one of all ten classes (Greydanus 2020)."""
    return torch.where(torch.rand(y.shape) < rate, torch.randint(0, 10, y.shape), y)


def incorrect(y: Tensor, rate: float) -> Tensor:
    """Each label, with this probability, one of the nine wrong classes (Nakkiran et al. 2019)."""
    return torch.where(torch.rand(y.shape) < rate, (y + torch.randint(1, 10, y.shape)) % 10, y)


def _subsets(pool: int, count: int, seeds: int) -> Tensor:
    """(S, N) the rows of each seed."""
    return shuffled(torch.arange(pool), seeds)[:, :count]


def _train_epochs(
    networks: Ensemble,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    *,
    epochs: int,
    batch: int,
    begin: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Epochs of shuffled batches, the last of which may be smaller. `loss` is the sum over seeds of the mean loss."""
    seeds, count = x.shape[:2]
    at = torch.arange(seeds)[:, None]
    for epoch in range(epochs):
        begin(epoch)
        for rows in shuffled(torch.arange(count), seeds).split(batch, 1):
            optimiser.zero_grad()
            loss(networks(x[at, rows]), target[at, rows]).backward()
            optimiser.step()


def _errors(networks: Ensemble, x: Tensor, y: Tensor, examples: Examples) -> list[Errors]:
    with torch.no_grad():
        train = (networks(x).argmax(2) != y).double().mean(1)
        tested = networks(examples.x_test.expand(len(x), *examples.x_test.shape))
        test = (tested.argmax(2) != examples.y_test).double().mean(1)
    return [Errors(*pair) for pair in zip(train.tolist(), test.tolist(), strict=True)]


# Belkin et al. 2019 as in songweige/double-descent-pytorch, mnist_double_descent.py, without weight reuse


def belkin_network(hidden: int) -> nn.Module:
    """Pixels from 0 to 1; normal weights, PyTorch's biases."""
    network = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    for layer in (network[0], network[2]):
        nn.init.normal_(layer.weight, mean=0.0, std=0.1)
    return network


def belkin(
    seeds: int, examples: Examples, *, hidden: int, count: int, epochs: int, decay_epochs: int, batch: int
) -> list[Errors]:
    """The rate falls before every `decay_epochs`-th epoch, in networks with at most `count` * 10 parameters."""
    rows = _subsets(len(examples.x), count, seeds)
    x, y = examples.x[rows], examples.y[rows]
    networks = Ensemble([belkin_network(hidden) for _ in range(seeds)])
    optimiser = torch.optim.SGD(networks.parameters.values(), lr=0.01, momentum=0.95)
    parameters = sum(p.numel() for p in belkin_network(hidden).parameters())

    def begin(epoch: int) -> None:
        if (epoch + 1) % decay_epochs == 0 and parameters <= 10 * count:
            optimiser.param_groups[0]["lr"] *= 0.9

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(outputs, target) * seeds

    target = functional.one_hot(y, 10).float()
    _train_epochs(networks, optimiser, loss, x, target, epochs=epochs, batch=batch, begin=begin)
    return _errors(networks, x, y, examples)


# Greydanus 2020: greydanus/mnist1d, notebooks/deep-double-descent.ipynb


def greydanus_mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(40, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def greydanus_cnn(channels: int) -> nn.Module:
    """On inputs (B, 40)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    for into, size in ((1, 5), (channels, 3), (channels, 3)):
        layers += [nn.Conv1d(into, channels, size, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 5, 10))


def greydanus_examples() -> Examples:
    """The package's 4,000 training and 1,000 test examples."""
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    x, x_test = (torch.tensor(data[name].astype("float32")) for name in ("x", "x_test"))
    y, y_test = (torch.tensor(data[name].astype("int64")) for name in ("y", "y_test"))
    return Examples(x=x, y=y, x_test=x_test, y_test=y_test)


def greydanus(
    seeds: int, examples: Examples, *, network: Callable[[int], nn.Module], width: int, count: int, epochs: int
) -> list[Errors]:
    rows = _subsets(len(examples.x), count, seeds)
    x, y = examples.x[rows], redrawn(examples.y[rows], 0.15)
    networks = Ensemble([network(width) for _ in range(seeds)])
    optimiser = torch.optim.SGD(networks.parameters.values(), lr=0.01, momentum=0.9)

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), label.flatten()) * seeds

    _train_epochs(networks, optimiser, loss, x, y, epochs=epochs, batch=100)
    return _errors(networks, x, y, examples)


# Nakkiran et al. 2019 (arXiv 1912.02292): appendix B; the authors' mcnn.py as in MLI-lab/early_stopping_double_descent

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10. Whether the authors normalise is not known."""


def nakkiran_cnn(k: int) -> nn.Module:
    """On images (B, 3, 32, 32)."""
    layers: list[nn.Module] = []
    into = 3
    for out, pool in ((k, 1), (2 * k, 2), (4 * k, 2), (8 * k, 8)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool)]
        into = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * k, 10))


class PreActBlock(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(into)
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if stride != 1 or into != out else None
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active)))) + beside
        return out


def nakkiran_resnet(k: int) -> nn.Module:
    """Pre-activation ResNet18 with channels k, 2k, 4k, 8k, on images (B, 3, 32, 32)."""
    layers: list[nn.Module] = [nn.Conv2d(3, k, 3, padding=1, bias=False)]
    into = k
    for times, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        layers += [PreActBlock(into, times * k, stride), PreActBlock(times * k, times * k, 1)]
        into = times * k
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * k, 10))


def nakkiran(
    seeds: int,
    examples: Examples,
    *,
    network: Callable[[int], nn.Module],
    width: int,
    count: int,
    noise: float,
    steps: int,
    batch: int,
    adam: float = 0.0,
    decay_steps: int = 0,
) -> list[Errors]:
    """Images are uint8. Adam at a constant rate; or (0) SGD at 0.1, which falls every `decay_steps` steps."""
    found = []
    for _ in range(seeds):
        rows = torch.randperm(len(examples.x))[:count]
        x, y = examples.x[rows], incorrect(examples.y[rows], noise)
        padded = functional.pad(x, (4, 4, 4, 4))
        own = network(width)
        optimiser = torch.optim.Adam(own.parameters(), lr=adam) if adam else torch.optim.SGD(own.parameters(), lr=0.1)
        order: list[Tensor] = []
        for step in range(steps):
            order = order or list(torch.randperm(count).split(batch))
            chosen = order.pop(0)
            images = torch.stack([_augmented(padded[row]) for row in chosen.tolist()])
            if not adam:
                optimiser.param_groups[0]["lr"] = 0.1 / math.sqrt(1 + step // decay_steps)
            optimiser.zero_grad()
            functional.cross_entropy(own(_normal(images)), y[chosen]).backward()
            optimiser.step()
        own.eval()
        found.append(Errors(train=_wrong(own, x, y), test=_wrong(own, examples.x_test, examples.y_test)))
    return found


def _augmented(padded: Tensor) -> Tensor:
    """A random crop of 32 x 32 pixels, flipped from left to right or not."""
    down, right = torch.randint(0, 9, (2,)).tolist()
    flip = float(torch.rand(())) < 0.5
    crop = padded[:, down : down + 32, right : right + 32]
    return crop.flip(2) if flip else crop


def _normal(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def _wrong(network: nn.Module, images: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        outputs = torch.cat([network(_normal(part)) for part in images.split(250)])
    return float((outputs.argmax(1) != y).double().mean())
