"""The command line: arguments, exit codes and errors. What a command does is in `commands`.

Exit codes: 0 success; 1 some trials failed by their own fault; 2 a user's mistake; 70 a bug in this program; 75 the
infrastructure failed, and the same command can be run again; 128 + the signal's number if a signal stopped it (129 for
SIGHUP, 130 for Ctrl-C, 141 for a closed pipe, 143 for SIGTERM). docs/failures.md has the causes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import IO, Any, NoReturn

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_FAULT = 70
EXIT_OUTAGE = 75
EXIT_CLOSED_PIPE = 141
"""128 + SIGPIPE, as of any other program whose reader has ended."""

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the operating system that no change of the sweep or of this program would remove."""
_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
"""Errors of a file or folder that another path, or other rights, would remove."""
_OURS = ("", "orchestrator", "jobs")
"""Packages whose absence is a bug in this program, not a missing library."""

_HARMLESS = {"test", "this", "antigravity"}
"""Modules of Python's library that no library imports."""

_HTML = ", or the interactive page: .html; with --step, --against or --more-data, their figures instead"
_ADDRESS = (
    "the head's dashboard, e.g. http://HOST:8265; by default $RAY_API_SERVER_ADDRESS, or port 8265 of this machine"
)
_FILE = "the sweep file (YAML)"
_SET = "override a value of the file, e.g. --set axes.weight_decay.points=48; may be repeated"


