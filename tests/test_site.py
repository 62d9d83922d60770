"""The documentation site builds without warnings, describes the code completely, and loads nothing from a network."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import needs
import pytest

import phasefront
from orchestrator.cli import main, parser
from orchestrator.sweep.schema import sweep_schema

ROOT = Path(__file__).resolve().parent.parent
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Tag -> attribute of what a browser loads with a page; links that a reader may follow are not among them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


class Page(HTMLParser):
    """The text of a page, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get(LOADED[tag]) and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(str(given[LOADED[tag]]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_no_page_or_style_loads_anything_from_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    loads = {(page.name, url) for page in pages for url in Page(page).loads}
    assert any(url.endswith(".css") for _, url in loads) and any(url.endswith(".js") for _, url in loads)
    assert [each for each in loads if re.match(r"(https?:)?//", each[1])] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", styles)


def test_every_command_and_option_is_described(site: Path) -> None:
    text = Page(site / "reference" / "command-line.html").text
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    options = {option for sub in commands.values() for action in sub._actions for option in action.option_strings}
    assert {"run", "map"} <= set(commands) and "--rehearse" in options
    assert [each for each in (*commands, *(options - {"-h", "--help"})) if each not in text] == []


def test_every_key_of_a_sweep_file_is_described(site: Path) -> None:
    text = Page(site / "reference" / "sweep-file.html").text
    schema = sweep_schema(())
    names = {name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", ())}
    assert {"replicates", "uncertain_area", "colours"} <= names
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
    described = re.findall(r'"description": "([^"{}]+?) Valid:', json.dumps(schema["$defs"], ensure_ascii=False))
    assert len(described) > 30
    assert [each for each in described if each.replace("`", "") not in text] == []


def test_every_public_name_is_described(site: Path) -> None:
    text = Page(site / "reference" / "python.html").text
    results = [name for name in vars(phasefront.SweepResults) if not name.startswith("_") and name != "sweep"]
    assert {"trials", "curves", "read"} <= set(results)
    assert [name for name in (*phasefront.__all__, *results) if name not in text] == []


def test_links_between_files_lead_to_pages_and_a_wrong_one_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.config import load_config
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, Files

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    config = load_config("mkdocs.yml")
    files = config.plugins.on_files(Files([File("jobs.md", "docs", "site", False)]), config=config)

    def led(text: str, page: str = "jobs.md") -> str:
        made: Any = type("Page", (), {"file": files.get_file_from_path(page)})
        return str(config.plugins.on_page_markdown(text, page=made, config=config, files=files))

    assert led("[a](../configs/demo_grokking.yaml)") == "[a](sweeps/demo_grokking.md)"
    assert led("[a](docs/jobs.md#x)", "index.md") == "[a](jobs.md#x)"
    assert led("![a](../configs/pictures/demo_grokking.png)") == "![a](pictures/demo_grokking.png)"
    assert led("[`theory`](../jobs/theory)") == "`theory`", "code has no page"
    assert (
        led("[a](#b) [c](https://d.org)\n```\n[x](y.md)\n```\n") == "[a](#b) [c](https://d.org)\n```\n[x](y.md)\n```\n"
    )
    with pytest.raises(PluginError, match="which does not exist"):
        led("[a](absent.md)")


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_browser_shows_and_searches_the_site_without_an_error(address: str) -> None:
    from playwright.sync_api import sync_playwright

    path = needs.program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "commands.html", "reference/sweep-file.html", "published-sweeps.html"):
            page.goto(address + name)
            page.wait_for_selector("h1")
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, f"{name} is wider than a telephone"
        page.set_viewport_size({"width": 1300, "height": 900})
        page.goto(address + "index.html")
        page.click("input[name=query]")
        page.keyboard.type("rehearse")
        page.wait_for_selector(".md-search-result__item")
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def how_to(name: str, kind: str, at: int = 0) -> str:
    """A fenced block of a page."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL)
    return str(found[at])


def test_the_files_of_the_how_tos_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    walk = how_to("jobs.md", "python", -1)
    assert "class Walk(Job)" in walk
    demo = (ROOT / "configs" / "demo_grokking.yaml").read_text()
    given = "name: mine\naxes: {width: [4, 8]}\n"
    Path("my_job.py").write_text(walk)
    Path("train.py").write_text(how_to("how-to/own-function.md", "python"))
    Path("first.yaml").write_text(demo)
    files = {
        "walks.yaml": (how_to("how-to/packed-job.md", "yaml"), 21 * 5),
        "function.yaml": (
            "job: train:train\naxes: {learning_rate: [0.1, 0.2]}\nphases: {metric: loss, level: 0.01}\n",
            2,
        ),
        "finer.yaml": (how_to("how-to/refine-map.md", "yaml", 0), 30 * 16 * 3),
        "figure.yaml": (demo + how_to("how-to/paper-figure.md", "yaml"), 512),
        "sweep.yaml": (how_to("sweep-files.md", "yaml"), 512),
        "figures.yaml": (how_to("sweep-files.md", "yaml") + how_to("sweep-files.md", "yaml", 1), 512),
        "images.yaml": (given + how_to("how-to/own-data.md", "yaml"), 2),
    }
    for name, (text, trials) in files.items():
        Path(name).write_text(text)
        assert main(["check", name]) == 0, capsys.readouterr().err
        assert re.search(rf"valid\. ({trials}|{trials:,}) trials", capsys.readouterr().out), name
    assert files["figures.yaml"][0].count("\nfigure:\n") == 1
    Path("search.yaml").write_text(how_to("how-to/refine-map.md", "yaml", 1))
    assert main(["check", "search.yaml"]) == 0, capsys.readouterr().err
    assert "at most 900 trials" in capsys.readouterr().out
