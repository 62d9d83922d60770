"""Settings that every test shares."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# As workers train. Before torch is imported: several threads of one product wait for each other on a busy machine.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Under `nohup`, programs that tests start would ignore it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Two busy cores make no example fail; in CI the same examples run every time, so that a red run can be repeated.
settings.register_profile(
    "phasefront", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("phasefront")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write what the user's machine has measured; generated data sets are kept."""
    data = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phasefront" / "data"
    before = {name: os.environ.get(name) for name in ("XDG_CACHE_HOME", "PHASEFRONT_DATA", "MLFLOW_TRACKING_URI")}
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["PHASEFRONT_DATA"] = before["PHASEFRONT_DATA"] or str(data)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
