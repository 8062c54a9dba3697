"""Tables of any kind (``TABLES``), read row by row: lists and corrections of people, and predictions.

What lies beside a predictions table says how it was made and of what: ``predictions.csv`` has ``predictions.json``
beside it, another kind of table ``X`` has ``X.json``.
"""

import codecs
import csv
import glob
import gzip
import itertools
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowers.data import workbook
from flowers.data.archives import Archive
from flowers.data.paths import decode_path, readable
from flowers.errors import DataError, UsageError
from flowers.parsing import parse_json, read_mapping
from flowers.retries import only_of_the_file, retries

csv.field_size_limit(1 << 28)  # a label may be long; without this 131,072 characters are the most
TABLES = (".csv", ".csv.gz", ".jsonl", ".parquet", ".xlsx")
"""Endings of tables; other files are plain text."""
IS_UTF16 = "is in UTF-16, expected UTF-8: save it anew, or convert it with iconv"
_UTF16 = tuple(os.fsdecode(mark) for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
_PREDICTIONS = "what jobs/predict.py writes"
_SHOWN = 100
"""Characters of a header that a message shows; a file that is no list may have lines of megabytes."""
_SIDECAR_BYTES = 1 << 24  # more than any of ours has
LOOKED_FOR = 32
"""Photos of a table, its first ones, by which their folder is found."""


def sidecar_path(output: Path) -> Path:
    """The JSON file beside an output."""
    is_csv = output.name.lower().endswith(".csv")
    return output.with_suffix(".json") if is_csv else output.with_name(f"{output.name}.json")


def read_sidecar(output: Path) -> dict | None:
    """Read the sidecar of an output, which it may not fit any more; None if there is none, or it is something else.

    Raises:
        OSError: the disk does not tell; a finished table would look as one of somebody else.
    """
    sidecar = sidecar_path(output)
    with only_of_the_file():
        if retries.read(sidecar.stat).st_size <= _SIDECAR_BYTES:
            facts = read_mapping(sidecar)
            kinds = {"settings": dict, "output": dict, "counts": dict, "files": int}
            kinds |= {"left_out": dict | None, "contents": list | None, "input_root": str | None}
            if all(isinstance(facts.get(name), kind) for name, kind in kinds.items()):
                return facts if isinstance(facts["settings"].get("topk", 1), int) else None
    return None


def recorded_input(facts: dict) -> list[str]:
    """The inputs of the job that made a table, as they were given; empty where its JSON does not say it.

    Args:
        facts: what the JSON says.
    """
    made = facts.get("made")
    config = made.get("config") if isinstance(made, dict) else None
    found = config.get("input") if isinstance(config, dict) else None
    return [found] if isinstance(found, str) else list(found or ())


def photo_roots(table: Path, facts: dict) -> list[Path]:
    """Folders that the paths of a table may start from, the likeliest first.

    The folder lies where it lay, as seen from the table, or where the job found it. Tables of earlier versions say only
    what the job was given, relative to the folder that it was started in; a table without a JSON is a list, whose paths
    start from its own folder.
    """
    given = recorded_input(facts)
    known = facts.get("input_root")
    roots = [table.parent / known] if known else []
    one = Path(given[0]) if len(given) == 1 else None
    if one is not None and one.exists() and (one.is_absolute() or not known):
        roots.append(one if one.is_dir() else one.parent)
    elif not known and (len(given) > 1 or (given and (given[0] == "-" or glob.has_magic(given[0])))):
        roots.append(Path())
    return roots if facts else [table.parent]


def find_root(roots: Sequence[Path], paths: Sequence[str]) -> tuple[Path, bool] | None:
    """The first folder that holds one of the photos, and whether all that it holds of them lies in archives.

    Args:
        roots: as ``photo_roots`` gives them.
        paths: of a table's first photos, as they are on disk.
    """
    for root in roots:
        if any(os.path.lexists(os.path.join(root, path)) for path in paths):
            return root, False
        archive = Archive(root)
        if any(map(archive.find, paths)):
            return root, True
    return None


def require_writer(output: Path) -> None:
    """Say now, not after hours of work, that a library is missing.

    Raises:
        UsageError: pyarrow is needed and not there, or what .xlsx takes.
    """
    if output.name.lower().endswith(".xlsx"):
        workbook.require_libraries(output)
    if output.name.lower().endswith(".parquet"):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError(
                f"--output {readable(output)}: parquet needs pyarrow: pip install 'flowers[parquet]', or choose .csv.gz"
            ) from None


def read_rows(table: Path) -> Iterator[dict[str, str]]:
    """Read a predictions table row by row, all values as text, empty where there is none.

    Raises:
        DataError: the file cannot be read, or is no predictions table.
    """
    for _, row in _numbered_rows(table, _PREDICTIONS, lambda value: "" if value is None else str(value)):
        yield row


def table_rows(
    table: Path, expected: str = "path,class", columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of a list with its line number, by column name in lower case; the path as it is on disk.

    Args:
        expected: the header, for messages.
        columns: those that are wanted, of a kind that has them apart.

    Raises:
        DataError: the file cannot be read, is no such table, or lacks the column ``path``.
    """
    for line, row in _numbered_rows(table, expected, workbook.as_text, is_list=True, columns=columns):
        row["path"] = decode_path(row["path"])
        if not row["path"] or "\0" in row["path"]:
            raise DataError(f"{readable(table)}, line {line}: got {row['path']!r} as a path")
        yield line, row


def _numbered_rows(
    table: Path,
    expected: str,
    as_text: Callable[[Any], str],
    *,
    is_list: bool = False,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with their line numbers.

    Args:
        as_text: writes the value of a cell of a kind that has other values than text.
        is_list: column names may be written in any case and paths in any bytes, and only paths must be there.
    """
    kind = next((kind for kind in (".jsonl", ".parquet", ".xlsx") if table.name.lower().endswith(kind)), "CSV")
    try:
        if kind == "CSV":
            yield from _csv_rows(table, expected, is_list)
            return
        for number, row in typed_rows(table, columns):
            found = row if isinstance(row, dict) else {}
            texts = {name.strip().lower() if is_list else name: as_text(value) for name, value in found.items()}
            _check_columns(texts, table, expected)
            yield number, texts
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None)
        said = f": {reason}" if reason else f" as {kind}: {' '.join(str(error).split())}"
        raise DataError(f"{readable(table)}: cannot be read{said}") from error


def _csv_rows(table: Path, expected: str, is_list: bool) -> Iterator[tuple[int, dict[str, str]]]:
    opener = gzip.open if table.name.lower().endswith(".gz") else open
    errors = "surrogateescape" if is_list else "strict"
    with opener(table, "rt", encoding="utf-8-sig", errors=errors, newline="") as file:
        lines = csv.reader(file, strict=True)
        names = [name.strip().lower() if is_list else name for name in next(lines, [])]
        _check_columns(names, table, expected)
        _check_once(names)
        for cells in lines:
            if cells and len(cells) != len(names):
                raise DataError(
                    f"{readable(table)}, line {lines.line_num}: got {len(cells)} cells, expected {len(names)} as in "
                    "the header; a cell with a comma needs quotes"
                )
            if cells:
                yield lines.line_num, dict(zip(names, cells, strict=True))


def typed_rows(table: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .jsonl, .parquet or .xlsx with their numbers, in bounded memory.

    Of the numbers of an .xlsx only probabilities stay so: Excel makes one of a name like 12.

    Args:
        columns: those that are wanted, of a kind that has them apart.

    Raises:
        DataError: a library is not installed.
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    name = table.name.lower()
    if name.endswith(".jsonl"):
        with open(table, encoding="utf-8-sig") as file:
            yield from ((number, parse_json(line)) for number, line in enumerate(file, start=1) if line.strip())
    elif name.endswith(".xlsx"):
        rows = workbook.read_workbook(table)
        names = list(map(workbook.as_text, next(rows, (1, []))[1]))
        _check_once([name.strip().lower() for name in names])
        for number, cells in rows:
            row = dict(zip(names, cells, strict=True))
            made = [name for name, cell in row.items() if isinstance(cell, float) and not name.startswith("prob")]
            yield number, row | {name: workbook.as_text(row[name]) for name in made}
    else:
        try:
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{readable(table)}: parquet needs pyarrow: pip install 'flowers[parquet]'") from None
        with pyarrow.parquet.ParquetFile(table) as file:
            if columns is not None and not set(columns) <= set(file.schema_arrow.names):
                columns = None  # for a message that names those that are there
            batches = (batch.to_pylist() for batch in file.iter_batches(columns=columns))
            yield from enumerate(itertools.chain.from_iterable(batches), start=1)


def _check_columns(found: Collection[str], table: Path, expected: str) -> None:
    if "path" not in found:
        raise DataError(f"{readable(table)}: {_without_path(','.join(found), expected)}")
    if expected == _PREDICTIONS and "class" not in found and "label" not in found:
        raise DataError(f"{readable(table)}: no column 'class' or 'label'; expected {expected}")


def _check_once(names: Sequence[str]) -> None:
    """Refuse a header of which nobody knows which column is meant; columns that are not read may have one name."""
    if twice := [name for name in ("path", "class", "label", "split") if names.count(name) > 1]:
        raise ValueError(f"several columns are named {twice[0]}; rename all but one")


def _without_path(header: str, expected: str) -> str:
    """Why a header names no path, and what to do."""
    if header.startswith(_UTF16):
        return IS_UTF16
    if not header:
        return f"the header lacks a column named path: got nothing, expected {expected}"
    between = [mark for mark in ";\t" if mark in header and "path" in header]
    hint = f"; commas stand between cells, not {between[0]!r}" if between else ""
    return f"the header lacks a column named path: got {readable(header[:_SHOWN])}, expected {expected}{hint}"
