"""The source code of a job as this process has loaded it, to tell whether a worker trains what the driver asks for.

It covers the built-in `jobs` package, the module of the job, and the modules beside it that it imports (found by
reading import statements: below the folder from which the module was imported, or within its package if that is
installed). Libraries, data files and modules that are imported by computed names are not covered.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import ModuleType

import jobs
from jobs.catalogue import BUILT_IN, load_job

OWN = ("jobs", "orchestrator")
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Names of folders of installed packages."""
SHOWN = 3
"""Files that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The release of this package and the sources of a job."""

    release: str
    digest: str
    """12 hexadecimal digits of all files."""
    files: Mapping[str, str]
    """File -> 8 hexadecimal digits."""

    @property
    def text(self) -> str:
        """Release and digest; equal for equal sources."""
        return f"{self.release}+{self.digest}"

    def other_files(self, other: Source) -> list[str]:
        """The files that differ, those of the job's author first."""
        names = {**self.files, **other.files}
        differing = (name for name in names if self.files.get(name) != other.files.get(name))
        return sorted(differing, key=lambda name: (name.startswith("jobs/"), name))

    def differences(self, there: Source) -> str:
        """How the source of another process differs, in words: releases, and files with both digests."""
        parts = [f"phasefront {self.release} here, {there.release} there"] if self.release != there.release else []
        names = self.other_files(there)
        for name in names[:SHOWN]:
            parts.append(f"{name} {self.files.get(name, 'missing')} here, {there.files.get(name, 'missing')} there")
        parts += [f"{len(names) - SHOWN} more files"] if len(names) > SHOWN else []
        return "; ".join(parts)


@cache
def source_of(job: str) -> Source:
    """The source of a job. It is read at the first call, which should follow soon after the job was loaded."""
    folder = Path(next(iter(jobs.__path__)))
    files = {f"jobs/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.py")}
    shown = {name: name for name in files}
    loaded = load_job(job)
    defining = sys.modules.get(getattr(loaded, "function", type(loaded)).__module__)
    named = sys.modules.get(BUILT_IN.get(job, job).partition(":")[0])
    for module in (defining, named):
        if module is None or _is_below(module, folder):
            continue
        for place, (name, content) in enumerate(_sources(module)):
            # Earlier versions recorded the digest of a job's module under this name.
            key = "job" if module is defining and place == 0 else name
            if name not in shown.values():
                files[key], shown[key] = content, name
    total = hashlib.blake2b(digest_size=6)
    for key in sorted(files):
        total.update(key.encode() + b"\0" + files[key] + b"\0")
    each = {shown[key]: hashlib.blake2b(content, digest_size=4).hexdigest() for key, content in files.items()}
    return Source(release=installed("phasefront") or "0", digest=total.hexdigest(), files=each)


def installed(package: str) -> str:
    """The version of an installed package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _is_below(module: ModuleType, folder: Path) -> bool:
    path = getattr(module, "__file__", None)
    return path is not None and Path(path).is_relative_to(folder)


def _sources(module: ModuleType) -> Iterator[tuple[str, bytes]]:
    """(file, content) of a module that was imported, and of the modules beside it that it imports."""
    path = getattr(module, "__file__", None)
    if path is None:
        return  # a namespace, or typed in interactively: there is no source to compare
    content = _content(module, Path(path))
    root, names = Path(path).parent, module.__name__.split(".")
    for _ in names[1:] if not hasattr(module, "__path__") else names:
        root = root.parent
    own_file = Path(path).name
    with contextlib.suppress(ValueError):
        own_file = Path(path).relative_to(root).as_posix()
    yield own_file, content
    within = names[0] if root.name in INSTALLED else ""
    seen, waiting = {own_file}, [(own_file, content)]
    while waiting:
        for name in _imported(*waiting.pop()):
            top = name.partition(".")[0]
            file = _file(root, name)
            if file is None or file in seen or top in OWN or (within and top != within):
                continue
            seen.add(file)
            found = (root / file).read_bytes()
            waiting.append((file, found))
            yield file, found


def _content(module: ModuleType, path: Path) -> bytes:
    """The file of a module, which may be inside a ZIP archive."""
    try:
        return path.read_bytes()
    except OSError:
        read = getattr(module.__loader__, "get_data", None)
        try:
            return bytes(read(str(path))) if read is not None else b""
        except OSError:
            return b""


def _imported(file: str, content: bytes) -> Iterator[str]:
    """Full names of all modules that import statements of this file may name; some of them are not modules."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # compiled, or never imported
    package = PurePosixPath(file).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield from _with_parents(base)
            for alias in node.names:
                yield f"{base}.{alias.name}" if base else alias.name


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _file(root: Path, name: str) -> str | None:
    """The file of a module below `root`, relative to it; None if there is none."""
    base = name.replace(".", "/")
    for file in (f"{base}/__init__.py", f"{base}.py"):
        if (root / file).is_file():
            return file
    return None
