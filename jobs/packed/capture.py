"""A training step that is repeated: on a GPU it is captured once as a CUDA graph and replayed.

A step of a pack is some dozens of small kernels. Launched one by one, they cost more time than they compute for any
pack that does not fill the GPU; a graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jobs.packed.block import weakly

ENABLED = True
"""Whether graphs are captured at all; a benchmark compares both."""
_WARM_UP = 3
"""Steps that run one kernel at a time before the capture: libraries initialise and autograd allocates in them."""


class Step:
    """Calls `work` once per training step; on a GPU, later calls replay the captured kernels.

    `work` must touch the same memory at every call, read nothing back to the host and depend on no number of the host
    that changes. A `Step` is made anew whenever the pack's tensors are.

    Args:
        work: one training step, given the tensors of this step; those keep their shapes and types. A method of the
            object that holds this.
        device: where `work` runs.
    """

    def __init__(self, work: Callable[..., None], device: torch.device) -> None:
        self._work = weakly(work)
        self._captures = ENABLED and device.type == "cuda"
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> None:
        """Train one step on these inputs."""
        if not self._captures:
            self._work(*inputs)
        elif self._graph is not None:
            self._replay(inputs)
        elif self._calls < _WARM_UP:
            self._calls += 1
            self._warm_up(inputs)
        else:
            self._capture(inputs)
            self._replay(inputs)

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        """A step on a stream of its own, as captures require of autograd."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._work(*inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._work(*self._inputs)
        self._graph = graph

    def _replay(self, inputs: tuple[Tensor, ...]) -> None:
        assert self._graph is not None
        for held, value in zip(self._inputs, inputs, strict=True):
            held.copy_(value)
        self._graph.replay()
