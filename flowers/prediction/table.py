"""From part files to the final one: joined in order, in bounded memory, there only when it is whole.

``predictions.csv`` comes with ``predictions.json`` beside it (another kind of output ``X`` with ``X.json``): what was
done, with which model and settings, counts by status, seconds by stage. It is written last, so where it fits the output
the job is done.
"""

import codecs
import collections
import contextlib
import csv
import functools
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flowers.config.predict import OUTPUT_KINDS, PredictConfig, suffix_of
from flowers.data import workbook
from flowers.data.paths import readable
from flowers.data.tables import read_sidecar, sidecar_path, typed_rows
from flowers.errors import DataError, OutputError
from flowers.files import file_beside, file_digest, make_parents, sync_file, sync_folder, write_atomically
from flowers.prediction import parts
from flowers.prediction.rows import columns, csv_line, header, json_line
from flowers.retries import is_file, only_of_the_file, retries

if TYPE_CHECKING:  # scoring a table needs no decoder, and so no torch
    from flowers.prediction.work import Work

Thumbnails = Callable[[Iterator[dict]], Iterator[tuple[dict, bytes | None]]]
"""Gives each row of a table its photo as a small JPEG, or None."""

_ROW_GROUP = 65536
_OF_PAGE = b'"flowers-predictions-'
"""In every page of a table; see ``predictions_report.py``."""


def stamps_path(output: Path) -> Path:
    """The file beside an output that says how its input files looked; see ``kept.py``."""
    return sidecar_path(output).with_suffix(".stamps")


def page_path(output: Path) -> Path:
    """The page beside an output: ``predictions.html`` beside ``predictions.csv``."""
    return output.with_name(output.name[: -len(suffix_of(output))] + ".html")


def thumbnails_of(config: PredictConfig) -> Thumbnails | None:
    """What gives the rows of a job their pictures; None without ``--thumbnails``."""
    if not config.thumbnails:
        return None
    from flowers.prediction.report import with_thumbnails  # decodes photos, which takes torch

    return functools.partial(with_thumbnails, config.input)


def finished_facts(output: Path, embeddings: Path | None) -> dict | None:
    """Read the sidecar, if output and sidecar are there and fit together; embeddings that are lost are ``False``.

    Raises:
        OSError: the disk does not tell.
    """
    facts = read_sidecar(output)
    with only_of_the_file(), contextlib.suppress(KeyError, TypeError):
        if facts is not None and _is_as_written(output, facts["output"]):
            if embeddings is not None and facts["embeddings"] and not _is_as_written(embeddings, facts["embeddings"]):
                facts["settings"]["embeddings"] = False
            return facts
    return None


def check_page(output: Path) -> None:
    """See that the page of a job replaces nothing but that of an earlier one.

    Raises:
        OutputError: it would.
    """
    page = page_path(output)
    if page.exists() and not (page.is_file() and _OF_PAGE in page.read_bytes()):
        raise _not_ours(page, "move it away")


def check_free(output: Path, embeddings: Path | None) -> None:
    """See that what a new job writes beside its output replaces nothing but what an earlier such job left.

    Raises:
        OutputError: it would.
    """
    sidecar = sidecar_path(output)
    facts = read_sidecar(output)
    if facts is None and sidecar.exists():
        raise _not_ours(sidecar, "choose another --output")
    if facts is None and stamps_path(output).exists():
        raise _not_ours(stamps_path(output), "choose another --output")
    if embeddings is not None:
        check_embeddings_free(output, embeddings, "choose another --embeddings")


def check_embeddings_free(output: Path, embeddings: Path, advice: str) -> None:
    """See that an embeddings file is not there yet, or is that of the output as it was.

    Raises:
        OutputError: it is another's; with the advice.
    """
    known = (read_sidecar(output) or {}).get("embeddings") or {}
    if embeddings.exists() and known.get("bytes") != embeddings.stat().st_size:
        raise _not_ours(embeddings, advice)


def join_parts(
    work: "Work", output: Path, check_stop: Callable[[], None], thumbnails: Thumbnails | None = None
) -> dict:
    """Write the final file from all parts, with the columns that the work's settings choose.

    Args:
        output: its name.
        check_stop: raises when the process was asked to stop.
        thumbnails: of an .xlsx with pictures, see ``write_rows``.

    Returns:
        counts by status, seconds by stage and reads that worked at a later try, summed over the parts.

    Raises:
        FileNotFoundError: a part is gone: another process has finished the whole job.
        OutputError: a part is damaged.
        FlowersError: the disk is full or the place cannot be written.
    """
    suffix, names = suffix_of(output), work.settings.get("columns") or columns(work.settings["topk"])
    totals = _totals(work)
    with parts.explained(output), new_file(output) as table, new_file(stamps_path(output)) as stamps:
        with open(stamps, "wb") as file:
            file.writelines(parts.read_stamps(work.parts, index) for index in range(work.files.num_shards))
        blocks = _blocks(work, check_stop)
        if suffix not in (".parquet", ".xlsx") and "columns" in work.settings:
            blocks = _chosen(blocks, OUTPUT_KINDS[suffix], columns(work.settings["topk"]), names)
        excel = bool(work.settings.get("excel"))
        write_rows(table, suffix, blocks, names, excel=excel, thumbnails=thumbnails)
        put_in_place(table, output)
        put_in_place(stamps, stamps_path(output))
    totals["stamps"] = file_digest(stamps_path(output))
    return totals


