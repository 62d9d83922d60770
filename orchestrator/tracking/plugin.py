"""What MLflow loads for the URI schemes `phasefront-sqlite` and `phasefront-postgresql`.

MLflow loads its plugins while it is itself half imported, so this module imports nothing; the stores
are imported when the first one is built.
"""

from __future__ import annotations

from typing import Any


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """The bulk tracking store (entry-point group `mlflow.tracking_store`)."""
    from orchestrator.tracking.quiet import quiet_mlflow

    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store")
    from orchestrator.tracking.store import BulkSqlAlchemyStore

    return BulkSqlAlchemyStore(store_uri, artifact_uri)


def registry_store(store_uri: str) -> Any:
    """MLflow's own model registry in the same database (group `mlflow.model_registry_store`).

    Without it a server on one of these schemes has no model registry.
    """
    from orchestrator.tracking.quiet import quiet_mlflow

    quiet_mlflow("mlflow.store.model_registry.sqlalchemy_store")
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    from orchestrator.tracking.address import database_address

    return SqlAlchemyStore(database_address(store_uri).uri)
