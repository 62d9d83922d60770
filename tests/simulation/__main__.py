"""Run many simulated schedules: `python -m tests.simulation --help` names the options.

Prints how many schedules ran, the faults by kind, and each schedule that broke an invariant; exit code 1 if one did.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from tests.simulation.driver import run_schedule
from tests.simulation.mutations import MUTATIONS
from tests.simulation.preemption import table
from tests.simulation.schedule import KINDS, schedule_of
from tests.simulation.search import Findings, search, shrunk

BATCH = 100
MUTATION_SCHEDULES = 1000
"""A defect that is put back should be found within so many schedules."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the others have the next ones")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one schedule, and show what happens in it")
    parser.add_argument("--mutations", action="store_true", help="put old defects back, and search for each of them")
    parser.add_argument(
        "--preempted", type=int, metavar="RUNS", help="two hours of long packs on nodes that live ten minutes each"
    )
    arguments = parser.parse_args()
    if arguments.preempted:
        text, well = table(range(arguments.seed, arguments.seed + arguments.preempted))
        print(text)
        return 0 if well else 1
    if arguments.mutations:
        return find_mutations(arguments.seed, min(arguments.schedules, MUTATION_SCHEDULES))
    if arguments.replay is not None:
        return replay(arguments.replay)
    began, findings = time.perf_counter(), Findings()
    for first in range(arguments.seed, arguments.seed + arguments.schedules, BATCH):
        part = search(first, min(BATCH, arguments.seed + arguments.schedules - first))
        for seed, _, outcome in part.broken:
            print(f"seed {seed}: {outcome.violations[0]}")
        findings.merge(part)
        seconds = time.perf_counter() - began
        print(
            f"{findings.schedules} schedules in {seconds:.0f} s ({60 * findings.schedules / seconds:.0f} a minute), "
            f"{len(findings.broken)} with a violation",
            flush=True,
        )
        if len(findings.broken) >= 10:
            break
    show(findings)
    return 1 if findings.broken else 0


def show(findings: Findings) -> None:
    """The table of faults, and the violations with their schedules."""
    kinds = [*KINDS, *sorted(set(findings.planned) - set(KINDS))]
    print(f"\n{findings.schedules} schedules, {findings.virtual_s / 3600:.0f} virtual hours\n")
    print(f"{'fault':28} {'planned':>8} {'schedules in which it had an effect':>38}")
    for kind in kinds:
        effects = "" if kind.startswith("trial: ") else str(findings.met[kind])
        print(f"{kind:28} {findings.planned[kind]:8} {effects:>38}")
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(findings.exits.items()))
    print(f"\nexit codes of drivers (-9: killed): {codes}\nviolations: {len(findings.broken)}")
    for seed, schedule, outcome in findings.broken:
        print(f"\nseed {seed}: python -m tests.simulation --replay {seed}")
        print("  " + "\n  ".join(outcome.violations[:3]))
        small = shrunk(schedule, lambda candidate: bool(run_schedule(candidate).violations))
        print(f"  smaller: {small}")


def replay(seed: int) -> int:
    """Run one schedule and print what its drivers said."""
    schedule = schedule_of(Random(seed))
    outcome = run_schedule(schedule)
    print(schedule)
    for at_s, text in outcome.log:
        print(f"{at_s:9.2f} s  {text}")
    print(f"faults with an effect: {dict(outcome.met)}; exit codes: {outcome.exits}; {outcome.virtual_s:.1f} s")
    for violation in outcome.violations:
        print(f"VIOLATED {violation}")
    return 1 if outcome.violations else 0


def find_mutations(first: int, schedules: int) -> int:
    """Search for each defect that is put back; exit code 1 if one is not found, or breaks nothing by itself."""
    missed = 0
    for mutation in MUTATIONS:
        found = mutation.search(first, schedules)
        if found is None:
            missed += 1
            print(f"{mutation.name}: NOT FOUND in {schedules} schedules", flush=True)
            continue
        seed, outcome = found
        print(f"{mutation.name}: seed {seed} (schedule {seed - first + 1})", flush=True)
        print(f"    {outcome.violations[0].strip().splitlines()[-1][:140]}")
        if violated := run_schedule(schedule_of(Random(seed))).violations:
            missed += 1
            print(f"    VIOLATED without it too: {violated[0]}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
