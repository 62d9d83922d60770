"""`phasefront ui`: what its page reads and serves, and that a browser shows it while a sweep runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import PAGE_TEXTS, PLOT_TEXTS, chromium, opened, overlaps
from runner_kit import RAMP
from servers import empty_sqlite, mlflow_server

from jobs.job import Curves
from orchestrator.cli import main
from orchestrator.commands.ui import _Live, _stopping
from orchestrator.commands.wiring import open_tracker, sweep_record
from orchestrator.errors import UserError
from orchestrator.live.app import Document, application
from orchestrator.live.content import MOST_POINTS, _lines
from orchestrator.live.mlflow_ui import MlflowServer, serves
from orchestrator.live.serve import listen, served
from orchestrator.live.watch import Watch
from orchestrator.records import Status, TrialResult
from orchestrator.sweep.sweep import Sweep
from orchestrator.tracking.memory import MemoryTracker

ROOT = Path(__file__).parents[1]
SWEEP = {
    "name": "ramps <b>&amp;",
    "job": RAMP,
    "axes": {"slope": [0.5, 1.0, 2.0], "width": [1, 2, 3], "trouble": ["none", "raise"]},
    "replicates": 2,
    "output": "out",
    "tracking": {"uri": "sqlite:///mlflow.db"},
}


class Counting(MemoryTracker):
    """Counts the trials that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def statuses(self, trial_ids):
        ids = list(trial_ids)
        self.asked.append(("statuses", len(ids)))
        return super().statuses(ids)

    def rows(self, trial_ids, *, settings=True):
        ids = list(trial_ids)
        self.asked.append(("rows", len(ids)))
        return super().rows(ids, settings=settings)


