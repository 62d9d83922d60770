"""What each command does. Modules are imported when their command is run, so that none pays for another."""

import argparse
import importlib

_FUNCTIONS = {
    "check": "inspect:check",
    "plan": "inspect:plan",
    "run": "run:run",
    "submit": "submitting:submit",
    "logs": "submitting:logs",
    "stop": "submitting:stop",
    "status": "status:status",
    "audit": "audit:audit_",
    "map": "publishing:map_",
    "analyse": "analysing:analyse",
    "report": "report:report",
    "ui": "ui:ui",
    "compare": "compare:compare",
    "replay": "replay:replay",
    "export": "export:export",
    "read": "read:read",
    "verify-job": "verifying:verify_job",
    "new": "starting:new",
    "examples": "starting:examples",
    "schema": "inspect:schema",
    "completion": "completion:completion",
}


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command that the arguments name; its exit code."""
    module, _, function = _FUNCTIONS[arguments.command].partition(":")
    code: int = getattr(importlib.import_module(f"{__name__}.{module}"), function)(arguments)
    return code
