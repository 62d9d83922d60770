"""The peak memory of packs of linear models. No torch here.

Each term is a tensor of `designs.py`, `pack.py` or `block.py`: see `jobs.packed.memory`. Most of it is held while the
problems are set up: the singular vectors are needed once.

Symbols: N examples, D inputs, P features, R = min(N, P), S problems.
"""

from __future__ import annotations

from jobs.packed.cost import CACHE_BYTES
from jobs.packed.memory import NORMAL_BYTES, BlockBytes, pack_bytes
from jobs.ridge.cost import GPU_BLOCK_BYTES, problem_bytes
from jobs.ridge.params import RidgeParams

DRAWN_BYTES = 64 << 20
"""Size of the problems that are drawn and decomposed at once."""


def drawn_at_once(params: RidgeParams, examples: int, features: int) -> int:
    """How many problems of this shape are drawn and decomposed together."""
    dense = params.design in ("relu", "fourier")
    each = 8 * (examples * (params.drawn + 2 * features) + dense * features * (params.inputs + 3 * features))
    return max(1, DRAWN_BYTES // each)


def ridge_bytes(params: RidgeParams, *, extent: tuple[int, ...], models: int, device: str) -> float:
    """Peak bytes of a pack of linear models padded to `extent` = (examples, features), each on data of its own."""
    n, p = extent
    sizes = _Sizes(params, n, p)
    at_once = drawn_at_once(params, n, p)
    if not params.iterative:
        first = min(models, at_once)
        peak = max(sizes.drawing(first), first * sizes.solving)
        if models > at_once:  # the problems before are there while the next are drawn
            peak = max(peak, at_once * sizes.problem + sizes.drawing(min(models - at_once, at_once)))
        return peak
    dense, wide = params.design in ("relu", "fourier"), params.fitted > params.sample_count
    room = CACHE_BYTES if device.startswith("cpu") else GPU_BLOCK_BYTES
    per_block = max(1, int(room // (problem_bytes(n, p, dense=dense, wide=wide) + 8 * p)))

    def block(count: int) -> BlockBytes:
        last = min(count, at_once)
        setup = max((count - last) * sizes.problem + sizes.drawing(last), count * sizes.joining)
        held = count * sizes.held(wide=wide)
        return BlockBytes(held=held, setup=max(setup, held), work=count * sizes.work(dense=dense))

    return pack_bytes(models, per_block, block)


class _Sizes:
    """Bytes of one problem."""

    def __init__(self, params: RidgeParams, n: int, p: int) -> None:
        self.number = number = 8.0 if params.precision == "float64" else 4.0
        self.n, self.p = n, p
        d, r = params.inputs, min(n, p)
        inputs = 8.0 * n * params.drawn
        dense = params.design in ("relu", "fourier")
        own = dense or params.fitted != params.drawn
        vectors = r * (n + p + 1)
        self.moment = moment = p * p if dense else p
        self.problem = number * (n * p + vectors + moment + 2 * p + n)
        """Kept of a problem that was drawn."""
        self.inputs, self.weights = n * params.drawn, p * d * dense
        features = 8.0 * n * p if own else 0.0
        weights = {"relu": 16.0, "fourier": 8.0}.get(params.design, 0.0) * p * d
        moments = inputs + features + weights + {"relu": 5, "fourier": 6}.get(params.design, 0) * 8.0 * p * p
        decomposed = (features if own else inputs) + 8.0 * (vectors + moment * dense)
        if number == 4:
            decomposed += self.problem
        self.decomposing = max(moments, decomposed)
        """At its peak after its inputs and the weights of its features were drawn."""
        first = number * (n * p + vectors + moment)
        if not own and number == 8:
            first = inputs + 8.0 * vectors
        joined = number * (n * p + moment + 3 * p)
        self.joining = first + number * n * p + joined
        """While problems are put into common tensors, divided by the root of N."""
        self.solving = first + joined + number * max(n * p + (moment if dense else 0), p * r) + number * 3 * (n + p)
        """While the solution and its metrics are computed."""

    def drawing(self, count: int) -> float:
        """At the peak of drawing and decomposing so many problems, whose entries have common places."""
        inputs = (NORMAL_BYTES * count + 8.0) * self.inputs
        weights = 8.0 * count * self.inputs + (NORMAL_BYTES * count + 8.0) * self.weights
        return max(inputs, weights, count * self.decomposing)

    def held(self, *, wide: bool) -> float:
        """Bytes that a block holds of it."""
        gram = 0 if wide else self.p * self.p + self.p
        return self.number * (self.n * self.p + self.n + self.moment + gram + 6 * self.p)

    def work(self, *, dense: bool) -> float:
        """Bytes of a step or a measurement."""
        return self.number * (self.n + (5 if dense else 3) * self.p + 4 * min(self.n, self.p))
