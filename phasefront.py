"""Results of Phasefront sweeps in notebooks and scripts: `import phasefront`.

    sweep = phasefront.load("sweep.yaml")      # or an MLflow run id, or the address of a run's page
    trials = sweep.trials()                    # a row per trial
    sweep = phasefront.run("sweep.yaml")       # runs what is missing first
    curves = sweep.curves(["test_accuracy"], axes=True)   # a row per trial and step

See docs/notebooks.md. The code is in the packages `orchestrator` and `jobs`; this module is their public face.
"""

from orchestrator.commands.notebook import load, run
from orchestrator.errors import Outage, UserError
from orchestrator.results.maps import PhaseMap
from orchestrator.results.sweep_results import SweepResults

__all__ = ["Outage", "PhaseMap", "SweepResults", "UserError", "load", "run"]
