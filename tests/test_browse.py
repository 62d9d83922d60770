"""The addresses that a run prints open MLflow's pages of the sweep, in a real browser."""

from pathlib import Path

import needs
import pytest
from driving import parents, record, run
from servers import mlflow_server

from orchestrator.commands.browse import LOCAL_UI, browse_lines

JOB = """\
def train(params, seed, device, report):
    for step in range(1, 9):
        report(step, loss=params["lr"] / step)
"""
SWEEP = "name: a sweep to look at\njob: mine:train\naxes: {lr: [1.0, 2.0]}\n"


@pytest.mark.parametrize(
    ("uri", "first", "server"),
    [
        ("sqlite:///a.db", "ui --backend-store-uri sqlite:///a.db", LOCAL_UI),
        ("phasefront-sqlite:///a.db", "ui --backend-store-uri sqlite:///a.db", LOCAL_UI),
        ("postgresql://me:secret@host/db", "ui --backend-store-uri postgresql://me:***@host/db", LOCAL_UI),
        ("http://me:secret@host:5000/", "all runs", "http://host:5000"),
        ("https://me:se@cret@host/mlflow", "all runs", "https://host/mlflow"),
    ],
)
def test_a_servers_own_pages_are_named_and_no_password_is_shown(uri: str, first: str, server: str) -> None:
    lines = browse_lines(uri, "7", "abc")
    assert first in lines[0]
    assert lines[-1].startswith("sweeps    ") and "tags.`phasefront.sweep_id` != ''" in lines[-1]
    assert lines[-3:-1] == [
        f"all runs  {server}/#/experiments/7/runs?workflowType=machine_learning",
        f"sweep     {server}/#/experiments/7/runs/abc?workflowType=machine_learning",
    ]
    assert "secret" not in "".join(lines) and "cret" not in "".join(lines)


def test_a_record_that_mlflow_cannot_open_has_no_pages() -> None:
    assert browse_lines("memory:", None, "abc") == []


@pytest.mark.slow
def test_the_printed_pages_show_the_sweep_and_its_trials(tmp_path: Path) -> None:
    chromium = needs.program("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    (tmp_path / "mine.py").write_text(JOB)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    code, text = run("run", "sweep.yaml", "--inline", cwd=tmp_path)
    assert code == 0, text
    pages = dict(line.split("  ", 1) for line in text.splitlines() if line.startswith(("all runs  ", "sweep   ")))
    (parent,) = parents(record(tmp_path / "mlflow.db"))
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with (
        mlflow_server(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts") as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.set_default_timeout(90_000)
            page.goto(pages["all runs"].strip().replace(LOCAL_UI, address))
            page.get_by_role("link", name="a sweep to look at").wait_for()
            page.get_by_text("3 matching runs").wait_for()
            page.screenshot(path=tmp_path / "runs.png")  # for a person to look at
            page.goto(pages["sweep"].strip().replace(LOCAL_UI, address))
            page.get_by_role("heading", name="a sweep to look at").wait_for()
            page.get_by_text(parent.run_id).first.wait_for()
            page.get_by_text("lr=2").wait_for()
            page.screenshot(path=tmp_path / "sweep.png")
        finally:
            browser.close()
