"""Settings that every test shares."""

import os

from hypothesis import HealthCheck, settings

# Two busy cores make no example fail; in CI the same examples run every time, so that a red run can be repeated.
settings.register_profile(
    "phasefront", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("phasefront")
