"""MLflow, imported without its noise: no telemetry, no log lines of schema migrations, no warnings of its own."""

from __future__ import annotations

import importlib
import logging
import os
import warnings


def quiet_mlflow(*modules: str) -> None:
    """Import mlflow (3 s) and these modules of it; call it before any other import of mlflow.

    MLflow and SQLAlchemy 2.1 deprecate parts of each other's use at import, which no user can mend.
    A user's own choice of telemetry in the environment stays.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("mlflow", *modules):
            importlib.import_module(module)
    for name in ("alembic", "mlflow.store.db.utils"):
        logger = logging.getLogger(name)
        if logger.level < logging.WARNING:
            logger.setLevel(logging.WARNING)
