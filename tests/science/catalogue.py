"""All checks, in the order they run. Another module of checks is added here."""

from __future__ import annotations

from tests.science import analysis, grokking, linear, networks
from tests.science.check import Check

CHECKS: tuple[Check, ...] = (*linear.CHECKS, *grokking.CHECKS, *analysis.CHECKS, *networks.CHECKS)
