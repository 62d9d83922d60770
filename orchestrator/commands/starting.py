"""new and examples: a folder to begin with, and the published sweeps."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from orchestrator.errors import UserError, did_you_mean

SCHEMA = "sweep.schema.json"
_BESIDE_THE_PACKAGE = Path(__file__).parents[1] / "examples"
"""In a wheel (see setup.py)."""
_IN_THE_CHECKOUT = Path(__file__).parents[2] / "configs"

_SWEEP = """\
# yaml-language-server: $schema=sweep.schema.json
# Gradient descent with momentum on a quadratic: it converges below a learning rate that grows with the momentum.
name: {name}
job: train:train                   # the function `train` of train.py, in this folder
axes:
  learning_rate: {{scale: log, from: 0.1, to: 10, points: 16}}
  momentum: {{scale: linear, from: 0, to: 0.9, points: 10}}
fixed:
  steps: 200
replicates: 3                      # seeds of every setting
phases: {{metric: loss, level: 0.01}}
"""
_JOB = '''\
"""What one trial does: replace the body of `train` by your own training."""

import math
import random


def train(*, learning_rate: float = 0.1, momentum: float = 0.0, steps: int = 100, seed, report):
    """The arguments with a default are the parameters; a sweep file that names others is refused."""
    generator = random.Random(seed)  # the same seed gives the same trial
    curvature = generator.uniform(0.8, 1.2)
    weight, velocity = 1.0, 0.0
    for step in range(1, steps + 1):
        velocity = momentum * velocity - learning_rate * curvature * weight
        weight += velocity
        loss = 0.5 * curvature * weight * weight
        if step == steps or step % 10 == 0 or loss > 1e6:
            report(step, loss=min(loss, 1e6))  # any metrics, by name
        if loss > 1e6 or math.isnan(loss):
            break


train.metrics = ("loss",)  # a misspelt metric in the sweep file is then found before anything runs
'''
_MODULE_SWEEP = """\
# yaml-language-server: $schema=sweep.schema.json
# Parity of three bits among 20, learnt by a perceptron: which width and weight decay generalise.
name: {name}
job: my_models:Parity              # the class `Parity` of my_models.py, in this folder
axes:
  width: {{values: [16, 64]}}
  weight_decay: {{scale: log, from: 0.01, to: 1, points: 4}}
fixed:
  bits: 20
  steps: 300
  learning_rate: 0.01
  curve_points: 20
replicates: 2                      # seeds of every setting
phases: {{rule: grokking}}           # or double_descent; or level, with a metric and a level
"""
_MODULE = '''\
"""A torch module that is trained in packs: replace the model and the data by your own."""

from dataclasses import dataclass

from torch import nn

from jobs.module import Data, ModuleJob, ModuleParams, param


class Parity(ModuleJob):
    @dataclass(frozen=True, kw_only=True)
    class Params(ModuleParams):  # optimiser, rate, schedule, batch, noise and steps come with it
        bits: int = param(40, low=3, meaning="input bits")
        width: int = param(100, low=1, meaning="hidden units")

    def model(self, params):
        return nn.Sequential(nn.Linear(params.bits, params.width), nn.ReLU(), nn.Linear(params.width, 2))

    def data(self, params, random):  # drawn from `random`: each seed has its own
        x = random.bits("x", 4000, params.bits)
        y = x[:, :3].sum(1) % 2
        return Data(train=(x[:1000].float(), y[:1000]), test=(x[1000:].float(), y[1000:]))
'''
_IGNORED = """\
# What `ray job submit --working-dir .` leaves at home (.gitignore is honoured too). Ray refuses a folder of more than
# 100 MiB, and a record grows: keep data and results out of it, or name them here.
.git/
.venv/
__pycache__/
/phasefront-out/
/mlruns/
/mlartifacts/
*.db
*.db-*
"""


def new(arguments: argparse.Namespace) -> int:
    """Make a folder with a sweep file, a job, a `.rayignore` and the schema for editors; never over an existing one."""
    from orchestrator.sweep.schema import main_text

    folder = Path(arguments.name)
    name = folder.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
        rule = "a name has letters, digits, '_', '-' and '.', and begins with a letter or digit"
        step = f"phasefront new {re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.') or 'my_sweep'}"
        raise UserError(rule, place="NAME", value=str(folder), next_step=step)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            "is there already, and is not overwritten", place=str(folder), next_step=f"phasefront new {name}-2"
        ) from None
    except OSError as error:
        rule = f"cannot be made: {error.strerror}"
        raise UserError(rule, place=str(folder), next_step="choose a folder that you may write") from error
    files = {
        f"{name}.yaml": (_MODULE_SWEEP if arguments.module else _SWEEP).format(name=name),
        **({"my_models.py": _MODULE} if arguments.module else {"train.py": _JOB}),
        ".rayignore": _IGNORED,
        SCHEMA: main_text(),
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
        print(folder / file)
    verify = "phasefront verify-job my_models:Parity && " if arguments.module else ""
    print(f"next:  cd {folder} && {verify}phasefront check {name}.yaml --rehearse && phasefront run {name}.yaml")
    return 0


def examples(arguments: argparse.Namespace) -> int:
    """List the published sweeps, print one, or copy one; never over an existing file."""
    found = published()
    if arguments.name is None:
        width = max(map(len, found))
        for name, path in found.items():
            print(f"{name.ljust(width)}  {_about(path)}")
        print("\nphasefront examples NAME prints a sweep; with --copy, it is copied into this folder")
        return 0
    name = arguments.name.removesuffix(".yaml")
    if name not in found:
        by_stem = [known for known in found if known.rpartition("/")[2] == name]
        if len(by_stem) != 1:
            choices = by_stem or tuple(found)
            step = did_you_mean(name, choices, "phasefront examples lists them")
            raise UserError("is no published sweep", place="NAME", value=name, choices=choices, next_step=step)
        name = by_stem[0]
    text = re.sub(r"(?<=\$schema=)\S+", SCHEMA, found[name].read_text(encoding="utf-8"), count=1)
    if not arguments.copy:
        sys.stdout.write(text)
        return 0
    from orchestrator.sweep.schema import main_text

    target = Path(found[name].name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        rule, step = "is there already, and is not overwritten", f"phasefront examples {name} > another.yaml"
        raise UserError(rule, place=str(target), next_step=step) from None
    print(target)
    if not Path(SCHEMA).exists():
        Path(SCHEMA).write_text(main_text(), encoding="utf-8")
        print(SCHEMA)
    print(f"next:  phasefront plan {target}")
    return 0


def published() -> dict[str, Path]:
    """The published sweeps by name, those that take minutes on two cores first.

    Raises:
        UserError: this installation has none.
    """
    root = _BESIDE_THE_PACKAGE if _BESIDE_THE_PACKAGE.is_dir() else _IN_THE_CHECKOUT
    paths = sorted(root.rglob("*.yaml"), key=lambda path: (_rank(path), path.relative_to(root).as_posix()))
    if not paths:
        rule = "this installation has no published sweeps"
        raise UserError(rule, place=str(root), next_step="install a wheel of phasefront, or use its repository")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def _rank(path: Path) -> int:
    return 0 if path.name.startswith("demo_") else 1 if path.stem.endswith("_small") else 2


def _about(path: Path) -> str:
    """The first sentence of a sweep file's comment."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "$schema" not in line:
            lines.append(line.lstrip("# "))
    text = " ".join(lines)
    sentence = re.split(r"(?<=[a-z0-9)])(?<!\bet al)[.:] (?=[A-Z0-9])", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 90 else sentence[:89].rsplit(" ", 1)[0] + " …"
