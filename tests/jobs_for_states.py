"""Functions of a user's that can be saved."""

import time
from pathlib import Path
from typing import Any

import numpy as np


def walk(params: Any, seed: int, device: str, report: Any, state) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Reports at every step, saves at every third."""
    x, first = state.get("x", params["start"]), state.get("step", 0)
    history = state.get("history", [])
    for step in range(first + 1, params["steps"] + 1):
        time.sleep(params.get("wait_s", 0.0))
        if params.get("log"):
            with Path(params["log"]).open("a") as file:
                file.write(f"{params['start']} {step}\n")
        x = 3.9 * x * (1 - x) + (seed % 1000) * 1e-9
        history.append(x)
        report(step, x=x)
        if step % 3 == 0:
            state.save(step=step, x=x, history=history, table=np.full((2, 2), x))
    return {"mean": float(np.mean(history))}


def by_name(*, start: float = 0.5, steps: int = 12, report: Any, seed: int, state) -> None:  # type: ignore[no-untyped-def]
    for step in range(state.get("step", 0) + 1, steps + 1):
        start = state["x"] if step == state.get("step", -1) + 1 else start
        start = 3.9 * start * (1 - start)
        report(step, x=start)
        state.save(step=step, x=start)


def prepared(params: Any, seed: int, device: str, report: Any, state) -> None:  # type: ignore[no-untyped-def]
    """Prepares something, saves it, and reports from step 0 on; it waits in between while there is a file `hold`."""
    folder = Path(params["folder"])
    if "table" not in state:
        with (folder / "log").open("a") as file:
            file.write("prepared\n")
    table = state.get("table", [0.25, 0.5, 0.75])
    while (folder / "hold").exists():
        state.save(table=table)
        time.sleep(0.001)
    for step, x in enumerate(table):
        report(step, x=x)


def state_is_a_parameter(*, state: str = "solid", report: Any, seed: int) -> None:
    report(1, length=len(state))


def odd(params: Any, seed: int, device: str, report: Any, state: Any = None) -> None:
    """An earlier function with a fifth argument of its own."""
    report(1, none=float(state is None))


def unsaved(params: Any, seed: int, device: str, report: Any, state) -> None:  # type: ignore[no-untyped-def]
    for step in range(1, 4):
        report(step, x=0.0)
        state.save(step=step, model=object())
        time.sleep(0.05)
