"""The tables of RESULTS.md from the raw runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.benchmarks.boundary.peers import SEARCHES
from tests.benchmarks.boundary.problems import NAMES
from tests.benchmarks.boundary.runs import trials_to

Runs = Sequence[dict[str, Any]]
BASE = "margin"
OURS = "phasefront"


def index(runs: Runs) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Runs by (search, problem, seed), the trial counts of their tables as numbers again."""
    out = {}
    for run in runs:
        run = dict(run, error={int(n): float(e) for n, e in run["error"].items()})
        run["displacement"] = {int(n): float(e) for n, e in run["displacement"].items()}
        out[run["search"], run["problem"], run["seed"]] = run
    return out


def _seeds(found: dict[tuple[str, str, int], Any], search: str, problem: str) -> list[int]:
    return sorted(seed for name, letter, seed in found if (name, letter) == (search, problem))


def ratio(found: dict[tuple[str, str, int], Any], search: str, problem: str, trials: int) -> float:
    """Geometric mean over seeds of a search's map error relative to the margin's, same instance; NaN without both."""
    both = [s for s in _seeds(found, search, problem) if (BASE, problem, s) in found]
    logs = [
        np.log(found[search, problem, s]["error"][trials] / found[BASE, problem, s]["error"][trials])
        for s in both
        if trials in found[search, problem, s]["error"] and trials in found[BASE, problem, s]["error"]
    ]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def median_trials(found: dict[tuple[str, str, int], Any], search: str, problem: str, level: float) -> float:
    values = [trials_to(found[search, problem, s]["error"], level) for s in _seeds(found, search, problem)]
    return float(np.median(values)) if values else float("nan")


def _count(value: float) -> str:
    return "" if np.isnan(value) else "-" if np.isinf(value) else f"{value:.0f}"


def report(runs: Runs) -> str:
    """Markdown: errors, paired ratios, what a grid needs, time, and the goals."""
    found = index(runs)
    searches = [s for s in ("grid", *SEARCHES) if any(key[0] == s for key in found)]
    problems = [p for p in NAMES if any(key[1] == p for key in found)]
    lines = ["Map error in % of the area: median [minimum - maximum] over seeds.", ""]
    for trials in (256, 512):
        lines += [f"| at {trials} trials | " + " | ".join(problems) + " |", "|---" * (len(problems) + 1) + "|"]
        for search in [s for s in searches if s != "grid"]:
            cells = []
            for problem in problems:
                errors = [found[search, problem, s]["error"].get(trials) for s in _seeds(found, search, problem)]
                errors = [100 * e for e in errors if e is not None]
                cells.append(f"{np.median(errors):.2f} [{min(errors):.2f} - {max(errors):.2f}]" if errors else "")
            lines.append(f"| {search} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "Error relative to the margin's on the same instance (geometric mean over seeds), at 256 / 512 trials.",
        "",
        "| | " + " | ".join(problems) + " | all |",
        "|---" * (len(problems) + 2) + "|",
    ]
    for search in [s for s in searches if s not in ("grid", BASE)]:
        by = {t: [ratio(found, search, p, t) for p in problems] for t in (256, 512)}
        cells = [f"{a:.2f} / {b:.2f}" for a, b in zip(by[256], by[512], strict=True)]
        total = " / ".join(f"{np.exp(np.mean(np.log(by[t]))):.2f}" for t in (256, 512))
        lines.append(f"| {search} | " + " | ".join(cells) + f" | **{total}** |")
    lines += [
        "",
        "Trials to 2% / to 1% map error, median over seeds (-: not reached).",
        "",
        "| | " + " | ".join(problems) + " |",
        "|---" * (len(problems) + 1) + "|",
    ]
    for search in searches:
        cells = [
            f"{_count(median_trials(found, search, p, 0.02))} / {_count(median_trials(found, search, p, 0.01))}"
            for p in problems
        ]
        lines.append(f"| {search} | " + " | ".join(cells) + " |")
    lines += ["", "Milliseconds of CPU time per suggestion, classifier / choice, mean over a whole run.", ""]
    for search in [s for s in searches if s != "grid"]:
        mine = [run for key, run in found.items() if key[0] == search]
        asked = [max(run["error"]) - min(run["error"]) for run in mine]
        if sum(asked):
            fit, ask = (1e3 * sum(run[k] for run in mine) / sum(asked) for k in ("fit_s", "ask_s"))
            lines.append(f"- {search}: {fit:.1f} / {ask:.1f}")
    return "\n".join([*lines, "", *goals(found, problems)])


def goals(found: dict[tuple[str, str, int], Any], problems: Sequence[str]) -> list[str]:
    """One line a goal: reached or missed, and the figure."""
    out = ["Goals:", ""]

    def line(name: str, value: float, most: float) -> None:
        if not np.isnan(value):
            out.append(f"- {'reached' if value <= most else 'MISSED'}: {name}: {value:.3g} (goal <= {most:g})")

    for trials in (256, 512):
        ratios = [ratio(found, OURS, p, trials) for p in problems]
        line(
            f"error relative to the margin's at {trials}, geometric mean", float(np.exp(np.mean(np.log(ratios)))), 0.75
        )
        line(f"error relative to the margin's at {trials}, worst problem", max(ratios), 1.15)
    if "C" in problems:
        worst = [found[OURS, "C", s]["error"].get(512, np.nan) for s in _seeds(found, OURS, "C")]
        line("island, worst seed at 512, %", 100 * float(max(worst, default=np.nan)), 1.0)
    for problem in problems:
        share = median_trials(found, OURS, problem, 0.01) / median_trials(found, "grid", problem, 0.01)
        line(f"trials to 1% relative to the grid's, {problem}", share, 0.1 if problem == "E" else 0.2)
    return out
