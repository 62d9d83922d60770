"""One Triton program per model: a perceptron with two hidden layers is trained for many steps by one kernel.

A step of a small model is some hundred thousand multiply-adds; launched operation by operation, its time is that of the
launches, of reading and writing every activation, and of waiting for the slowest model of each operation. Here the
activations stay on the chip, and so do the parameters and the optimiser's state where they fit into registers.

Import this module on demand: it needs Triton, which the CPU builds of PyTorch do not bring.

Shapes: D inputs, H padded width, O outputs, B batch. Sizes with `_PAD` are powers of two, at least 16, as blocks of
Triton are; what is beyond the real sizes is zero and stays zero.
"""

import triton
import triton.language as tl


@triton.jit
def _relu(z):
    # Keeps NaN, unlike tl.maximum: a model that has diverged must be seen to have diverged.
    return tl.where(z <= 0.0, 0.0, z)


@triton.jit
def _behind_relu(delta, activation):
    return tl.where(activation <= 0.0, 0.0, delta)


@triton.jit
def _loss_gradient(z, target, scale, inside, held, o, CROSS_ENTROPY: tl.constexpr, REGRESSION: tl.constexpr):
    """d(loss)/d(output) of each example, zero for examples and outputs that do not exist."""
    if CROSS_ENTROPY:
        z = tl.where(inside[None, :], z, float("-inf"))
        e = tl.exp(z - tl.max(z, 1)[:, None])
        z = e / tl.sum(e, 1)[:, None]
    if REGRESSION:
        delta = z - target[:, None]
    else:
        delta = z - tl.where(o[None, :] == target[:, None], 1.0, 0.0)
    return tl.where(held[:, None] & inside[None, :], delta * scale[:, None], 0.0)


@triton.jit
def _load(weights, first, second, base, at, inside, ADAM: tl.constexpr):
    """A layer, which begins at `base`, and its optimiser's state."""
    w = tl.load(weights + base + at, mask=inside, other=0.0)
    s = tl.load(first + base + at, mask=inside, other=0.0)
    if ADAM:
        t = tl.load(second + base + at, mask=inside, other=0.0)
    else:
        t = s
    return w, s, t


@triton.jit
def _store(weights, first, second, base, at, inside, w, s, t, ADAM: tl.constexpr):
    tl.store(weights + base + at, w, mask=inside)
    tl.store(first + base + at, s, mask=inside)
    if ADAM:
        tl.store(second + base + at, t, mask=inside)


@triton.jit
def _updated(w, s, t, g, rate, decay, a, b, c, e, f, ADAM: tl.constexpr, DECOUPLED: tl.constexpr):
    """The layer and its state after one step with the gradient g; `train` explains the numbers."""
    if ADAM:
        if DECOUPLED:
            w = w * decay
        else:
            g = g + w * decay
        s = s + (g - s) * a
        t = t * b + g * g * c
        w = w - s / (tl.sqrt_rn(t) * e + f) * rate
    else:
        s = s * a + g + w * decay
        w = w - s
    return w, s, t


