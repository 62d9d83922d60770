"""The record of an earlier version, unpacked in a folder of its own."""

import lzma
import sqlite3
from pathlib import Path

RECORDS = Path(__file__).parent / "records"


def recorded_folder(folder: Path) -> Path:
    """`folder`, with the record, its study, its sweep files and the artifacts of its sweeps in it."""
    for name in ("record.db", "optuna.db"):
        (folder / name).write_bytes(lzma.decompress((RECORDS / f"{name}.xz").read_bytes()))
    for path in RECORDS.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text())
    with sqlite3.connect(folder / "record.db") as connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, '{{folder}}', ?)", (str(folder),))
        sweeps = connection.execute("SELECT name, artifact_uri FROM runs WHERE name LIKE 'earlier-%'").fetchall()
    connection.close()
    for name, artifacts in sweeps:
        Path(artifacts).mkdir(parents=True)
        source = RECORDS / f"{name.removeprefix('earlier-').replace('-', '_')}.yaml"
        Path(artifacts, "sweep.yaml").write_text(source.read_text())
    return folder
