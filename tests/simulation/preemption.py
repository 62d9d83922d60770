"""Long packs on nodes that do not live long: how much longer the sweep takes than on nodes that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from statistics import mean, stdev

from scipy.stats import t as student

from tests.simulation.driver import Outcome, run_schedule
from tests.simulation.job import HEALTHY
from tests.simulation.schedule import SAVED, Fault, Schedule


@dataclass(frozen=True, kw_only=True)
class Preempted:
    """A sweep with and without losses."""

    undisturbed_s: float
    disturbed_s: float
    away_s: float
    """How long a node was away, on average over the nodes."""
    losses: int
    checkpoints: int
    outcome: Outcome

    @property
    def overhead(self) -> float:
        """What the losses cost, as a share of the undisturbed time; the time without a node is not counted."""
        return (self.disturbed_s - self.away_s) / self.undisturbed_s - 1.0


def preempted(*, hours: float, life_s: float, save_s: float, nodes: int = 4, seed: int = 1) -> Preempted:
    """A sweep of this length; every node lives `life_s` on average, and comes back a few seconds after its loss."""
    random = Random(seed)
    step_s = 15.0
    calm = Schedule(
        seed=seed,
        trials=(HEALTHY,) * nodes * 2,
        nodes=(1,) * nodes,
        step_s=step_s,
        pack_models=1,
        room=1,
        timeout_s=None,
        saves_every_s=0.0,
        save_s=save_s,
        steps=round(hours * 3600 / 2 / step_s),
    )
    faults, away_s, back_s = [], 0.0, 2.0
    for node in range(nodes):
        at_s = random.expovariate(1 / life_s)
        while at_s < 2 * hours * 3600:
            faults.append(Fault(kind="node preempted", at_s=at_s, lasts_s=back_s, node=node))
            at_s += back_s + random.expovariate(1 / life_s)
    undisturbed = run_schedule(calm)
    outcome = run_schedule(replace(calm, faults=tuple(sorted(faults, key=lambda fault: fault.at_s))))
    met = [fault for fault in faults if fault.at_s < outcome.virtual_s]
    away_s = sum(fault.lasts_s for fault in met) / nodes
    return Preempted(
        undisturbed_s=undisturbed.virtual_s,
        disturbed_s=outcome.virtual_s,
        away_s=away_s,
        losses=outcome.met["node preempted"],
        checkpoints=outcome.met[SAVED],
        outcome=outcome,
    )


def table(seeds: range) -> tuple[str, bool]:
    """The overhead for some seeds, and whether every run kept what must hold."""
    overheads, well = [], True
    lines = [f"{'seed':>4} {'undisturbed':>12} {'with losses':>12} {'losses':>7} {'checkpoints':>12} {'overhead':>9}"]
    for seed in seeds:
        found = preempted(hours=2.0, life_s=600.0, save_s=2.0, seed=seed)
        overheads.append(found.overhead)
        well &= not found.outcome.violations
        lines.append(
            f"{seed:>4} {found.undisturbed_s:>10.0f} s {found.disturbed_s:>10.0f} s {found.losses:>7} "
            f"{found.checkpoints:>12} {found.overhead:>8.1%}" + "".join(f"\n  {v}" for v in found.outcome.violations)
        )
    text = f"overhead: mean {mean(overheads):.1%}, most {max(overheads):.1%}, n = {len(overheads)}"
    if len(overheads) > 1:
        error = stdev(overheads) / len(overheads) ** 0.5
        half = float(student.ppf(0.975, len(overheads) - 1)) * error
        text += f"; 95% interval of the mean {mean(overheads) - half:.1%} to {mean(overheads) + half:.1%}"
    return "\n".join([*lines, text]), well
