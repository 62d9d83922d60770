"""The names of MLflow that are not part of its documented interface and that tracking uses: each is checked here.

When MLflow changes one of them, the test that fails names it and the module that uses it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from orchestrator import tracking
from orchestrator.tracking.address import quiet_mlflow

FOLDER = Path(next(iter(tracking.__path__)))

PRIVATE = {"mlflow.utils.name_utils._generate_random_name"}
"""Names that begin with an underscore."""

UNDOCUMENTED = {
    "mlflow.store.artifact.artifact_repository_registry.get_artifact_repository",
    "mlflow.store.db.utils.create_sqlalchemy_engine_with_retry",
    "mlflow.store.model_registry.sqlalchemy_store.SqlAlchemyStore",
    "mlflow.store.tracking.dbmodels.models.SqlMetric",
    "mlflow.store.tracking.dbmodels.models.SqlRun",
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore",
    "mlflow.utils.credentials.get_default_host_creds",
    "mlflow.utils.mlflow_tags.MLFLOW_RUN_NAME",
    "mlflow.utils.rest_utils.http_request",
    "mlflow.utils.uri.append_to_uri_path",
    "mlflow.utils.validation.MAX_ENTITIES_PER_BATCH",
    "mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH",
    "mlflow.utils.validation.MAX_METRICS_PER_BATCH",
    "mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH",
    "mlflow.utils.validation.MAX_PARAM_VAL_LENGTH",
    "mlflow.utils.validation.MAX_TAG_VAL_LENGTH",
    "mlflow.utils.validation.path_not_unique",
    "mlflow.utils.validation.validate_param_and_metric_name",
}
"""Public by their names, but in modules that MLflow does not document."""

DOCUMENTED = (
    "mlflow.MlflowClient",
    "mlflow.artifacts.download_artifacts",
    "mlflow.entities.",
    "mlflow.exceptions.",
    "mlflow.tracking.MlflowClient",
)

PARAMETERS = {
    "create_run": ["experiment_id", "user_id", "start_time", "tags", "run_name"],
    "update_run_info": ["run_id", "run_status", "end_time", "run_name"],
    "log_metric": ["run_id", "metric"],
    "log_batch": ["run_id", "metrics", "params", "tags"],
}
"""Parameters of the methods of MLflow's store that the bulk store replaces."""


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")


def imported() -> dict[str, str]:
    """Every name that tracking imports from MLflow -> the module that does."""
    names = {}
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlflow":
                names.update({f"{node.module}.{alias.name}": file.name for alias in node.names})
    return names


def test_tracking_imports_no_other_name_of_mlflow():
    undocumented = {name for name in imported() if not name.startswith(DOCUMENTED)}
    assert undocumented == PRIVATE | UNDOCUMENTED
    assert {name for name in imported() if name.rpartition(".")[2].startswith("_")} == PRIVATE


@pytest.mark.parametrize("name", sorted(PRIVATE | UNDOCUMENTED))
def test_mlflow_has_the_name(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), (
        f"MLflow has no {name} any more: tracking/{imported().get(name)} uses it"
    )


def test_a_random_run_name_is_a_text():
    from mlflow.utils.name_utils import _generate_random_name

    assert isinstance(_generate_random_name(), str), (
        "mlflow.utils.name_utils._generate_random_name returns no text any more: tracking/store.py uses it"
    )


@pytest.mark.parametrize("method", sorted(PARAMETERS))
def test_a_method_that_the_bulk_store_replaces_has_the_same_parameters(method):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from orchestrator.tracking.store import BulkSqlAlchemyStore

    found, ours = (
        [name for name in inspect.signature(getattr(store, method)).parameters if name != "self"]
        for store in (SqlAlchemyStore, BulkSqlAlchemyStore)
    )
    message = f"MLflow's SqlAlchemyStore.{method} has other parameters than tracking/store.py expects"
    assert found == ours == PARAMETERS[method], message


def test_the_bulk_store_overrides_only_methods_that_mlflow_s_store_has():
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from orchestrator.tracking.store import BulkSqlAlchemyStore

    own = {name for name in vars(BulkSqlAlchemyStore) if not name.startswith("__")}
    assert own == {*PARAMETERS, "bulk"}
    assert not hasattr(SqlAlchemyStore, "bulk"), "MLflow's SqlAlchemyStore.bulk clashes with that of tracking/store.py"
    private = {
        node.attr
        for node in ast.walk(ast.parse((FOLDER / "store.py").read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert private == {"_has_log"}
    assert not hasattr(SqlAlchemyStore, "_has_log")


def test_mlflow_s_store_has_the_attributes_that_the_bulk_store_uses(tmp_path):
    from orchestrator.tracking.store import BulkSqlAlchemyStore

    store = BulkSqlAlchemyStore(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        for attribute in ("engine", "db_type", "ARTIFACTS_FOLDER_NAME"):
            assert hasattr(store, attribute), f"MLflow's SqlAlchemyStore has no {attribute}: tracking/store.py uses it"
        assert store.db_type == "sqlite"
    finally:
        store.engine.dispose()


def test_the_variable_with_the_server_s_artifact_root_has_its_name():
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR

    from orchestrator.tracking import store

    assert ARTIFACT_ROOT_ENV_VAR == store._ARTIFACT_ROOT_VARIABLE, (
        "mlflow.server.ARTIFACT_ROOT_ENV_VAR has changed: tracking/store.py repeats it"
    )


def test_a_metric_name_that_we_accept_has_characters_that_mlflow_accepts():
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, validate_param_and_metric_name

    from jobs.job import LONGEST_METRIC_NAME, is_metric_name

    assert LONGEST_METRIC_NAME == MAX_ENTITY_KEY_LENGTH
    parts = ["", "a", "_", ".", "..", "é", "a b", "a:b", "-", "a.", "..a", "%", "1"]
    names = [*parts, *(f"{a}/{b}" for a in parts for b in parts), *(f"{a}/{b}/c" for a in parts for b in parts)]
    accepted = [name for name in names if is_metric_name(name)]
    assert {"a", "é", "a/a b", "_/1/c", "a/"} <= set(accepted)  # databases of earlier versions may hold "a/"
    assert not {"a//c", "a/..", "../a", "%", ""} & set(accepted)
    for name in accepted:
        assert validate_param_and_metric_name(name), f"MLflow does not accept {name!r}"
