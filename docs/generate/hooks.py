"""MkDocs hooks: pages made from code, pages that lie elsewhere in the repository, and the links between all of them.

Pages link to files of the repository, as on a code host. Here such a link leads to the page of that file; a sweep file
has a page with its text; a link to another file (code, scripts) becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import reference
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster-files.md",
    "configs/README.md": "published-sweeps.md",
    "tests/benchmarks/RESULTS.md": "measured/benchmarks.md",
    "tests/chaos/RESULTS.md": "measured/chaos.md",
    "tests/simulation/RESULTS.md": "measured/simulation.md",
}
"""File of the repository -> page of the site."""
PICTURES = "configs/pictures/"
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_FENCED = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are not in docs/."""
    texts = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    texts |= {f"reference/{name}.md": text for name, text in reference.pages().items()}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        texts[f"sweeps/{name}.md"] = reference.sweep_page(name, path)
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Let links to files of the repository lead to pages of the site."""
    here = page.file.src_uri
    source = next((path for path, own in PAGES.items() if own == here), f"docs/{here}")

    def led(found: re.Match[str]) -> str:
        text, target = found.groups()
        if target.startswith(("#", "http://", "https://", "mailto:")):
            return found[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        to = _page_of(path)
        if files.get_file_from_path(to) is not None:
            return f"[{text}]({posixpath.relpath(to, posixpath.dirname(here) or '.')}{hash_}{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: a link to {target}, which does not exist")
        return text

    return "".join(part if number % 2 else _LINK.sub(led, part) for number, part in enumerate(_FENCED.split(markdown)))


def _page_of(path: str) -> str:
    """The page or picture of the site for a file of the repository, if it has one."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith(PICTURES):
        return "pictures/" + path.removeprefix(PICTURES)
    if path.startswith("configs/") and path.endswith(".yaml"):
        return "sweeps/" + path.removeprefix("configs/").removesuffix(".yaml") + ".md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"/{path}"
