"""The command line: arguments, exit codes, and what becomes of an error. What a command does is in `commands`.

Exit codes: 0 done; 1 some trials failed; 2 a user's mistake; 70 a fault of this program;
128 + the signal's number where a signal stopped it (130 for Ctrl-C, 143 for SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_FAULT = 70

_OURS = ("", "orchestrator", "jobs")
"""Packages whose absence is a fault of this program."""

_FILE_HELP = "the sweep file (YAML)"
_SET_HELP = "override a value of the file, e.g. --set axes.weight_decay.points=48; may be repeated"


class _Parser(argparse.ArgumentParser):
    """argparse's own, which says of a misspelt command what it may mean."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            from orchestrator.errors import nearest

            near = nearest(wrong[1], re.findall(r"[a-z]+", wrong[2]))
            message += f"; did you mean '{near}'?" if near else ""
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command. Imports nothing heavy: `--help` answers at once."""
    main_parser = _Parser(
        prog="phasefront",
        description="Phase diagrams of neural-network training, from one sweep file to curves in MLflow and a diagram.",
        epilog=(
            "The same `run` again resumes: what is recorded is not run twice. "
            "With RAY_ADDRESS set, or under `ray job submit`, packs run on that cluster; else on this machine."
        ),
    )
    main_parser.add_argument("--version", action="version", version=f"phasefront {_version()}")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, file: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if file:
            sub.add_argument("file", metavar="FILE", help=_FILE_HELP)
            sub.add_argument(
                "--set", dest="overrides", metavar="PATH=VALUE", action="append", default=[], help=_SET_HELP
            )
        return sub

    command("check", "validate a sweep file; run nothing")
    plan = command("plan", "show trials, packs, and the time and memory that a run would take; record nothing")
    run = command("run", "run what is missing of a sweep, and draw its phase diagram")
    for sub in (plan, run):
        sub.add_argument(
            "--inline", action="store_true", help="run in this process without Ray: slower; for debugging a job"
        )
        sub.add_argument("--workers", type=_positive, metavar="N", help="worker processes, instead of the file's")
    run.add_argument("--quiet", action="store_true", help="no progress, only the result")
    run.add_argument("--no-map", action="store_true", help="draw no phase diagram at the end")
    command("status", "count the finished, running, failed and missing trials of a sweep")
    map_ = command("map", "rebuild the phase diagram from the record alone")
    map_.add_argument(
        "--classifier",
        action="store_true",
        help="let the classifier draw the map between the trials, with the boundary as data; a search's it always does",
    )
    compare = command("compare", "draw two phase maps and their difference side by side", file=False)
    for name, which in (("first", "one"), ("second", "the other")):
        compare.add_argument(
            name,
            metavar="AB"[name == "second"],
            help=f"{which}: a sweep file, a folder of results, or a table of trials (Parquet)",
        )
    compare.add_argument(
        "-o", "--output", metavar="FILE", default="comparison.png", help="the picture (PNG) [comparison.png]"
    )
    replay = command("replay", "train one recorded trial again, and compare its curve with the record", file=False)
    replay.add_argument("run_id", metavar="RUN_ID", help="the MLflow run of the trial")
    replay.add_argument(
        "--tracking", metavar="URI", help="the record; by default $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db"
    )
    replay.add_argument("--alone", action="store_true", help="without the trials it was packed with")
    replay.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.02,
        metavar="X",
        help="where the setting differs: a value may differ by X, plus X of itself (default 0.02)",
    )
    command("schema", "print the JSON Schema of sweep files, for an editor", file=False)
    return main_parser


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text!r}")


def _tolerance(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number >= 0; got {text!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("phasefront")
    except PackageNotFoundError:  # a checkout that is not installed
        return "(not installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # A belief over a few thousand trials is many small products: threads would wait for each other and for the workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    given = parser().parse_args(arguments)
    if os.getcwd() not in sys.path:  # noqa: PTH109 - the same text as sys.path holds
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - `job: my_module:train` lies where the command is started
    from orchestrator.errors import UserError

    try:
        from orchestrator import commands

        return commands.COMMANDS[given.command](given)
    except UserError as error:
        print(f"phasefront {given.command}: {error.text}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left, e.g. `phasefront status x.yaml | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - so that the interpreter's last flush is quiet
        return 0
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in _OURS:
            print(
                f"phasefront {given.command}: {error.name} is not installed: install phasefront with its libraries "
                "(make install)",
                file=sys.stderr,
            )
            return EXIT_MISTAKE
        import traceback

        traceback.print_exc()
        print(
            f"phasefront {given.command}: this is a fault of phasefront, not of your sweep. Please report it with "
            f"the lines above and the version ({_version()}). What was recorded is safe: the same command goes on.",
            file=sys.stderr,
        )
        return EXIT_FAULT
