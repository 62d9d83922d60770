"""replay: train one recorded trial again, and compare its curve with the record."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchestrator.errors import UserError

DEFAULT_URI = "sqlite:///mlflow.db"
MOST_THREADS = 1024
"""Whatever a record says."""


def replay(arguments: argparse.Namespace) -> int:
    """Exit code 0 if the curve equals the recorded one, 1 otherwise.

    The curves must be equal bit for bit in the same environment and pack, unless the trial was continued from a
    checkpoint, and within the tolerance otherwise.
    """
    from jobs.function import described
    from jobs.job import Member, ParamError
    from orchestrator.commands.recorded_job import FOLDER, recorded_job
    from orchestrator.commands.wiring import reading_patience
    from orchestrator.dispatch.environment import IN_ONE_PIECE, environment_of
    from orchestrator.dispatch.worker import prepare
    from orchestrator.host import visible_gpus
    from orchestrator.printable import last_line
    from orchestrator.replay import compare, train_again
    from orchestrator.tracking.address import shown
    from orchestrator.tracking.replay_source import ReplaySource

    uri = arguments.tracking or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    place = "--tracking" if arguments.tracking else "the tracking address"
    source = ReplaySource(uri, place=place, patience=reading_patience(f"the record ({shown(uri)})"))
    trial = source.trial(arguments.run_id)
    job, code = recorded_job(trial.job, place=f"run {trial.run_id}")
    if job.version != trial.trained.version:
        raise UserError(
            "the job must have the version that the trial was trained with",
            place=f"run {trial.run_id}",
            value=f"{trial.job} has version {job.version} here, and had version {trial.trained.version}",
            next_step="check out the code of that version to replay the trial; `phasefront run` trains it again",
        )
    pack = [] if arguments.alone else source.pack(trial)
    whole = len(pack) == trial.trained.of
    if not whole:
        pack = [member for member in pack if member.trial_id == trial.trial_id]
    try:
        members: list[Member[Any]] = [Member(params=job.params_for(m.params), seed=m.trained.seed) for m in pack] or [
            Member(params=job.params_for(trial.params), seed=trial.trained.seed)
        ]
    except ParamError as error:
        raise UserError(str(error), place=f"run {trial.run_id}", next_step=FOLDER) from error
    recorded = trial.trained.environment
    device = "cuda" if visible_gpus() and not _is_processor(recorded.device) else "cpu"
    prepare(threads=min(max(1, recorded.threads), MOST_THREADS), job=trial.job)
    differences = recorded.differences(environment_of(trial.job, device))
    print(f"run       {trial.run_id}: {trial.job}, {len(trial.curves.step)} steps of {', '.join(trial.curves.values)}")
    print(f"code      {code}")
    if whole:
        print(f"pack      {len(members)} trials, as recorded")
    else:
        why = f"not all of the {trial.trained.of - 1} others in its pack are recorded"
        why = "as requested" if arguments.alone else why
        print(f"pack      alone: {why}" if trial.trained.of > 1 else "pack      alone, as recorded")
    changes = f"another environment (recorded, now): {'; '.join(differences)}"
    print(f"machine   {changes if differences else 'the same environment as recorded'}")
    continued = trial.trained.continued
    if continued is not None and continued != IN_ONE_PIECE:
        print(f"continued at step {continued}, from a checkpoint: until then it may have had another pack or machine")
    same_environment = not differences and (whole or trial.trained.of == 1)
    try:
        again = train_again(job, members, trial.trained.at if whole else 0, device=device)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # raised by the job's own code, SystemExit included
        print(f"result    the training failed: {last_line(described(error))}")
        return 1
    comparison = compare(trial.curves, again, tolerance=arguments.tolerance)
    for name, (apart, step) in comparison.deviation.items():
        print(f"          {name}: largest difference {apart:.3g}, at step {step}")
    if not comparison.same_steps:
        print(f"result    DIFFERENT: {len(again.step)} steps were measured, {len(trial.curves.step)} are recorded")
        return 1
    if comparison.exact:
        print("result    the same curve, bit for bit")
        return 0
    if same_environment and continued == IN_ONE_PIECE:
        print("result    DIFFERENT, although environment and pack are the same")
        return 1
    if not comparison.within:
        first = ", ".join(f"{name} from step {step}" for name, step in comparison.beyond.items())
        print(f"result    DIFFERENT beyond the tolerance of {arguments.tolerance:g}: {first}")
        return 1
    print(f"result    the same within {arguments.tolerance:g} of the value, plus {arguments.tolerance:g}")
    if same_environment and continued is None:
        print("          the record does not say whether the trial was continued from a checkpoint")
    return 0


def _is_processor(device: str) -> bool:
    """Whether a recorded device is a CPU, named by its instruction set."""
    return device.partition(" ")[0].lower() in ("x86_64", "amd64", "aarch64", "arm64")
