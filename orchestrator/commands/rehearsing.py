"""The rehearsal of `plan` and `check --rehearse`: a few short trainings, and what they say about the sweep."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jobs.job
from jobs.job import as_dict
from orchestrator.commands.wiring import on_cluster
from orchestrator.errors import UserError
from orchestrator.host import visible_gpus
from orchestrator.printable import last_line
from orchestrator.records import Status
from orchestrator.sanity import TrialFacts, awaited, explained, report, unreported

if TYPE_CHECKING:
    from orchestrator.dispatch.capacity import Shape
    from orchestrator.plan.planner import Planner
    from orchestrator.plan.rehearsal import Rehearsal
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.trial import Trial

SAMPLE = 64
"""Trials of a search among which those of `check --rehearse` are chosen."""
_NOT_THE_USERS = (
    str(Path(jobs.job.__file__).parent),
    str(Path(__file__).parents[1]),
    sysconfig.get_path("purelib"),
)
"""Where no line of a user's job is."""
_NO_GPU = ("Torch not compiled with CUDA", "No CUDA GPUs are available", "Found no NVIDIA driver")
"""In torch's errors where CUDA_VISIBLE_DEVICES, or the sweep, names a GPU that is not there."""
_NAMED = re.compile(r"\((\S+\.py:\d+)\)")
"""The user's line in an error that this program raises (`jobs.module.fit`)."""
_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')


def rehearsed(
    planner: Planner, sweep: Sweep, trials: Sequence[Trial], *, shape: Shape, known: bool = False
) -> Rehearsal:
    """Short trainings of packs whose duration is not known (`known`: of others too), where they can run here."""
    from orchestrator.plan.calibration import save
    from orchestrator.plan.rehearsal import Rehearsal, rehearse

    if on_cluster() and not visible_gpus() and planner.calibration.machine.device != "cpu":
        return Rehearsal(calibration=planner.calibration)
    rehearsal = rehearse(
        planner,
        trials,
        workers=shape.workers,
        threads=max(1, int(sweep.resources.cpus_per_worker)),
        thresholds=as_dict(sweep.thresholds()),
        known=known,
    )
    if rehearsal.calibration != planner.calibration:
        save(rehearsal.calibration)
    return rehearsal


def say_rehearsal(rehearsal: Rehearsal, sweep: Sweep, place: str) -> None:
    """Print what the trials have shown.

    Raises:
        UserError: all of them failed, or none has reported the metric by which they are labelled.
    """
    job, thresholds = sweep.job_object(), sweep.thresholds()
    failed = [(trial, facts) for trial, facts in rehearsal.trials if facts.status == Status.FAILED.value]
    others = [facts for _, facts in rehearsal.trials if facts.status != Status.FAILED.value]
    for line in report(others, job, thresholds, title="rehearsed"):
        print(line)
    if failed:
        mistake = _failure(*failed[0], sweep, place, of=len(rehearsal.trials), failed=len(failed))
        if not others:
            raise mistake
        print(f"warning: {mistake.text}")
    names = awaited(job, thresholds)
    finished = [facts for facts in others if facts.status == Status.FINISHED.value]
    observed = dict.fromkeys(name for facts in finished for name in facts.observed)
    if names and observed and not any(name in observed for name in names):
        raise unreported(names, observed, job=job, place=sweep.label_place, trials=len(finished))


def users_line(error: str) -> str:
    """The last line of a user's job in a traceback; "the job" if it has none."""
    frames = [frame for frame in _FRAME.findall(error) if not frame[0].startswith(_NOT_THE_USERS)]
    named = _NAMED.search(last_line(error))
    return ":".join(frames[-1]) if frames else named[1] if named else "the job"


def _failure(trial: Trial, facts: TrialFacts, sweep: Sweep, place: str, *, of: int, failed: int) -> UserError:
    step = f"correct {users_line(facts.error)}, or the values"
    if any(text in facts.error for text in _NO_GPU):
        step = "set resources.device to cpu; or install a torch with CUDA and its driver, if this machine has a GPU"
    share = f" in {failed} of {of} trials" if of > 1 else ""
    return UserError(
        f"rehearsal failed{share}: {explained(facts.error, trial.settings())}",
        place=place,
        value=trial.text(axis.name for axis in sweep.axes),
        next_step=step,
    )