@triton.jit(
    do_not_specialize=[
        "models",
        "steps",
        "batch",
        "examples",
        "targets",
        "rows_k",
        "rows_m",
        "scales_k",
        "scales_m",
        "scales_b",
    ]
)
def train(
    weights,
    first,
    second,
    x,
    y,
    source,
    rows,
    scales,
    rates,
    decays,
    corrections,
    models,
    steps,
    batch,
    examples,
    targets,
    rows_k,
    rows_m,
    scales_k,
    scales_m,
    scales_b,
    a,
    b,
    c,
    D: tl.constexpr,
    H: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    D_PAD: tl.constexpr,
    D_REST: tl.constexpr,
    H_PAD: tl.constexpr,
    O_PAD: tl.constexpr,
    TILE: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    REGRESSION: tl.constexpr,
    ADAM: tl.constexpr,
    DECOUPLED: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Train the model of this program for `steps` steps.

    Args:
        weights: parameters, laid out as by `FlatParameters`: of all models (D, H), (1, H), (H, H), (1, H), (O, H) and
            (O, 1), one layer after the other.
        first: the velocity, or Adam's first moment; laid out as `weights`.
        second: Adam's second moment.
        x: (S, examples, D) inputs of S data sets.
        y: (M, targets) targets of each model.
        source: (M,) the data set of each model.
        rows: (K, M, B) the examples of each step, with strides rows_k, rows_m and 1.
        scales: (K, M, B) factors of the loss's gradient, with strides scales_k, scales_m and scales_b.
        rates: (M,) Adam's learning rates.
        decays: (M,) what a parameter is multiplied by (AdamW), or what of it is added to the gradient.
        corrections: (K, 2) Adam's factor and summand of the denominator.
        models, steps, batch: M, K, B.
        a: momentum; or 1 - beta1.
        b, c: beta2 and 1 - beta2.
        TILE: examples at once.
        RESIDENT: whether parameters and state stay in registers; they are read and written at every step otherwise.
        PRECISION: of matrix products, as in `tl.dot`.
    """
    m = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PAD)
    h = tl.arange(0, H_PAD)
    o = tl.arange(0, O_PAD)
    tile = tl.arange(0, TILE)
    d_in, h_in, o_in = d < D, h < H, o < O
    # Offsets within a layer are small; where a layer of this model begins is one number for all threads.
    at_1, in_1 = d[:, None] * H + h[None, :], d_in[:, None] & h_in[None, :]
    at_3, in_3 = h[:, None] * H + h[None, :], h_in[:, None] & h_in[None, :]
    at_5, in_5 = o[:, None] * H + h[None, :], o_in[:, None] & h_in[None, :]
    all_models = tl.cast(models, tl.int64)
    base_1 = m * (D * H)
    base_2 = all_models * (D * H) + m * H
    base_3 = all_models * (D * H + H) + m * (H * H)
    base_4 = all_models * (D * H + H + H * H) + m * H
    base_5 = all_models * (D * H + H + H * H + H) + m * (O * H)
    base_6 = all_models * (D * H + H + H * H + H + O * H) + m * O
    if D_REST:
        # The inputs beyond a power of two.
        r = D_PAD + tl.arange(0, D_REST)
        r_in = r < D
        base_7 = base_1
        at_7, in_7 = r[:, None] * H + h[None, :], r_in[:, None] & h_in[None, :]
    x += tl.load(source + m) * examples * D
    y += m * targets
    rows += m * rows_m
    scales += m * scales_m
    decay = tl.load(decays + m)
    if ADAM:
        rate = tl.load(rates + m)
    else:
        rate = 0.0
    e = 0.0
    f = 0.0
    if RESIDENT:
        w1, s1, t1 = _load(weights, first, second, base_1, at_1, in_1, ADAM)
        w2, s2, t2 = _load(weights, first, second, base_2, h, h_in, ADAM)
        w3, s3, t3 = _load(weights, first, second, base_3, at_3, in_3, ADAM)
        w4, s4, t4 = _load(weights, first, second, base_4, h, h_in, ADAM)
        w5, s5, t5 = _load(weights, first, second, base_5, at_5, in_5, ADAM)
        w6, s6, t6 = _load(weights, first, second, base_6, o, o_in, ADAM)
        if D_REST:
            w7, s7, t7 = _load(weights, first, second, base_7, at_7, in_7, ADAM)
    for k in range(steps):
        if not RESIDENT:
            w1 = tl.load(weights + base_1 + at_1, mask=in_1, other=0.0)
            w2 = tl.load(weights + base_2 + h, mask=h_in, other=0.0)
            w3 = tl.load(weights + base_3 + at_3, mask=in_3, other=0.0)
            w4 = tl.load(weights + base_4 + h, mask=h_in, other=0.0)
            w5 = tl.load(weights + base_5 + at_5, mask=in_5, other=0.0)
            w6 = tl.load(weights + base_6 + o, mask=o_in, other=0.0)
            if D_REST:
                w7 = tl.load(weights + base_7 + at_7, mask=in_7, other=0.0)
        g1 = tl.zeros((D_PAD, H_PAD), dtype=tl.float32)
        g2 = tl.zeros((H_PAD,), dtype=tl.float32)
        g3 = tl.zeros((H_PAD, H_PAD), dtype=tl.float32)
        g4 = tl.zeros((H_PAD,), dtype=tl.float32)
        g5 = tl.zeros((O_PAD, H_PAD), dtype=tl.float32)
        g6 = tl.zeros((O_PAD,), dtype=tl.float32)
        if D_REST:
            g7 = tl.zeros((D_REST, H_PAD), dtype=tl.float32)
        for start in range(0, batch, TILE):
            place = start + tile
            held = place < batch
            row = tl.load(rows + place, mask=held, other=0)
            target = tl.load(y + row, mask=held, other=0)
            scale = tl.load(scales + place * scales_b, mask=held, other=0.0)
            x_at = x + (row * D)[:, None]
            value = tl.load(x_at + d[None, :], mask=held[:, None] & d_in[None, :], other=0.0)
            z = tl.dot(value, w1, input_precision=PRECISION)
            if D_REST:
                rest = tl.load(x_at + r[None, :], mask=held[:, None] & r_in[None, :], other=0.0)
                z = tl.dot(rest, w7, acc=z, input_precision=PRECISION)
            h1 = _relu(z + w2[None, :])
            h2 = _relu(tl.dot(h1, w3, input_precision=PRECISION) + w4[None, :])
            z = tl.dot(h2, tl.trans(w5), input_precision=PRECISION) + w6[None, :]
            delta = _loss_gradient(z, target, scale, o_in, held, o, CROSS_ENTROPY, REGRESSION)
            g5 = tl.dot(tl.trans(delta), h2, acc=g5, input_precision=PRECISION)
            g6 += tl.sum(delta, 0)
            delta = _behind_relu(tl.dot(delta, w5, input_precision=PRECISION), h2)
            g3 = tl.dot(tl.trans(h1), delta, acc=g3, input_precision=PRECISION)
            g4 += tl.sum(delta, 0)
            delta = _behind_relu(tl.dot(delta, tl.trans(w3), input_precision=PRECISION), h1)
            g1 = tl.dot(tl.trans(value), delta, acc=g1, input_precision=PRECISION)
            g2 += tl.sum(delta, 0)
            if D_REST:
                g7 = tl.dot(tl.trans(rest), delta, acc=g7, input_precision=PRECISION)
        if ADAM:
            e = tl.load(corrections + 2 * k)
            f = tl.load(corrections + 2 * k + 1)
        if not RESIDENT:
            # The threads that store a value may be others than those that have loaded it.
            tl.debug_barrier()
            w1, s1, t1 = _load(weights, first, second, base_1, at_1, in_1, ADAM)
            w2, s2, t2 = _load(weights, first, second, base_2, h, h_in, ADAM)
            w3, s3, t3 = _load(weights, first, second, base_3, at_3, in_3, ADAM)
            w4, s4, t4 = _load(weights, first, second, base_4, h, h_in, ADAM)
            w5, s5, t5 = _load(weights, first, second, base_5, at_5, in_5, ADAM)
            w6, s6, t6 = _load(weights, first, second, base_6, o, o_in, ADAM)
            if D_REST:
                w7, s7, t7 = _load(weights, first, second, base_7, at_7, in_7, ADAM)
        w1, s1, t1 = _updated(w1, s1, t1, g1, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        w2, s2, t2 = _updated(w2, s2, t2, g2, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        w3, s3, t3 = _updated(w3, s3, t3, g3, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        w4, s4, t4 = _updated(w4, s4, t4, g4, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        w5, s5, t5 = _updated(w5, s5, t5, g5, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        w6, s6, t6 = _updated(w6, s6, t6, g6, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        if D_REST:
            w7, s7, t7 = _updated(w7, s7, t7, g7, rate, decay, a, b, c, e, f, ADAM, DECOUPLED)
        if not RESIDENT:
            _store(weights, first, second, base_1, at_1, in_1, w1, s1, t1, ADAM)
            _store(weights, first, second, base_2, h, h_in, w2, s2, t2, ADAM)
            _store(weights, first, second, base_3, at_3, in_3, w3, s3, t3, ADAM)
            _store(weights, first, second, base_4, h, h_in, w4, s4, t4, ADAM)
            _store(weights, first, second, base_5, at_5, in_5, w5, s5, t5, ADAM)
            _store(weights, first, second, base_6, o, o_in, w6, s6, t6, ADAM)
            if D_REST:
                _store(weights, first, second, base_7, at_7, in_7, w7, s7, t7, ADAM)
            tl.debug_barrier()
        rows += rows_k
        scales += scales_k
    if RESIDENT:
        _store(weights, first, second, base_1, at_1, in_1, w1, s1, t1, ADAM)
        _store(weights, first, second, base_2, h, h_in, w2, s2, t2, ADAM)
        _store(weights, first, second, base_3, at_3, in_3, w3, s3, t3, ADAM)
        _store(weights, first, second, base_4, h, h_in, w4, s4, t4, ADAM)
        _store(weights, first, second, base_5, at_5, in_5, w5, s5, t5, ADAM)
        _store(weights, first, second, base_6, o, o_in, w6, s6, t6, ADAM)
        if D_REST:
            _store(weights, first, second, base_7, at_7, in_7, w7, s7, t7, ADAM)
