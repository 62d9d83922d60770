"""The contract of every Sampler. An implementation's tests inherit `SamplerContract`."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

import pytest

from orchestrator.records import Status, TrialResult
from orchestrator.search.base import Sampler
from orchestrator.trial import Trial

SizesOfAsk = (1, 3, 1000)


class SamplerContract(ABC):
    """Inherit it, name the class `Test...` and define `sampler` and `result`."""

    @abstractmethod
    def sampler(self) -> Sampler:
        """A new sampler, equal to every other that this makes."""

    def result(self, trial: Trial) -> TrialResult:
        """How the trial ends; the same for the same trial."""
        observations = {"final_loss": float(len(trial.id))}
        return TrialResult(trial_id=trial.id, status=Status.FINISHED, phase="near", observations=observations)

    def drive(self, sampler: Sampler, size: int, *, shuffle: int = 0, limit: int = 100_000) -> list[Trial]:
        """Ask and tell until the sampler has ended: every trial asked, in order."""
        order, asked, untold = random.Random(shuffle), [], []
        while not sampler.exhausted:
            new = sampler.ask(size)
            assert len(new) <= size
            asked += new
            untold += new
            assert untold or sampler.exhausted, "it waits for results, but all asked trials have been told"
            assert len(asked) <= limit, "it never ends"
            if shuffle:
                order.shuffle(untold)
            for _ in range(max(1, len(untold) // 2) if untold else 0):
                sampler.tell(self.result(untold.pop()))
        for trial in untold:
            sampler.tell(self.result(trial))
        return asked

    @pytest.mark.parametrize("size", SizesOfAsk)
    def test_no_trial_is_asked_twice(self, size: int) -> None:
        ids = [trial.id for trial in self.drive(self.sampler(), size)]
        assert ids
        assert len(ids) == len(set(ids))

    def test_trials_may_be_told_in_any_order(self) -> None:
        for shuffle in (1, 2, 3):
            sampler = self.sampler()
            assert self.drive(sampler, 4, shuffle=shuffle)
            assert sampler.exhausted

    def test_the_order_in_which_a_batch_is_told_is_irrelevant(self) -> None:
        def asked(shuffle: int) -> list[str]:
            sampler, order, ids = self.sampler(), random.Random(shuffle), []
            while not sampler.exhausted:
                batch = sampler.ask(1000)
                ids += [trial.id for trial in batch]
                order.shuffle(batch)
                for trial in batch:
                    sampler.tell(self.result(trial))
            return ids

        assert asked(1) == asked(2) == asked(3)

    def test_asking_for_none_gives_none_and_changes_nothing(self) -> None:
        with_zero, without = self.sampler(), self.sampler()
        for _ in range(3):
            assert with_zero.ask(0) == []
        assert not with_zero.exhausted
        assert [t.id for t in with_zero.ask(5)] == [t.id for t in without.ask(5)]

    def test_an_exhausted_sampler_asks_no_more(self) -> None:
        sampler = self.sampler()
        self.drive(sampler, 7)
        assert sampler.exhausted
        assert sampler.ask(10) == []
        assert sampler.exhausted

    def test_it_asks_at_most_as_many_as_it_expects(self) -> None:
        sampler = self.sampler()
        expected = sampler.expected_trials
        assert 0 < len(self.drive(sampler, 5)) <= expected

    def test_equal_samplers_with_equal_results_ask_the_same(self) -> None:
        assert [t.id for t in self.drive(self.sampler(), 3)] == [t.id for t in self.drive(self.sampler(), 3)]

    def test_telling_failures_does_not_stop_it(self) -> None:
        sampler, asked = self.sampler(), 0
        while not sampler.exhausted:
            new = sampler.ask(4)
            assert new or sampler.exhausted
            asked += len(new)
            for trial in new:
                sampler.tell(TrialResult(trial_id=trial.id, status=Status.FAILED))
        assert asked
