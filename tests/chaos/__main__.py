"""Inject faults until there are enough, print the table of kinds, and exit with 1 if anything is violated."""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "chaos")]

from tests.chaos.cluster import Cluster  # noqa: E402
from tests.chaos.faults import KINDS, applicable  # noqa: E402
from tests.chaos.host import Network, can_isolate  # noqa: E402
from tests.chaos.records import CANARY, Servers  # noqa: E402
from tests.chaos.rounds import Plan, Result, Round  # noqa: E402

RESULTS = Path(__file__).parent / "RESULTS.md"
ROTATION = (
    ("cluster", "postgres", "Pulse", False),
    ("inline", "http", "Pulse", False),
    ("cluster", "sqlite", "train", False),
    ("inline", "disk", "Pulse", False),
    ("cluster", "http", "Pulse", False),
    ("inline", "postgres", "train", True),
    ("cluster", "postgres", "train", False),
    ("inline", "sqlite", "Pulse", True),
)
"""How the trials run, the record, the job, and whether the driver's clock can be set."""
A_ROUND = {"cluster": 12, "inline": 9}
"""Faults in a round."""


def plans(seed: int, *, isolated: bool, clock: bool) -> Iterator[Plan]:
    """The rounds of a seed: each takes the kinds that were planned least often so far."""
    rng, planned = random.Random(seed), Counter[str]()
    rotation = [row for row in ROTATION if isolated or row[0] == "inline"]
    number = 0
    while True:
        where, record, job, sets_clock = rotation[number % len(rotation)]
        sets_clock = sets_clock and clock
        known = applicable(where, record, clock=sets_clock)
        order = sorted(known, key=lambda kind: (planned[kind], rng.random()))
        chosen: list[str] = []
        for kind in order:
            ends = sum(KINDS[other].ends is not None or KINDS[other].costly for other in chosen)
            if (KINDS[kind].ends is not None or KINDS[kind].costly) and ends >= 3:
                continue
            chosen.append(kind)
            planned[kind] += 3 if KINDS[kind].costly else 1
            if len(chosen) == A_ROUND[where]:
                break
        rng.shuffle(chosen)
        drawn = number % 6 == 5
        yield Plan(
            number=number, where=where, record=record, job=job, clock=sets_clock, kinds=tuple(chosen), drawn=drawn
        )
        number += 1


def table(results: Sequence[Result]) -> list[str]:
    """Kinds, how often they were injected, and how often something was violated after them."""
    injected = Counter(kind for result in results for kind in result.injected)
    violated = Counter(kind for result in results for kind, _ in result.violations)
    rows = [f"| {kind} | {injected[kind]} | {violated[kind]} |" for kind in KINDS if injected[kind]]
    if violated["nothing"]:
        rows.append(f"| (before any fault) | | {violated['nothing']} |")
    total = f"| **{len(injected)} kinds** | **{injected.total()}** | **{violated.total()}** |"
    return ["| fault | injected | violations |", "|---|---|---|", *rows, total]


