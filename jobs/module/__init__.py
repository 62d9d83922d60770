"""Any torch module, trained in packs: `from jobs.module import Data, ModuleJob, ModuleParams, Random, param`.

A user gives an ordinary `torch.nn.Module`, data and, where the default does not fit, a loss (`ModuleJob`). See
docs/modules.md. This package imports torch; the built-in jobs do not use it.
"""

from jobs.job import param
from jobs.module.data import Data, Random
from jobs.module.job import ModuleJob
from jobs.module.params import ModuleParams, ModuleThresholds

__all__ = ["Data", "ModuleJob", "ModuleParams", "ModuleThresholds", "Random", "param"]
