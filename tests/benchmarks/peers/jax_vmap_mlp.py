"""The perceptron of `bench_module.py` in JAX by hand: `vmap` over the models, `jit`, compilation included.

The same work: data, 40-w-w-10, SGD with momentum, batches of 100 in a new order every epoch, losses and accuracies of
both parts at the report steps. One process, one thread, no tracking.

Needs `jax`, in an environment of its own. Prints one JSON line.
"""

import argparse
import json
import os
import time

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--width", type=int, default=64)
p.add_argument("--models", type=int, default=32)
p.add_argument("--reports", required=True, help="steps at which the models are measured, with commas")
a = p.parse_args()
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

TRAIN, TEST, BATCH = 4000, 1000, 100
reports = [int(step) for step in a.reports.split(",")]


def dense(key, i, o):
    k1, k2 = jax.random.split(key)
    b = i**-0.5
    return jax.random.uniform(k1, (i, o), minval=-b, maxval=b), jax.random.uniform(k2, (o,), minval=-b, maxval=b)


@jax.jit
@jax.vmap
def start(key):
    k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
    ps = [dense(k1, 40, a.width), dense(k2, a.width, a.width), dense(k3, a.width, 10)]
    x, y = jax.random.normal(k4, (TRAIN + TEST, 40)), jax.random.randint(k5, (TRAIN + TEST,), 0, 10)
    return ps, jax.tree.map(jnp.zeros_like, ps), x, y, k6


def logits(ps, x):
    for w, b in ps[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = ps[-1]
    return x @ w + b


def nll(out, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))


@jax.jit
def advance(ps, m, x, y, keys, order, first, last):
    def step(at, carry):
        ps, m, order = carry
        place = at % (TRAIN // BATCH)

        def drawn():
            return jax.vmap(lambda k: jax.random.permutation(jax.random.fold_in(k, at), TRAIN))(keys)

        order = jax.lax.cond(place == 0, drawn, lambda: order)

        def one(ps, m, x, y, order):
            rows = jax.lax.dynamic_slice(order, (place * BATCH,), (BATCH,))
            g = jax.grad(lambda ps: nll(logits(ps, x[rows]), y[rows]))(ps)
            m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
            return jax.tree.map(lambda p, m: p - 0.01 * m, ps, m), m

        ps, m = jax.vmap(one)(ps, m, x, y, order)
        return ps, m, order

    return jax.lax.fori_loop(first, last, step, (ps, m, order))


@jax.jit
@jax.vmap
def measure(ps, x, y):
    parts = [(logits(ps, x[s]), y[s]) for s in (slice(0, TRAIN), slice(TRAIN, None))]
    return [(nll(out, labels), jnp.mean(out.argmax(1) == labels)) for out, labels in parts]


began, cpu = time.perf_counter(), time.process_time()
ps, m, x, y, keys = start(jax.random.split(jax.random.PRNGKey(1), a.models))
order, done = jnp.zeros((a.models, TRAIN), jnp.int32), 0
compiled = 0.0
for step in reports:
    ps, m, order = advance(ps, m, x, y, keys, order, done, step)
    measured = jax.device_get(measure(ps, x, y))
    done = step
    compiled = compiled or time.process_time() - cpu
out = {"peer": "jax-vmap-mlp", "cpu_s": time.process_time() - cpu, "seconds": time.perf_counter() - began}
print(json.dumps({**out, "first_report_cpu_s": compiled, "train_loss": float(measured[0][0].mean())}))