def text(results: Sequence[Result], *, seed: int, skipped: Sequence[str], seconds: float) -> str:
    """RESULTS.md."""
    trials, starts = sum(result.trials for result in results), sum(result.starts for result in results)
    outages = sum(len(result.notes) for result in results)
    lines = [
        "# Faults injected into real drivers, nodes and servers",
        "",
        "Written by `make chaos`. In each round a sweep of 40 to 160 trials meets several faults, and the same command",
        "is repeated until it ends. Then: every trial is FINISHED, every curve is that of an undisturbed run, rows are",
        "counted by SQL, `phasefront audit` is clean, exit codes are truthful, nothing is left running, no password is",
        "printed or recorded, and there was progress or a stated reason all the time.",
        "",
        f"Seed {seed}, {time.strftime('%d %B %Y')}, {os.cpu_count()} cores, Python {platform.python_version()}: "
        f"{len(results)} rounds in {seconds / 60:.0f} minutes, {trials:,} trials, {starts} starts of the driver, "
        f"{outages} of them ended with 75.",
        "",
        *table(results),
        "",
        *(f"- skipped: {reason}" for reason in skipped),
    ]
    for result in results:
        for kind, what in result.violations:
            lines.append(f"- VIOLATED in round {result.plan.number}, after {kind}: {what}")
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, help="how many faults to inject [60]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", metavar="ROUND", help="repeat these rounds of the seed alone")
    parser.add_argument("--kinds", nargs="+", metavar="TEXT", help="only kinds whose names have one of these texts")
    parser.add_argument("--where", choices=("cluster", "inline"), help="only rounds of this kind")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after this time")
    parser.add_argument("--results", type=Path, help="where to write the table [tests/chaos/RESULTS.md for 300 faults]")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and records")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup`, the drivers would ignore it too

    skipped, why = [], can_isolate()
    if why:
        skipped.append(f"faults of a cluster: {why}")
    clock = shutil.which("cc") is not None
    if not clock:
        skipped.append("faults of the clock: need a C compiler (apt-get install gcc)")
    began = time.monotonic()
    results = _soak(given, isolated=not why, clock=clock)
    injected = sum(len(result.injected) for result in results)
    violations = sum(len(result.violations) for result in results)
    written = text(results, seed=given.seed, skipped=skipped, seconds=time.monotonic() - began)
    print("\n".join(["", *table(results), "", *(f"skipped: {reason}" for reason in skipped)]))
    for result in results:
        if result.violations:
            number = result.plan.number
            print(f"to repeat: python -m tests.chaos --seed {given.seed} --only {number}   # {result.plan.text}")
    where = given.results or (RESULTS if injected >= 300 and not given.only else None)
    if where is not None:
        _, heading, others = (where.read_text() if where.exists() else "").partition("\nOther soaks")
        where.write_text(written + heading + others)
    print(f"{injected} faults of {len({k for r in results for k in r.injected})} kinds, {violations} violations")
    return 1 if violations else 0


def _soak(given: argparse.Namespace, *, isolated: bool, clock: bool) -> list[Result]:
    """Run rounds until there are enough faults; everything that was started has ended on return."""
    folder = Path(tempfile.mkdtemp(prefix="pf-chaos-", dir="/tmp"))
    results: list[Result] = []
    network = Network() if isolated else None
    cluster = Cluster(network) if network is not None else None
    servers = Servers(folder, network.gateway if network is not None else "127.0.0.1")
    started, began = False, time.monotonic()
    try:
        for plan in plans(given.seed, isolated=isolated, clock=clock):
            injected = sum(len(result.injected) for result in results)
            if given.only is not None:
                if plan.number > max(given.only):
                    break
                if plan.number not in given.only:
                    continue
            elif injected >= given.faults or time.monotonic() - began > 60 * given.minutes:
                break
            if given.where is not None and plan.where != given.where:
                continue
            if given.kinds:
                wanted = tuple(kind for kind in plan.kinds if any(part in kind for part in given.kinds))
                if not wanted:
                    continue
                plan = replace(plan, kinds=wanted)
            if plan.where == "cluster" and cluster is not None and not started:
                cluster.start()
                started = True
            print(f"{injected:4d} faults; {plan.text}", flush=True)
            one = Round(
                plan, seed=given.seed, folder=folder, servers=servers, cluster=cluster, long=given.faults >= 300
            )
            results.append(one.run())
            print(f"     round {plan.number} took {results[-1].seconds:.0f} s", flush=True)
        if cluster is not None and started and (leaks := cluster.logs_with(CANARY)):
            what = f"Ray's logs have the password: {leaks[:3]}"
            results[-1].violations.append(("nothing", what))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        if cluster is not None:
            cluster.close()
        servers.close()
        if network is not None:
            network.close()
        if given.keep or any(result.violations for result in results):
            print(f"logs and records: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return results


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
