"""Tables and arrays of a sweep as files, with a data dictionary beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.errors import UserError, did_you_mean
from orchestrator.results.dictionary import Entry
from orchestrator.results.frames import library

FileFormat = Literal["parquet", "csv", "netcdf"]
FILE_FORMATS: tuple[str, ...] = get_args(FileFormat)
DICTIONARY = "data_dictionary.csv"


def check_file_format(given: str) -> None:
    """Check the name of a file format.

    Raises:
        UserError: there is no such format.
    """
    if given not in FILE_FORMATS:
        step = did_you_mean(given, FILE_FORMATS)
        raise UserError("is no format of an export", place="format", value=given, choices=FILE_FORMATS, next_step=step)


def write_tables(folder: Path, given: str, trials: Any, curves: Iterator[Any], entries: Sequence[Entry]) -> list[Path]:
    """Write `trials`, `curves` and the data dictionary into the folder, which is created; the files.

    Each file is complete or not there: it is written aside and then moved.

    Args:
        folder: where.
        given: "parquet" or "csv".
        trials: an Arrow table.
        curves: Arrow tables with equal columns, at least one; one is in memory at a time.
        entries: what the columns mean.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write(folder / f"trials.{given}", given, iter([trials])),
        _write(folder / f"curves.{given}", given, curves),
        write_dictionary(folder / DICTIONARY, entries),
    ]


def write_dictionary(path: Path, entries: Sequence[Entry]) -> Path:
    """Write the data dictionary as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("table", "column", "type", "unit", "meaning"))
        writer.writerows((e.table, e.column, e.type, e.unit, e.meaning) for e in entries)
    return path


def write_netcdf(path: Path, dataset: Any) -> Path:
    """Write the dataset as NetCDF, with the library that is installed: netCDF4, h5netcdf or SciPy (NetCDF 3).

    Raises:
        UserError: the installed library cannot write these values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    try:
        dataset.to_netcdf(aside)
    except (ValueError, TypeError) as error:
        aside.unlink(missing_ok=True)
        step = "pip install h5netcdf (NetCDF 4 has no such limits), or --format parquet"
        raise UserError(f"cannot be written as NetCDF: {error}", place=str(path), next_step=step) from error
    return aside.replace(path)


def _write(path: Path, given: str, tables: Iterator[Any]) -> Path:
    library("pyarrow", what="an export")
    import pyarrow.csv
    import pyarrow.parquet

    aside = path.with_name(f".{path.name}")
    first = next(tables)
    writer: Any
    if given == "parquet":
        writer = pyarrow.parquet.ParquetWriter(aside, first.schema, compression="zstd")
    else:
        writer = pyarrow.csv.CSVWriter(aside, _plain(first).schema)
    try:
        with writer:
            writer.write_table(first if given == "parquet" else _plain(first))
            for table in tables:
                writer.write_table(table if given == "parquet" else _plain(table))
        return aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _plain(table: Any) -> Any:
    """With text in place of dictionaries, which CSV has not."""
    import pyarrow as pa

    kinds = [pa.field(f.name, f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(kinds))
