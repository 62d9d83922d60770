"""The sweep that a researcher would write today: Ray Tune, one model per trial, curves to MLflow.

The work, fixed so that two programs can be timed on the same thing:
  data     MNIST-1D (package `mnist1d`, generated offline), 4,000 train / 1,000 test, 40 inputs, 10 classes
  model    MLP 40-h-h-10, ReLU, PyTorch's default initialisation
  loss     cross-entropy; SGD, learning rate 0.01, momentum 0.9, batch 100 drawn with replacement
  grid     width h in unique(int(geomspace(2, 300, 20)))  x  label noise {0, 0.15}  x  replicates
  noise    with that probability a training label is redrawn uniformly from all 10 classes
  curves   train/test loss and error at 40 log-spaced steps (4 metrics), kept in MLflow (SQLite)

Prints one JSON line: trials, steps, seconds (from the call of fit() to its return), trials_per_s.
Tune is used as its documentation advises for many short trials: actors are reused, one thread a trial,
checkpoints off, no reporting to the console.
"""
import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np


def log_spaced(steps: int, count: int = 40) -> list[int]:
    return sorted({int(round(s)) for s in np.geomspace(1, steps, count)})


def trainable(config):
    import torch
    from mnist1d.data import get_dataset_args, make_dataset
    from ray import tune

    torch.set_num_threads(1)
    cache = os.path.join(tempfile.gettempdir(), "mnist1d-peer.npz")
    if os.path.exists(cache):
        data = np.load(cache)
    else:
        data = make_dataset(get_dataset_args())
    x, y = (torch.tensor(data[k]) for k in ("x", "y"))
    xt, yt = (torch.tensor(data[k]) for k in ("x_test", "y_test"))
    x, xt = x.float(), xt.float()
    g = torch.Generator().manual_seed(config["replicate"])
    torch.manual_seed(config["replicate"])
    y = y.clone()
    hit = torch.rand(len(y), generator=g) < config["label_noise"]
    y[hit] = torch.randint(0, 10, (int(hit.sum()),), generator=g)
    h = config["width"]
    model = torch.nn.Sequential(
        torch.nn.Linear(40, h), torch.nn.ReLU(), torch.nn.Linear(h, h), torch.nn.ReLU(), torch.nn.Linear(h, 10)
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_of = torch.nn.functional.cross_entropy
    report_at = set(log_spaced(config["steps"]))
    for step in range(1, config["steps"] + 1):
        i = torch.randint(0, len(y), (100,), generator=g)
        loss = loss_of(model(x[i]), y[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in report_at:
            with torch.no_grad():
                a, b = model(x), model(xt)
                tune.report({
                    "step": step,
                    "train_loss": float(loss_of(a, y)), "train_error": float((a.argmax(1) != y).float().mean()),
                    "test_loss": float(loss_of(b, yt)), "test_error": float((b.argmax(1) != yt).float().mean()),
                })


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--replicates", type=int, default=3)
    p.add_argument("--no-mlflow", action="store_true")
    a = p.parse_args()

    import ray
    from mnist1d.data import get_dataset_args, make_dataset
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    data = make_dataset(get_dataset_args())
    np.savez(os.path.join(tempfile.gettempdir(), "mnist1d-peer.npz"), **{k: data[k] for k in ("x", "y", "x_test", "y_test")})
    widths = sorted({int(w) for w in np.geomspace(2, 300, 20)})
    here = tempfile.mkdtemp()
    callbacks = [] if a.no_mlflow else [
        MLflowLoggerCallback(tracking_uri=f"sqlite:///{here}/mlflow.db", experiment_name="peer")
    ]
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        trainable,
        param_space={
            "width": tune.grid_search(widths),
            "label_noise": tune.grid_search([0.0, 0.15]),
            "replicate": tune.grid_search(list(range(a.replicates))),
            "steps": a.steps,
        },
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=os.cpu_count()),
        run_config=tune.RunConfig(storage_path=here, name="peer", verbose=0, callbacks=callbacks),
    )
    began = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - began
    assert results.num_errors == 0
    print(json.dumps({
        "peer": "ray-tune", "trials": len(results), "steps": a.steps, "seconds": round(seconds, 2),
        "trials_per_s": round(len(results) / seconds, 3), "mlflow": not a.no_mlflow,
    }))


if __name__ == "__main__":
    main()
