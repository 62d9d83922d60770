"""Sweep files that are there, for someone who named one that is not."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import nearest


def yaml_names(folder: Path) -> list[str]:
    """The YAML files of a folder by name, hidden ones left out; none where there is no such folder."""
    try:
        listed = [p for p in folder.iterdir() if p.suffix in (".yaml", ".yml") and not p.name.startswith(".")]
        found = [p.name for p in listed if p.is_file()]
    except OSError:
        return []
    return sorted(found)


def nearest_file(path: Path) -> Path | None:
    """The YAML file whose path is most like a path that does not exist: its folders first, then its name.

    None where there is none like it. A file of this very name one folder below is like it too.
    """
    folder = Path(path.anchor)
    for part in path.parent.parts[1 if path.anchor else 0 :]:
        if not (folder / part).is_dir():
            near = nearest(part, _folders(folder))
            if near is None:
                return None
            part = near
        folder /= part
    below = (folder / name for name in _folders(folder))
    for place in (folder, *below):
        if path.name in yaml_names(place):
            return place / path.name
    stems = {Path(name).stem: name for name in yaml_names(folder)}  # the endings would make all names alike
    near = nearest(path.stem, stems)
    return folder / stems[near] if near else None


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
