"""ui: a local page that shows a sweep while it runs."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.commands.again import command_line
from orchestrator.commands.browse import LOCAL_UI, browse_lines
from orchestrator.commands.inspect import search_lines
from orchestrator.commands.report import failures_of
from orchestrator.commands.searching import known_trials
from orchestrator.commands.status import Driver
from orchestrator.commands.wiring import load_sweep, open_tracker, reading_patience
from orchestrator.errors import Outage, UserError
from orchestrator.phases.style import drawn_as
from orchestrator.phases.text import label_colour, plain
from orchestrator.secrets import secrets_in
from orchestrator.tracking.address import PREFIX
from orchestrator.tracking.factory import MEMORY, open_reader

if TYPE_CHECKING:
    from orchestrator.live.app import Document
    from orchestrator.live.mlflow_ui import MlflowServer
    from orchestrator.phases.interactive import Interactive
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.base import Tracker
    from orchestrator.tracking.facts import RecordReader

EVERY_S = 2.0
"""Time between two readings of the record, while the page is open."""
LEAST_REST = 99
"""The time between two readings, or two drawings, is at least so many times the processor time that one takes."""
LONGEST_REST_S = 60.0
"""While the record cannot be read, each time between two attempts is twice the one before, and at most this."""
UNWATCHED_S = 20.0
"""The record is not read while no browser has asked for so long."""


def ui(arguments: argparse.Namespace) -> int:
    """Serve the page until a signal comes."""
    from orchestrator.live.app import application
    from orchestrator.live.serve import listen, served

    sweep = load_sweep(arguments)
    if sweep.tracking.uri == MEMORY:
        step = "set tracking.uri to a database, such as sqlite:///mlflow.db, or the address of an MLflow server"
        raise UserError("nothing is kept at this address", place="tracking.uri", value=MEMORY, next_step=step)
    stop = threading.Event()
    with _stopping(stop), contextlib.closing(_Live(sweep, arguments)) as live:
        live.refresh()
        token = secrets.token_urlsafe(16)
        app = application(token, state=live.state, map_=live.map, curves=live.curves)
        with contextlib.closing(listen(arguments.host, arguments.port)) as at, served(app, at):
            host, port = at.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"page      http://{host}:{port}/{token}/", flush=True)
            print("it reads the record and changes nothing; Ctrl-C ends it", flush=True)
            while not stop.wait(live.rest_s()):
                live.refresh()
    return 0


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Signals end the page in an orderly way."""

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal ends the page and MLflow's server too, except under nohup, which ignores SIGHUP.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Live:
    """The documents of the page, made on one thread and read on others."""

    def __init__(self, sweep: Sweep, arguments: argparse.Namespace) -> None:
        from orchestrator.live.app import Document

        self._sweep, self._arguments = sweep, arguments
        self._tracker: Tracker | None = None
        self._reader: RecordReader | None = None
        self._curves: Tracker | None = None
        self._curves_lock = threading.Lock()
        self._watch: Any = None
        self._server: MlflowServer | None = None
        self._mlflow: dict[str, Any] = {"runs": "", "sweep": "", "note": "", "command": ""}
        self._parent: str | None = None
        self._state = self._map = Document.of("", {})
        self._picture: tuple[str, Interactive] | None = None
        self._colours: dict[str, str] = {}
        self._asked_at = time.monotonic()
        self._rest_s, self._has_read = EVERY_S, False
        self._drawn_version, self._draw_at, self._readings = -1, 0.0, 0

    # --- read by the server's threads ---

    def state(self) -> Document:
        self._asked_at = time.monotonic()
        return self._state

    def map(self) -> Document:
        return self._map

    def curves(self, cell: int, version: str) -> Document:
        """The curves of a cell's trials.

        Raises:
            LookupError: The map has changed, or has no such cell.
        """
        from orchestrator.live.app import Document
        from orchestrator.live.content import MOST_CURVES, curves_of

        current = self._picture
        if current is None or current[0] != version or not (rows := current[1].rows_of(cell)):
            raise LookupError(cell)
        picture = current[1]
        wanted = [picture.table.trial_id[row] for row in rows[:MOST_CURVES] if picture.table.run_id[row] is not None]
        with self._curves_lock:
            try:
                if self._curves is None:
                    self._curves = open_tracker(self._sweep)
                found = dict(self._curves.curves(wanted))
            except (Outage, UserError):
                _close(self._curves)
                self._curves = None
                raise LookupError(cell) from None
        with drawn_as(self._sweep.figure):
            return Document.of(f"{version}.{cell}", curves_of(picture, cell, found))

    # --- on the main thread ---

    def rest_s(self) -> float:
        """Seconds until the next reading."""
        return self._rest_s

    def refresh(self) -> None:
        """Read what has changed, and draw the map if it has and its time has come; nothing while nobody looks."""
        if time.monotonic() - self._asked_at > UNWATCHED_S:
            self._rest_s = EVERY_S / 4  # so that a browser that comes back sees something new soon
            return
        began, trouble, driver = self._spent(), "", Driver()
        try:
            driver = self._read()
        except (Outage, UserError) as error:
            trouble = error.text
            _close(self._tracker)
            _close(self._reader)
            self._tracker = self._reader = None
        if trouble:
            self._rest_s = min(2 * max(self._rest_s, EVERY_S), LONGEST_REST_S)
        else:
            # The first reading also imports libraries, connects and reads all that has ended: no measure of the next.
            self._rest_s = max(EVERY_S, LEAST_REST * (self._spent() - began)) if self._has_read else EVERY_S
            self._has_read = True
        if self._watch is not None:
            self._draw()
        self._say(trouble, driver)

    def _spent(self) -> float:
        """Seconds of processor time; over HTTP of any time, as it is the server's that a reading costs."""
        over_http = self._sweep.tracking.uri.startswith(("http://", "https://"))
        return time.monotonic() if over_http else time.thread_time()

    def _read(self) -> Driver:
        """Read what has changed; who writes to the experiment.

        Raises:
            Outage: The record does not answer.
            UserError: Its address is wrong.
        """
        from orchestrator.live.watch import Watch

        tracking = self._sweep.tracking
        if self._tracker is None:
            self._tracker = open_tracker(self._sweep)
        if self._reader is None:
            patience = reading_patience(f"the record ({self._sweep.record_shown})")
            self._reader = open_reader(tracking.uri, experiment=tracking.experiment, patience=patience)
        if self._watch is None:
            self._watch = Watch(self._sweep, known_trials(self._sweep, self._tracker))
        self._watch.refresh(self._tracker)
        if self._parent is None:
            self._parent = self._tracker.find_sweep(self._sweep.id)
            if self._parent is not None:
                self._link(self._tracker.experiment_id, self._parent)
        return Driver.of(self._reader, self._parent)

    def _link(self, experiment_id: str | None, parent: str) -> None:
        """Find or start the server of MLflow's pages."""
        from orchestrator.live.mlflow_ui import MlflowServer, serves

        if experiment_id is None:
            return
        uri = self._sweep.tracking.uri
        lines = {line[:10].strip(): line[10:] for line in browse_lines(uri, experiment_id, parent)}
        self._mlflow["command"] = lines.get("browse", "")
        url = urlsplit(lines["all runs"])
        server = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
        if server == LOCAL_UI and not serves(server, parent):
            if self._arguments.no_mlflow:
                self._mlflow["note"] = "MLflow's server is not running: start it by the command below"
            elif secrets_in(uri):  # whoever reaches MLflow's server can write
                note = "MLflow's server is not started: it has no password, and the record has one"
                self._mlflow["note"] = f"{note}; to start it yourself, use the command below"
            else:
                self._server = MlflowServer(uri.removeprefix(PREFIX))
                server = self._server.address
        runs = f"{server}/#/experiments/{experiment_id}/runs"
        self._mlflow |= {"runs": runs, "sweep": f"{runs}/{parent}?workflowType=machine_learning"}

    def _draw(self) -> None:
        """Draw the map anew, if there is something new and the last drawing is long enough ago."""
        from orchestrator.live.app import Document
        from orchestrator.live.content import map_of
        from orchestrator.phases.interactive import interactive

        watch = self._watch
        if watch.version == self._drawn_version or time.monotonic() < self._draw_at:
            return
        began, sweep = time.thread_time(), self._sweep
        job, trials = sweep.job_object(), list(watch.trials.values())
        if trials:
            with drawn_as(sweep.figure, job.phases):
                self._colours = {label: label_colour(k) for k, label in enumerate(job.phases)}
                picture = interactive(sweep, trials, watch.rows, sweep.search.target if sweep.is_search else None)
            version = str(watch.version)
            self._map = Document.of(version, map_of(picture) | {"version": version})
            self._picture = version, picture
        self._drawn_version = watch.version
        self._draw_at = time.monotonic() + LEAST_REST * (time.thread_time() - began)

    def _say(self, trouble: str, driver: Driver) -> None:
        from collections import Counter

        from orchestrator.live.app import Document
        from orchestrator.live.content import state_of

        watch, sweep = self._watch, self._sweep
        counts, failed = (watch.counts, watch.failed) if watch is not None else (Counter(), [])
        known = len(watch.trials) if watch is not None else 0
        lines = [("record", sweep.record_shown)]
        if self._parent is None:
            lines.append(("driver", "no run yet: " + command_line(self._arguments, "run")))
        else:
            missing = known - counts.total()
            said = driver.lines(counts, missing, command_line(self._arguments, "run"))
            lines += [(line[:10].strip(), line[10:]) for line in said]
        lines += [(line[:10].strip(), line[10:]) for line in search_lines(sweep)]
        if watch is not None and (others := watch.under_others(sweep.thresholds_fingerprint())):
            lines.append(
                ("labels", f"{others} under other thresholds; to relabel: {command_line(self._arguments, 'map')}")
            )
        if self._server is not None:
            self._mlflow["note"] = self._server.note
        errors = {trial.id: watch.rows[trial.id].error or "" for trial in failed if trial.id in watch.rows}
        self._readings += 1
        content = state_of(
            name=sweep.name,
            counts=counts,
            most=sweep.most_trials,
            known=known,
            phases=watch.phases if watch is not None else Counter(),
            colours=self._colours,
            called={name: plain(label) for name, label in sweep.figure.labels.items()},
            lines=lines,
            failures=failures_of(sweep, [trial for trial in failed if trial.id in errors], errors),
            failed=len(failed),
            driven=driver.may_run,
            map_version=self._map.version,
            mlflow=self._mlflow,
            trouble=trouble,
        )
        content["at"] = time.strftime("%H:%M:%S")
        self._state = Document.of(str(self._readings), content)

    def close(self) -> None:
        """End the server and the connections."""
        if self._server is not None:
            self._server.close()
        for each in (self._tracker, self._reader, self._curves):
            _close(each)


def _close(what: Tracker | RecordReader | None) -> None:
    if what is not None:
        with contextlib.suppress(Outage, UserError):
            what.close()