def write_rows(
    path: Path,
    suffix: str,
    blocks: Iterator[bytes],
    names: list[str],
    *,
    excel: bool,
    thumbnails: Thumbnails | None = None,
) -> None:
    """Write a table of any kind.

    Args:
        path: where; no part of it tells the kind.
        suffix: the kind, of ``OUTPUT_KINDS``.
        blocks: lines as parts hold them, cut anywhere.
        names: their columns.
        excel: begin with a byte-order mark.
        thumbnails: gives each row of an .xlsx its picture.

    Raises:
        OSError: the file cannot be written.
        UsageError: an .xlsx cannot hold so many rows.
    """
    if suffix == ".xlsx":
        rows = map(json.loads, _lines(blocks))
        pictured = thumbnails(rows) if thumbnails is not None else ((row, None) for row in rows)
        workbook.write_workbook(path, pictured, names, pictures=thumbnails is not None)
    elif suffix == ".parquet":
        _write_parquet(path, blocks, names)
    else:
        with open(path, "wb") as raw, _packed(raw) if suffix == ".csv.gz" else contextlib.nullcontext(raw) as file:
            file.write((codecs.BOM_UTF8 if excel else b"") + header(names, OUTPUT_KINDS[suffix]))
            file.writelines(blocks)


def _packed(raw: IO[bytes]) -> gzip.GzipFile:
    """No name and no time inside: the same rows give the same bytes."""
    return gzip.GzipFile("", "wb", 6, raw, mtime=0)


def write_sidecar(output: Path, written: Path, facts: dict) -> None:
    """Write the JSON beside an output, which says how it was made; where the two fit, the job is done.

    Args:
        written: where the output's bytes lie now.

    Raises:
        FlowersError: the disk is full or the place cannot be written.
    """
    name = os.fsencode(output.name).decode("utf-8", "backslashreplace")
    facts = {"output": {"name": name, **file_digest(written)}, **facts}
    with write_atomically(sidecar_path(output)) as file:
        file.write(json.dumps(facts, indent=1, default=str) + "\n")


def read_lines(path: Path, settings: dict) -> Iterator[tuple[str, str, bytes]]:
    """Path, status and line of each row of a finished table, the line as parts hold it.

    What a table of chosen columns does not say is empty there.

    Args:
        settings: those in the sidecar.

    Raises:
        DataError: the file cannot be read.
    """
    suffix = suffix_of(path)
    every = columns(settings.get("topk", 1))
    empty = dict.fromkeys(every)
    try:
        if OUTPUT_KINDS[suffix] != "csv":
            yield from ((row["path"], row.get("status", ""), json_line(empty | row)) for _, row in typed_rows(path))
        else:
            with (gzip.open if suffix == ".csv.gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file)
                names = next(rows)
                if names != every:
                    by_name = (dict(zip(names, row, strict=True)) for row in rows)
                    rows = ([row.get(column, "") for column in every] for row in by_name)
                yield from ((row[0], row[1], csv_line(row)) for row in rows)  # path and status come first
    except (OSError, ValueError, EOFError, zlib.error, csv.Error, StopIteration) as error:
        raise DataError(f"{readable(path)}: cannot be read: {' '.join(str(error).split())}") from error


def _is_as_written(path: Path, known: dict) -> bool:
    """Compare a file with what the sidecar remembers of it; those of earlier versions remember its size only."""
    if not is_file(path) or retries.read(path.stat).st_size != known["bytes"]:
        return False
    return "sha256" not in known or file_digest(path)["sha256"] == known["sha256"]


def _not_ours(path: Path, advice: str) -> OutputError:
    return OutputError(
        f"{readable(path)} was there before, and is not known to be this job's; "
        f"{advice}, or pass --overwrite to replace it"
    )


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """A file beside ``final`` for ``put_in_place``; without that it goes at the end of the block."""
    make_parents(final.parent)
    with file_beside(final) as temporary:
        yield temporary


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a written file its final name, and wait until the disk has it."""
    sync_file(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)


def _chosen(blocks: Iterator[bytes], kind: str, every: list[str], names: list[str]) -> Iterator[bytes]:
    """The rows of blocks with some of their columns, in the order of ``names``."""
    if kind == "csv":
        places = [every.index(name) for name in names]
        rows = csv.reader(line.decode() + "\n" for line in _lines(blocks))
        yield from (csv_line([row[place] for place in places]) for row in rows)
    else:
        for row in map(json.loads, _lines(blocks)):
            yield json_line({name: row[name] for name in names})


def _blocks(work: "Work", check_stop: Callable[[], None]) -> Iterator[bytes]:
    for index in range(work.files.num_shards):
        check_stop()
        yield from parts.read_rows(work.parts, index)


def _totals(work: "Work") -> dict:
    counts: collections.Counter = collections.Counter()
    seconds: collections.Counter = collections.Counter()
    recovered = 0
    for facts in work.part_facts():
        counts.update(facts["counts"])
        seconds.update(facts["seconds"])
        recovered += facts.get("recovered", 0)
    seconds_by_stage = {stage: round(seconds[stage], 3) for stage in parts.STAGES}
    return {"counts": dict(counts), "seconds": seconds_by_stage, "recovered_reads": recovered}


def _write_parquet(path: Path, blocks: Iterator[bytes], names: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = [(name, pyarrow.float64() if name.startswith("prob") else pyarrow.string()) for name in names]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows: list[dict] = []
        for line in _lines(blocks):
            rows.append(json.loads(line))
            if len(rows) == _ROW_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
