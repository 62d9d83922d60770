"""What MLflow loads for the URI schemes `phasefront-sqlite` and `phasefront-postgresql`.

MLflow loads its plugins while it is itself half imported, so this module imports nothing at the top.
"""

from __future__ import annotations

from typing import Any


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """The bulk tracking store (entry-point group `mlflow.tracking_store`)."""
    from orchestrator.tracking.address import quiet_mlflow

    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store")
    from orchestrator.tracking.store import BulkSqlAlchemyStore

    return BulkSqlAlchemyStore(store_uri, artifact_uri)


def registry_store(store_uri: str) -> Any:
    """MLflow's own model registry in the same database (entry-point group `mlflow.model_registry_store`).

    Without it, a server with one of these schemes has no model registry.
    """
    from orchestrator.tracking.address import database_address, quiet_mlflow

    quiet_mlflow("mlflow.store.model_registry.sqlalchemy_store")
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(database_address(store_uri).uri)
