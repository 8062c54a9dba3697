"""Predictions tables of any kind: read row by row, and what lies beside them says how they were made and of what.

``predictions.csv`` has ``predictions.json`` beside it, another kind of table ``X`` has ``X.json``.
"""

import contextlib
import csv
import glob
import gzip
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flowers.data import workbook
from flowers.data.archives import Archive
from flowers.data.lists import without_path
from flowers.data.paths import readable
from flowers.errors import DataError, UsageError
from flowers.parsing import parse_json, read_json

csv.field_size_limit(1 << 28)  # a label may be long; without this 131,072 characters are the most
_SIDECAR_BYTES = 1 << 24  # more than any of ours has
LOOKED_FOR = 32
"""Photos of a table, its first ones, by which their folder is found."""


def sidecar_path(output: Path) -> Path:
    """The JSON file beside an output."""
    is_csv = output.name.lower().endswith(".csv")
    return output.with_suffix(".json") if is_csv else output.with_name(f"{output.name}.json")


def read_sidecar(output: Path) -> dict | None:
    """Read the sidecar of an output, which it may not fit any more; None if there is none, or it is something else."""
    sidecar = sidecar_path(output)
    with contextlib.suppress(OSError, ValueError):
        if sidecar.stat().st_size <= _SIDECAR_BYTES:
            facts = read_json(sidecar)
            kinds = {"settings": dict, "output": dict, "counts": dict, "files": int}
            kinds |= {"left_out": dict | None, "contents": list | None, "input_root": str | None}
            if isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in kinds.items()):
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


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read a predictions file of any kind row by row, all values as text, empty where there is none.

    Raises:
        DataError: the file cannot be read, or is no predictions file.
    """
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from (_as_text(row, path) for row in parquet_rows(path))
            return
        if name.endswith(".xlsx"):
            yield from (_as_text(row, path) for row in workbook_rows(path))
            return
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            if name.endswith(".jsonl"):
                yield from (_as_text(parse_json(line), path) for line in file)
                return
            reader = csv.DictReader(file)
            _check_columns(reader.fieldnames or [], path)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{readable(path)}: line {reader.line_num} has another number of cells than the header"
                    )
                yield row
    except (OSError, UnicodeDecodeError, ValueError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{readable(path)}: cannot be read: {reason}") from error


def parquet_rows(path: Path) -> Iterator[dict]:
    """The rows of a parquet file, in bounded memory."""
    require_writer(path)
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def workbook_rows(path: Path) -> Iterator[dict]:
    """The rows of an .xlsx, in bounded memory; probabilities as numbers, all else as text."""
    rows = workbook.read_workbook(path)
    names = list(map(workbook.as_text, next(rows, (1, []))[1]))
    for _, cells in rows:
        row = zip(names, cells, strict=True)
        yield {name: cell if cell is None or name.startswith("prob") else workbook.as_text(cell) for name, cell in row}


def _check_columns(found: Collection[str], path: Path) -> None:
    if "path" not in found:
        raise DataError(f"{readable(path)}: {without_path(list(found), 'what jobs/predict.py writes')}")
    if "class" not in found and "label" not in found:
        raise DataError(f"{readable(path)}: no column 'class' or 'label'; expected what jobs/predict.py writes")


def _as_text(row: object, path: Path) -> dict[str, str]:
    _check_columns(row if isinstance(row, dict) else (), path)
    return {name: "" if value is None else str(value) for name, value in row.items()}
