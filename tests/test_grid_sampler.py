"""Laws of the grid sampler."""

from jobs_for_tests import DescentParams
from samplers_contract import SamplerContract

from orchestrator.search.base import Sampler
from orchestrator.search.grid import GridSampler
from orchestrator.trial import Trial


def trials(count: int = 23) -> list[Trial]:
    return [
        Trial(job="jobs_for_tests:Descent", job_version=1, params=DescentParams(steps=n + 1), replicate=0)
        for n in range(count)
    ]


class TestGridSampler(SamplerContract):
    def sampler(self) -> Sampler:
        return GridSampler(trials())

    def test_it_asks_all_trials_in_their_order(self) -> None:
        assert [t.id for t in self.drive(GridSampler(trials()), 4)] == [t.id for t in trials()]

    def test_it_waits_for_no_outcome(self) -> None:
        sampler = GridSampler(trials())
        assert len(sampler.ask(1000)) == sampler.expected_trials == 23
        assert sampler.exhausted

    def test_a_trial_given_twice_is_asked_once(self) -> None:
        sampler = GridSampler(trials(5) + trials(7))
        assert sampler.expected_trials == 7
        assert [t.id for t in sampler.ask(100)] == [t.id for t in trials(7)]

    def test_an_empty_grid_is_exhausted_from_the_start(self) -> None:
        assert GridSampler([]).exhausted