def test_a_refresh_reads_the_results_of_the_trials_that_have_ended_since(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    sweep = Sweep.load(tmp_path / "sweep.yaml", [])
    trials, tracker = sweep.trials(), Counting()
    tracker.open_sweep(sweep_record(sweep))
    watch = Watch(sweep, trials)
    watch.refresh(tracker)
    assert (watch.version, watch.counts) == (0, {})
    tracker.begin(trials[:10])
    tracker.end([TrialResult(t.id, Status.FINISHED, "high") for t in trials[:3]])
    tracker.end([TrialResult(trials[3].id, Status.FAILED, error="ValueError: no")])
    watch.refresh(tracker)
    assert watch.version == 1 and watch.phases == {"high": 3} and [t.id for t in watch.failed] == [trials[3].id]
    assert watch.counts == {Status.FINISHED: 3, Status.RUNNING: 6, Status.FAILED: 1}
    watch.refresh(tracker)
    assert watch.version == 1, "nothing has changed"
    tracker.begin([trials[3]])  # it is tried again
    tracker.end([TrialResult(trials[4].id, Status.FINISHED, "low")])
    watch.refresh(tracker)
    assert watch.version == 2 and watch.failed == [] and watch.phases == {"high": 3, "low": 1}
    left = len(trials) - 3
    expected = [len(trials), len(trials), 4, left, left, 1]
    assert [count for _, count in tracker.asked] == expected
    assert watch.under_others(sweep.thresholds_fingerprint()) == 0 and watch.under_others("other") == 4


def test_trials_under_other_thresholds_are_read_again_until_they_are_relabelled(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    sweep = Sweep.load(tmp_path / "sweep.yaml", [])
    trials, tracker, fingerprint = sweep.trials(), Counting(), sweep.thresholds_fingerprint()
    tracker.open_sweep(replace(sweep_record(sweep), thresholds="other"))
    tracker.begin(trials[:2])
    tracker.end([TrialResult(t.id, Status.FINISHED, "high") for t in trials[:2]])
    watch = Watch(sweep, trials)
    watch.refresh(tracker)
    watch.refresh(tracker)
    assert (watch.version, watch.phases, watch.under_others(fingerprint)) == (1, {"high": 2}, 2)
    beside = MemoryTracker(tracker.kept)
    beside.open_sweep(sweep_record(sweep), running=False)
    beside.relabel([TrialResult(trials[0].id, Status.FINISHED, "low")])
    watch.refresh(tracker)
    assert (watch.version, watch.phases, watch.under_others(fingerprint)) == (2, {"high": 1, "low": 1}, 1)
    watch.refresh(tracker)
    assert watch.version == 2 and tracker.asked[-1] == ("rows", 1)


def test_long_curves_are_thinned_and_absent_reports_left_out() -> None:
    step = np.arange(5_000)
    present = {"loss": np.ones(5_000, dtype=np.bool_), "rare": step % 1000 == 0}
    values = {"loss": 1.0 / (1 + step), "rare": np.where(present["rare"], step, np.nan).astype(float)}
    lines = _lines(Curves(step=step, values=values, present=present))
    assert len(lines["loss"]["x"]) <= MOST_POINTS
    assert (lines["loss"]["x"][0], lines["loss"]["x"][-1]) == (0.0, 4_999.0)
    assert lines["rare"] == {"x": [0.0, 1000.0, 2000.0, 3000.0, 4000.0], "y": [0.0, 1000.0, 2000.0, 3000.0, 4000.0]}


@contextmanager
def page_of(token: str = "secret") -> Iterator[str]:
    """A page with a fixed content, and its address."""

    def curves(cell: int, version: str) -> Document:
        if (cell, version) != (3, "7"):
            raise LookupError(cell)
        return Document.of("7.3", {"trials": []})

    app = application(
        token, state=lambda: Document.of("1", {"x": 1}), map_=lambda: Document.of("7", {"views": []}), curves=curves
    )
    at = listen("127.0.0.1", None)
    with at, served(app, at):
        yield f"http://127.0.0.1:{at.getsockname()[1]}"


def answer(address: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, _lower(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _lower(error.headers), error.read()


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_the_page_is_read_only_and_needs_its_token() -> None:
    with page_of() as server:
        for wrong in ("", "/", "/secre/", "/secret2/state", "/%00/state", "/plotly.js", "/docs", "/openapi.json"):
            assert answer(server + wrong)[0] == 404, wrong
        assert answer(f"{server}/secret/../state")[0] == 404
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert answer(f"{server}/secret/state", method)[0] == 405
        code, headers, body = answer(f"{server}/secret/")
        assert code == 200 and headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        elsewhere = set(re.findall(rb"""(?:src|href)=["']?((?:https?:)?//[^"' >]+)""", body))
        assert elsewhere == set()
        assert len(answer(f"{server}/secret/plotly.js")[2]) > 1_000_000
        assert b"function phaseViewer" in answer(f"{server}/secret/viewer.js")[2]


def test_what_a_browser_has_is_not_sent_again_and_an_old_map_is_told_so() -> None:
    with page_of() as server:
        code, headers, body = answer(f"{server}/secret/map")
        assert (code, json.loads(body), headers["etag"]) == (200, {"views": []}, '"7"')
        assert answer(f"{server}/secret/map", **{"If-None-Match": '"7"'})[0] == 304
        assert answer(f"{server}/secret/curves?cell=3&map=7")[0] == 200
        for query in ("cell=3&map=6", "cell=4&map=7", "cell=x&map=7", "map=7", ""):
            assert answer(f"{server}/secret/curves?{query}")[0] == 409, query


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", None) as first, pytest.raises(UserError, match="cannot listen") as caught:
        listen("127.0.0.1", first.getsockname()[1])
    assert "--port" in caught.value.text and "next:" in caught.value.text
    with pytest.raises(SystemExit) as ended:
        main(["ui", "x.yaml", "--port", "0"])
    assert ended.value.code == 2 and "a port from 1 to 65535" in capsys.readouterr().err


def test_a_record_in_memory_has_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(json.dumps(SWEEP | {"tracking": {"uri": "memory:"}}))
    assert main(["ui", "sweep.yaml"]) == 2
    assert "nothing is kept at this address" in capsys.readouterr().err


def test_no_server_of_another_record_is_taken_for_this_one_s() -> None:
    with page_of() as server:
        assert not serves(server, "abc")
    assert not serves("http://127.0.0.1:9", "abc")


def test_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    monkeypatch.setattr(urllib.request, "_opener", None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Yes) as server:
        thread = threading.Thread(target=server.handle_request)
        server.timeout = 5
        thread.start()
        assert serves(f"http://127.0.0.1:{server.server_port}", "abc")
        thread.join()


def test_a_closed_terminal_ends_the_page_unless_hangups_are_ignored() -> None:
    stop, before = threading.Event(), signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with _stopping(stop):
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGHUP)
        assert stop.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with _stopping(stop):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_mlflow_s_server_without_a_password_is_not_started_on_a_record_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Started:
        """In place of a server: the old code started one, which would outlive a failed test."""

        note, address = "", "http://127.0.0.1:1"

        def __init__(self, uri: str) -> None:
            started.append(uri)

        def close(self) -> None:
            pass

    monkeypatch.setattr("orchestrator.live.mlflow_ui.MlflowServer", Started)
    monkeypatch.setenv("RECORD", "postgresql://me:correct-horse@127.0.0.1:1/record")
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP | {"tracking": {"uri": "${RECORD}"}}))
    with closing(_Live(Sweep.load(tmp_path / "sweep.yaml", []), Namespace(no_mlflow=False))) as live:
        live._link("1", "0" * 32)
        assert started == []
        assert "the record has one" in live._mlflow["note"] and "below" in live._mlflow["note"]
        assert "$RECORD" in live._mlflow["command"] and "correct-horse" not in json.dumps(live._mlflow)
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    with closing(_Live(Sweep.load(tmp_path / "sweep.yaml", []), Namespace(no_mlflow=False))) as live:
        live._link("1", "0" * 32)
    assert started == ["sqlite:///mlflow.db"]


def test_a_record_that_cannot_be_read_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first reading on; and the first that succeeds is followed by the next one soon."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").mkdir()
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(SWEEP | {"tracking": {"uri": "sqlite:///mlflow.db", "patience": 0.01}})
    )
    with closing(
        _Live(Sweep.load(tmp_path / "sweep.yaml", []), Namespace(no_mlflow=True, file="sweep.yaml", overrides=[]))
    ) as live:
        rests = []
        for _ in range(7):
            live.state()
            live.refresh()
            rests.append(live.rest_s())
        assert json.loads(live.state().body)["trouble"] != ""
        assert rests == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        (tmp_path / "mlflow.db").rmdir()
        live.refresh()
        assert json.loads(live.state().body)["trouble"] == "" and live.rest_s() == 2.0


