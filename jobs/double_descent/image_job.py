"""Double descent of convolutional networks on images: Nakkiran et al. 2019 (arXiv 1912.02292).

Their protocol: a pre-activation ResNet18 or a 5-layer CNN of width k (channels k, 2k, 4k, 8k), CIFAR-10 or CIFAR-100,
padded random crop and horizontal flip, batches of 128, cross-entropy without weight decay; Adam at 1e-4 for 4,000
epochs, or SGD without momentum at 0.1 with a rate that falls as 1 / sqrt(1 + step // 512); a noisy label is one of the
wrong classes (`noise_convention: incorrect`), replaced once and for good. Also the MNIST-1D CNN of Greydanus 2020.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar

from jobs.double_descent import memory, networks
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DescentJob
from jobs.job import AnyParams, Cost, Member, Report


class ImageDoubleDescent(DescentJob[ImageParams]):
    """Test error of convolutional networks."""

    Params: ClassVar[type[AnyParams]] = ImageParams

    def pack_key(self, params: ImageParams) -> Hashable:
        # Batch statistics need batches of one size.
        return (*self.shared(params), params.batch, params.batch == params.used)

    def trained_parameters(self, params: ImageParams) -> int:
        return networks.parameters(params.layers, params.width)

    def extent(self, params: ImageParams) -> tuple[int, ...]:
        return (params.width,)

    def cost(self, params: ImageParams, *, extent: tuple[int, ...], models: int) -> Cost:
        p, steps, reports = params, params.horizon, self.report_steps(params)
        layers, (width,), (channels, *sides) = p.layers, extent, p.shape
        macs = networks.multiply_adds(layers, width, sides)
        size, live = networks.parameters(layers, width), networks.activations(layers, width, sides)
        pixels = channels * sides[0] * sides[1]
        evaluated = min(p.train_evaluated or p.used, p.used) + p.tested
        adaptive = p.optimiser != "sgd"
        blocks, gpu_blocks = (-(-models // networks.models_per_block(p.model, width, d)) for d in ("cpu", "cuda"))
        of_block = steps * 12 * len(layers) + reports * 10 * len(layers)
        training = steps * (p.batch * (8 * live + 20 * pixels) + size * (15 if adaptive else 6))
        return Cost(
            launches=blocks * of_block,
            gpu_launches=gpu_blocks * of_block,
            matmul_flop=2.0 * models * macs * (3 * steps * p.batch + reports * evaluated),
            element_visits=float(models) * (training + reports * evaluated * (4 * live + 6 * pixels)),
            memory_bytes=self.memory_bytes(p, extent=extent, models=models, device="cpu"),
        )

    def memory_bytes(self, params: ImageParams, *, extent: tuple[int, ...], models: int, device: str) -> float:
        return memory.image_bytes(params, self.schedule(params), width=extent[0], models=models, device=device)

    def train(self, pack: Sequence[Member[ImageParams]], *, device: str) -> Iterator[Report]:
        from jobs.double_descent.image_pack import train

        return train(pack, device)