class _Parser(argparse.ArgumentParser):
    """Says what to do about an unknown command or option."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._commands.choices[given.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return given

    _commands: Any
    """The parsers of the commands, of the main parser."""

    def error(self, message: str) -> NoReturn:
        from orchestrator.errors import did_you_mean

        step = "phasefront --help lists the commands" if "required: COMMAND" in message else ""
        if wrong := re.search(r"COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            first = "the command comes first, as in phasefront check FILE; phasefront --help lists them"
            step = did_you_mean(wrong[1], re.findall(r"[a-z]+", wrong[2]), first)
        elif wrong := re.search(r"unrecognized arguments: (\S*)", message):
            step = f"name one file, and quote a value that has blanks; {self.prog} --help lists the options"
            if wrong[1].startswith("-"):
                step = did_you_mean(f"--{wrong[1].lstrip('-')}", self._option_string_actions, step)
            elif "=" in wrong[1]:
                settings = (option for option in self._actions if str(option.metavar).endswith("=VALUE"))
                again = " or ".join(f"{option.option_strings[0]} {wrong[1]}" for option in settings)
                step = f"repeat the option before every setting: {again}" if again else step
        message += f"\n  next:  {step}" if step else ""
        super().error(_hide(message))


def parser() -> argparse.ArgumentParser:
    """The arguments of every command. It imports no large library, so that `--help` is fast."""
    main_parser = _Parser(
        prog="phasefront",
        description="Phase diagrams of neural-network training, from one sweep file to curves in MLflow and a diagram.",
        epilog=(
            "Repeating a `run` resumes it: recorded trials are not run again. "
            "With RAY_ADDRESS set, or under `ray job submit`, trials run on that cluster; otherwise on this machine."
        ),
    )
    main_parser.add_argument("--version", action="version", version=f"phasefront {_version()}")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    main_parser._commands = commands

    def command(name: str, text: str, *, file: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if file:
            sub.add_argument("file", metavar="FILE", help=_FILE)
            sub.add_argument("--set", dest="overrides", metavar="PATH=VALUE", action="append", default=[], help=_SET)
        return sub

    check = command("check", "validate a sweep file without running anything")
    check.add_argument(
        "--rehearse", action="store_true", help="also train a few trials for some seconds, without recording anything"
    )
    plan = command(
        "plan", "show trials, packs, and the time and memory that a run would take, without recording anything"
    )
    plan.add_argument(
        "--price", type=_price, metavar="X", help="per hour of a GPU, or of a CPU core without one: also show the cost"
    )
    run = command("run", "run the missing trials of a sweep, and draw its phase diagram")
    for sub in (plan, run):
        sub.add_argument(
            "--inline", action="store_true", help="run in this process without Ray: slower; for debugging a job"
        )
    submit = command("submit", "run a sweep as a job of a Ray cluster, and follow it; repeated, it resumes")
    logs = command("logs", "print what a submitted sweep has printed")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    stop = command("stop", "stop a submitted sweep; its recorded trials are kept")
    submit.add_argument("--no-wait", action="store_true", help="do not follow it")
    for sub in (submit, logs, stop):
        sub.add_argument("--address", metavar="URL", help=_ADDRESS)
    for sub in (plan, run, submit):
        sub.add_argument("--workers", type=_positive, metavar="N", help="worker processes, instead of the file's")
    run.add_argument("--quiet", action="store_true", help="print the result only, without progress")
    for sub in (run, submit):
        sub.add_argument(
            "--allow-failures",
            action="store_true",
            help="exit with 0 although trials failed, if all the others finished",
        )
    figures: Any = {
        "type": _figures,
        "default": (),
        "metavar": "svg,pdf",
        "help": "formats in which every figure is written beside PNG: svg, pdf, or both",
    }
    run.add_argument("--figures", **figures)
    run.add_argument("--no-map", action="store_true", help="do not draw the phase diagram")
    status = command("status", "count the finished, running, failed and missing trials of a sweep")
    status.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=5.0,
        metavar="SECONDS",
        help="show it again and again, every 5 seconds or as given, until the run ends",
    )
    audit = command("audit", "check that the record of a sweep is consistent, without writing anything")
    audit.add_argument("--all", action="store_true", help="list every violation, instead of one line for each kind")
    map_ = command("map", "draw the phase diagram from the record, without running trials")
    map_.add_argument(
        "--classifier",
        action="store_true",
        help="draw the map of a grid with the classifier, as that of a search, and write the boundary as data",
    )
    map_.add_argument(
        "--step",
        metavar="METRIC",
        action="append",
        default=[],
        help="also draw a recorded metric over an axis and the step, with its peaks; may be repeated",
    )
    map_.add_argument(
        "--against",
        nargs=2,
        metavar=("x=NAME", "y=NAME"),
        action="append",
        default=[],
        help="also draw one observation, parameter or METRIC@OBSERVATION against another; may be repeated",
    )
    map_.add_argument(
        "--more-data",
        metavar="ERROR",
        action="append",
        default=[],
        help="also show where twice the samples increase this observation; may be repeated",
    )
    map_.add_argument(
        "--along",
        metavar="AXIS",
        help="the axis beside the step [the one with the most values], or the axis of samples of --more-data",
    )
    analyse = command(
        "analyse", "compute the statistics that the sweep file names, from the record, without running trials"
    )
    width: Any = {
        "type": _width,
        "metavar": "WIDTH",
        "help": "of the figures on a page: single, double, or millimetres, instead of the file's",
    }
    for sub, what in ((map_, "the phase diagram"), (analyse, "the figures")):
        sub.add_argument("--figures", **figures)
        sub.add_argument(
            "-o",
            "--output",
            metavar="FILE",
            help=f"also write {what} for a page: .pdf, .svg, .png" + _HTML * (sub is map_),
        )
        sub.add_argument("--width", **width)
    command("report", "write one page about a sweep (HTML) from the record, without running trials")
    ui = command("ui", "show a sweep in the browser while it runs, with its curves; reads only")
    ui.add_argument("--port", type=_port, metavar="N", help="of the page [8642, or a free one]")
    ui.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where the page listens [127.0.0.1]")
    ui.add_argument("--no-mlflow", action="store_true", help="do not start MLflow's server")
    compare = command(
        "compare", "draw phase maps and their difference side by side, and say how far the boundary moved", file=False
    )
    for name, which in (("first", "one"), ("second", "the other")):
        compare.add_argument(
            name,
            metavar="AB"[name == "second"],
            help=f"{which}: a sweep file, a folder of results, or a table of trials (Parquet)",
        )
    compare.add_argument("further", metavar="C", nargs="*", help="further ones, which are compared with A too")
    compare.add_argument("--along", metavar="AXIS", help="the axis along which the shift of the boundary is measured")
    figure = "change how the figures look, e.g. --set figure.decimal=comma; may be repeated"
    compare.add_argument(
        "--set", dest="overrides", metavar="figure.KEY=VALUE", action="append", default=[], help=figure
    )
    compare.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="comparison.png",
        help="the picture: .png, .svg or .pdf [comparison.png]",
    )
    compare.add_argument("--figures", **figures)
    compare.add_argument("--width", **width)
    read = command("read", "print where the boundary crosses a line through the map, per seed, with an interval")
    read.add_argument(
        "--at",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="the value of an axis; for every axis but one; may be repeated",
    )
    read.add_argument("--along", metavar="AXIS", help="the axis along which it is read, if several are left")
    replay = command("replay", "train a recorded trial again, and compare its curve with the record", file=False)
    replay.add_argument("run_id", metavar="RUN_ID", help="the MLflow run of the trial")
    replay.add_argument(
        "--tracking", metavar="URI", help="the record; by default $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db"
    )
    replay.add_argument("--alone", action="store_true", help="train it alone, without the other trials of its pack")
    replay.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.02,
        metavar="X",
        help="allowed difference in another environment: X, plus X times the value (default 0.02)",
    )
    export = command("export", "write the results of a sweep as files, with a data dictionary")
    export.add_argument(
        "--format", choices=("parquet", "csv", "netcdf"), default="parquet", help="of the files [parquet]"
    )
    export.add_argument("--metrics", metavar="A,B", help="the metrics whose curves are written; all by default")
    export.add_argument("-o", "--output", metavar="FOLDER", help="where [the sweep's output folder]/export")
    verify = command("verify-job", "test that a job's packed trials are what they are alone", file=False)
    verify.add_argument("job", metavar="JOB", help="as in a sweep file: a built-in job, or my_module:MyJob")
    verify.add_argument(
        "--set", dest="values", metavar="NAME=VALUE", action="append", default=[], help="a parameter; may be repeated"
    )
    verify.add_argument(
        "--steps",
        type=_positive,
        default=30,
        metavar="N",
        help="optimiser steps, where the job can shorten trials [30]",
    )
    new = command("new", "make a folder with a sweep file and a job to begin with", file=False)
    new.add_argument("name", metavar="NAME", help="the folder, and the name of the sweep")
    new.add_argument(
        "--module", action="store_true", help="with a torch module that is trained in packs, instead of a function"
    )
    examples = command("examples", "list the published sweeps, print one or copy one", file=False)
    examples.add_argument("name", metavar="NAME", nargs="?", help="a published sweep; without it, all are listed")
    examples.add_argument("--copy", action="store_true", help="copy it into this folder instead of printing it")
    command("schema", "print the JSON Schema of sweep files, for editors", file=False)
    completion = command("completion", "print the script by which a shell completes commands and files", file=False)
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    completion.set_defaults(parser=main_parser)
    return main_parser


def _hide(text: str) -> str:
    from orchestrator.secrets import hide

    return hide(text)


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text!r}")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= int(text) <= 65535:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535; got {text!r}")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds > 0; got {text!r}")


def _price(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a price > 0, such as 2.5; got {text!r}")


def _figures(text: str) -> tuple[str, ...]:
    kinds = tuple(kind.strip() for kind in text.split(","))
    if set(kinds) <= {"png", "svg", "pdf"}:
        return tuple(kind for kind in kinds if kind != "png")
    raise argparse.ArgumentTypeError(f"must be png, svg, pdf, or several with commas between; got {text!r}")


def _width(text: str) -> str | float:
    with contextlib.suppress(ValueError):
        if text in ("single", "double") or 30 <= float(text) <= 500:
            return text if text in ("single", "double") else float(text)
    raise argparse.ArgumentTypeError(f"must be single, double, or millimetres from 30 to 500; got {text!r}")


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
    from orchestrator.output import guarded_output, open_missing_streams

    open_missing_streams()
    # The surrogate of a few thousand trials takes many small products: threads would compete with the workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - `Path.home` raises, here and in libraries
        os.environ["HOME"] = "/"  # as Docker sets it for a user without an entry in passwd
    given = parser().parse_args(arguments)
    try:
        folder = os.getcwd()  # noqa: PTH109 - the same text as sys.path holds
    except OSError as error:
        step = "change to a folder that exists"
        print(f"phasefront {given.command}: the current folder is gone: {error}\n  next:  {step}", file=sys.stderr)
        return EXIT_MISTAKE
    if folder not in sys.path:
        sys.path.insert(0, folder)  # `job: my_module:train` is in the folder of the command
    with contextlib.suppress(OSError):  # a folder that may be entered, but not listed
        own = {file.removesuffix(".py") for file in os.listdir(folder) if file.endswith(".py")}  # noqa: PTH208
        for name in sorted(own & sys.stdlib_module_names - _HARMLESS):
            print(f"warning: {name}.py here hides a module of Python's library\n  next:  rename it", file=sys.stderr)
    from orchestrator.secrets import learn

    learn(*(sys.argv[1:] if arguments is None else arguments))
    try:
        with guarded_output(outlive=given.command == "run"):
            return _run(given, sys.stdout)
    except BrokenPipeError:  # as in `phasefront status x.yaml | head`
        return EXIT_CLOSED_PIPE


def _run(given: argparse.Namespace, output: IO[str]) -> int:
    from orchestrator.errors import Outage, UserError

    try:
        from orchestrator.commands import run_command

        code = run_command(given)
        output.flush()  # not `sys.stdout`, which a job may have replaced
        return code
    except UserError as error:
        print(f"phasefront {given.command}: {error.text}", file=sys.stderr)
        return EXIT_MISTAKE
    except Outage as outage:
        print(f"phasefront {given.command}: {outage.text}", file=sys.stderr)
        return EXIT_OUTAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in _OURS:
            step = "install phasefront with its libraries (make install)"
            print(f"phasefront {given.command}: {error.name} is not installed: {step}", file=sys.stderr)
            return EXIT_MISTAKE
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE):
            why = str(error) or "out of memory"
            step = "free what is short, then run the same command again: recorded results are safe"
            print(f"phasefront {given.command}: this machine failed: {why}\n  next:  {step}", file=sys.stderr)
            return EXIT_OUTAGE
        if isinstance(error, OSError) and error.errno in _PATH and error.filename is not None:
            step = "give this user the right, or name another folder (--set output=FOLDER); recorded results are safe"
            why = f"{error.strerror}: {os.fsdecode(error.filename)}"
            print(f"phasefront {given.command}: {_hide(why)}\n  next:  {step}", file=sys.stderr)
            return EXIT_MISTAKE
        import traceback

        traceback.print_exc()
        print(
            f"phasefront {given.command}: this is a bug in phasefront, not in your sweep. Please report it with the "
            f"lines above and the version ({_version()}). Recorded results are safe; run the same command again "
            "to resume.",
            file=sys.stderr,
        )
        return EXIT_FAULT
