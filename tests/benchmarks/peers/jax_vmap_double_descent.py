"""The fastest thing that a researcher could write today by hand: JAX, `vmap` over the models of one width.

The same work as ray_tune_double_descent.py (data, model, optimiser, grid, batch, curve steps), one process, no
scheduler and no tracking: a bound for a packed trainer to beat, not a tool that anyone would run a sweep with.
Compilation is inside the time, once per width, as a user would pay it.

Needs `jax` and `mnist1d`, in an environment of their own. Prints one JSON line like the other peer.
"""
import argparse
import functools
import json
import os
import time

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--steps", type=int, default=2000)
p.add_argument("--replicates", type=int, default=3)
p.add_argument("--threads", type=int, default=os.cpu_count())
a = p.parse_args()
if a.threads == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np
from mnist1d.data import get_dataset_args, make_dataset

data = make_dataset(get_dataset_args())
X, XT = (jnp.asarray(data[k], jnp.float32) for k in ("x", "x_test"))
Y, YT = (jnp.asarray(data[k]) for k in ("y", "y_test"))
report_at = sorted({int(round(s)) for s in np.geomspace(1, a.steps, 40)})


def dense(key, i, o):
    k1, k2 = jax.random.split(key)
    b = i**-0.5
    return jax.random.uniform(k1, (i, o), minval=-b, maxval=b), jax.random.uniform(k2, (o,), minval=-b, maxval=b)


def logits(ps, x):
    for w, b in ps[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = ps[-1]
    return x @ w + b


def nll(ps, x, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(ps, x)), y[:, None], 1))


def measure(ps, y):
    return jnp.stack([nll(ps, X, y), jnp.mean(logits(ps, X).argmax(1) != y),
                      nll(ps, XT, YT), jnp.mean(logits(ps, XT).argmax(1) != YT)])


@functools.partial(jax.jit, static_argnums=(1,))
@functools.partial(jax.vmap, in_axes=(0, None, 0))
def start(key, h, noise):
    k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
    ps = [dense(k1, 40, h), dense(k2, h, h), dense(k3, h, 10)]
    y = jnp.where(jax.random.uniform(k4, Y.shape) < noise, jax.random.randint(k5, Y.shape, 0, 10), Y)
    return ps, jax.tree.map(jnp.zeros_like, ps), y, k6


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
def advance(ps, m, y, key, n):
    def body(_, c):
        ps, m, key = c
        key, k = jax.random.split(key)
        i = jax.random.randint(k, (100,), 0, len(Y))
        g = jax.grad(nll)(ps, X[i], y[i])
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
        return jax.tree.map(lambda p, m: p - 0.01 * m, ps, m), m, key
    ps, m, key = jax.lax.fori_loop(0, n, body, (ps, m, key))
    return ps, m, key, measure(ps, y)


began = time.perf_counter()
trials = 0
final = {}
for h in sorted({int(w) for w in np.geomspace(2, 300, 20)}):
    noise = jnp.repeat(jnp.array([0.0, 0.15]), a.replicates)
    keys = jax.random.split(jax.random.PRNGKey(h), len(noise))
    ps, m, y, keys = start(keys, h, noise)
    last = 0
    for step in report_at:
        ps, m, keys, now = advance(ps, m, y, keys, step - last)
        last = step
    final[h] = np.asarray(now)[:, 3].reshape(2, -1).mean(1).round(3).tolist()
    trials += len(noise)
seconds = time.perf_counter() - began
print(json.dumps({"peer": "jax-vmap", "trials": trials, "steps": a.steps, "seconds": round(seconds, 2),
                  "trials_per_s": round(trials / seconds, 3), "threads": a.threads, "test_error": final}))