@contextmanager
def ui(folder: Path, *options: str) -> Iterator[str]:
    """The address of the page of the sweep in a folder; at the end the program is stopped, and must end with 0."""
    command = [sys.executable, "-m", "orchestrator", "ui", "sweep.yaml", *options]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        try:
            line = process.stdout.readline()
            assert line.startswith("page "), process.stderr.read()
            yield line.split()[1]
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, rest
    assert rest[1] == ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.slow
def test_a_browser_shows_a_sweep_before_while_and_after_it_runs(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_sqlite(tmp_path / "mlflow.db")
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    monkeypatch.chdir(tmp_path)
    with ui(tmp_path, "--no-mlflow") as address:
        with opened(browser, width=1200, scheme="light", allowed=address) as page:
            page.goto(address)
            page.get_by_role("heading", name="ramps <b>&amp;").wait_for()
            page.get_by_text("no run yet: phasefront run sweep.yaml").wait_for()
            assert main(["run", "sweep.yaml", "--inline", "--quiet", "--no-map"]) == 1
            page.get_by_text("18 of 36 finished").wait_for()
            page.get_by_text("18 with this error").wait_for()
            assert "Traceback" in page.locator("pre").first.text_content()
        for width in (400, 1200):
            for scheme in ("light", "dark"):
                with opened(browser, width=width, scheme=scheme, allowed=address) as page:
                    page.goto(address)
                    look_at(page, width)


def look_at(page: Any, width: int) -> None:
    """Every view of the map, and the curves of a cell: nothing overlaps, and nothing is wider than the window."""
    page.locator("#plot .xtitle").wait_for()
    for view in range(page.locator("#view option").count()):
        page.locator("#view").select_option(index=view)
        page.wait_for_timeout(300)
        assert overlaps(page, f"#plot :is({PLOT_TEXTS})", least=4) == [], view
    page.locator("#view").select_option(index=0)
    area = page.locator("#plot .nsewdrag").first.bounding_box()
    x, y = area["x"] + 0.6 * area["width"], area["y"] + 0.6 * area["height"]
    page.mouse.move(x, y)
    page.mouse.move(x + 2, y + 2)
    page.get_by_text("replicate 0: ").wait_for()
    assert re.match(r"slope \d.*width \d.*2 × ", page.locator("#setting").text_content())
    page.locator("#curves .xtitle").wait_for()
    assert page.locator("#curves .scatterlayer .trace").count() >= 2, "of two replicates"
    assert overlaps(page, f"#curves :is({PLOT_TEXTS})", least=4) == []
    assert overlaps(page, PAGE_TEXTS, least=10) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_over_an_mlflow_server_the_page_shows_trials_that_begin_after_it_was_opened(tmp_path: Path) -> None:
    database = empty_sqlite(tmp_path / "mlflow.db")
    with mlflow_server(f"phasefront-sqlite:///{database}", tmp_path / "artifacts") as uri:
        (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP | {"tracking": {"uri": uri}}))
        with ui(tmp_path, "--no-mlflow") as address:
            sweep = Sweep.load(tmp_path / "sweep.yaml", [])
            with closing(open_tracker(sweep)) as tracker:
                tracker.open_sweep(sweep_record(sweep))
                for done, trial in enumerate(sweep.trials()[:2], start=1):
                    tracker.begin([trial])
                    tracker.end([TrialResult(trial.id, Status.FINISHED, "high")])
                    for _ in range(240):
                        if (state := json.loads(answer(f"{address}state")[2]))["counts"]["finished"] == done:
                            break
                        time.sleep(0.5)
                    assert state["counts"]["finished"] == done, state


@pytest.mark.slow
def test_mlflow_s_server_is_started_on_the_record_and_ended(tmp_path: Path) -> None:
    database = empty_sqlite(tmp_path / "mlflow.db")
    server = MlflowServer(f"sqlite:///{database}")
    try:
        for _ in range(240):
            if not server.note:
                break
            assert server.note == "MLflow's server is starting"
            time.sleep(0.5)
        assert server.note == ""
        assert not serves(server.address, "0" * 32), "it has no such run"
    finally:
        server.close()
    assert answer_fails(server.address)


def answer_fails(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return True
    return False
