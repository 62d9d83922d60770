"""The job of a user's module: its cost, its training, and how its curves are labelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jobs import curves as reductions
from jobs.job import FINAL, AnyParams, Cost, Curves, Member, Observations, Report
from jobs.module.base import ModuleScience
from jobs.module.params import ModuleThresholds

_GAP = ("memorisation_step", "generalisation_step")


class ModuleJob(ModuleScience):
    """Trains the torch module that `model` returns on what `data` returns.

    A subclass declares `Params`, a subclass of `ModuleParams`, and defines `model` and `data`. Trials whose own
    parameters are equal share packs; `data_only` names those that may differ.
    """

    Thresholds: ClassVar[type[AnyParams]] = ModuleThresholds
    metrics: ClassVar[tuple[str, ...]] = ()
    phases: ClassVar[tuple[str, ...]] = (
        *reductions.LEARNING_PHASES,
        "underfitted",
        "interpolating",
        "below",
        "at or above",
        "not reported",
        "diverged",
    )
    crossings: ClassVar[tuple[str, ...]] = (*_GAP, "interpolation_step", "diverged_step")
    shares: ClassVar[tuple[str, ...]] = ("train_accuracy", "test_accuracy")
    reporting_advice: ClassVar[str] = "A metric of your own is what the job's `probe` returns, under its name."

    def possible_metrics(self, params: Any, *, measure: bool = False) -> Sequence[tuple[str, ...]]:
        if type(self).train is not ModuleJob.train:
            return ()
        if measure:
            from jobs.module.fit import reported

            names = reported(self, params)
            return (names,) if names else ()
        losses = ("train_loss", "test_loss")
        return () if self.defines("probe") else (losses, (*losses, *self.shares))

    def cost(self, params: Any, *, extent: tuple[int, ...], models: int) -> Cost:
        from jobs.module.cost import pack_cost

        return pack_cost(self, params, models)

    def memory_bytes(self, params: Any, *, extent: tuple[int, ...], models: int, device: str) -> float:
        from jobs.module.cost import memory_bytes

        return memory_bytes(self, params, models, device)

    def remarks(self, params: Sequence[Any], *, measure: bool = False) -> Sequence[str]:
        from jobs.module.remarks import remarks

        try:
            return list(remarks(self, params, measure=measure))
        except Exception:  # the user's code: the rehearsal says what it raises, with the trial
            return ()

    def train(self, pack: Sequence[Member[Any]], *, device: str) -> Iterator[Report]:
        from jobs.module.pack import train

        return train(self, pack, device)

    def observe(self, params: Any, curves: Curves, thresholds: Any) -> Observations:
        step, values, t = curves.step, curves.values, thresholds
        measured = "train_accuracy" in values
        if measured:
            memorised = values["train_accuracy"] >= t.memorised_accuracy
            generalised = values["test_accuracy"] >= t.generalised_accuracy
            interpolated = 1 - values["train_accuracy"] <= t.interpolated_error
        else:
            memorised, generalised = values["train_loss"] <= t.learned_loss, values["test_loss"] <= t.learned_loss
            interpolated = values["train_loss"] <= t.interpolated_error
        steps = {
            **reductions.crossing("memorisation_step", step, memorised),
            **reductions.crossing("generalisation_step", step, generalised),
        }
        return {
            **steps,
            **reductions.gap_between("generalisation_gap", steps, *_GAP, reductions.horizon(step)),
            **reductions.crossing("interpolation_step", step, interpolated),
            **reductions.crossing("diverged_step", step, ~np.isfinite(values["train_loss"])),
            **reductions.final_values(curves, values),
            **(
                reductions.best_value(curves, "test_accuracy", largest=True)
                if measured
                else reductions.best_value(curves, "test_loss", largest=False)
            ),
        }

    def phase(self, params: Any, observations: Observations, thresholds: Any) -> str:
        """The label by `rule`; "diverged" where the training loss became NaN or infinite."""
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        if thresholds.rule == "double_descent":
            last = observations.get("final_train_accuracy")
            error = 1 - last if isinstance(last, float) else observations["final_train_loss"]
            interpolates = isinstance(error, float) and error <= thresholds.interpolated_error
            return "interpolating" if interpolates else "underfitted"
        if thresholds.rule == "level":
            names = self.labelled_by(thresholds)
            value = next((v for name in names if isinstance(v := observations.get(name), float)), None)
            return "not reported" if value is None else "at or above" if value >= thresholds.level else "below"
        memorised, generalised = (observations[name] for name in _GAP)
        gap = observations["generalisation_gap"]
        return reductions.learning_phase(memorised, generalised, gap, thresholds.grokking_gap)

    def labels(self, thresholds: Any) -> tuple[str, ...]:
        if thresholds.rule == "double_descent":
            return ("underfitted", "interpolating", "diverged")
        if thresholds.rule == "level":
            return ("below", "at or above", "not reported", "diverged")
        return (*reductions.LEARNING_PHASES, "diverged")

    def labelled_by(self, thresholds: Any) -> tuple[str, ...]:
        """`metric: test_loss` and `metric: final_test_loss` mean the same: the last value of `test_loss`."""
        name = thresholds.metric
        return (f"{FINAL}{name.removeprefix(FINAL)}", name) if name else ()

    def label_names(self, thresholds: Any) -> Mapping[str, str]:
        if thresholds.rule != "level":
            return {}
        metric = thresholds.metric.removeprefix(FINAL).replace("_", " ")
        return {side: f"{metric} {side} {thresholds.level:g}" for side in ("below", "at or above")}
