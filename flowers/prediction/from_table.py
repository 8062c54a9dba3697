"""A finished table used again without the network: other marks, photos sorted by them, a page.

The status of a row that is ``ok`` or ``unsure`` comes from its probability as it is written; other rows keep theirs. So
the new table is byte for byte that of a job with this ``--min-prob``, and its JSON and stamps are those of that job,
which ``--update`` continues. Rows are gone through in order, in bounded memory. Torch is imported for the page only,
which shows photos.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from flowers import console
from flowers.cli import to_plain
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.classes import display_names, names_digest
from flowers.data.paths import decode_path, encode_path, readable
from flowers.data.remote import address_of
from flowers.data.tables import (
    LOOKED_FOR,
    find_root,
    photo_roots,
    read_rows,
    read_sidecar,
    recorded_input,
    require_writer,
    sidecar_path,
)
from flowers.data.workbook import check_room
from flowers.environment import rank
from flowers.errors import EXIT_STRICT, DataError, OutputError, UsageError
from flowers.files import explain_os_error, file_digest, write_atomically
from flowers.prediction.finish import check_target, finish
from flowers.prediction.inputs import input_root
from flowers.prediction.rows import columns, line_of, prob_text, status_by_prob
from flowers.prediction.table import (
    Thumbnails,
    check_free,
    check_page,
    finished_facts,
    new_file,
    put_in_place,
    stamps_path,
    thumbnails_of,
    write_rows,
    write_sidecar,
)
from flowers.prediction.work import refusal
from flowers.stopping import StopRequest

_ROWS_BETWEEN_STOPS = 1000


class _Marks(NamedTuple):
    """What changes in the rows.

    Attributes:
        min_prob: below it a row is unsure; None leaves the marks as they are.
        labels: new display names by class folder; empty leaves them as they are.
    """

    min_prob: float | None
    labels: Mapping[str, str]


def predict_from_table(config: PredictConfig) -> int:
    """Mark the rows of ``--from`` anew, and write what the other flags ask for; returns the exit code.

    Raises:
        StoppedError: a signal came; the same command starts again.
        FlowersError: see its message.
    """
    if rank() > 0:  # there is nothing to share
        return 0
    table = config.from_table
    names = _checked_columns(config)
    facts, is_whole = read_sidecar(table) or {}, finished_facts(table, None) is not None
    if not is_whole:
        console.warn(
            f"{readable(sidecar_path(table))} is missing, or the table was changed since it was written; its rows are "
            "taken as they are now"
        )
    with StopRequest() as stop:
        marks = _Marks(_min_prob(config, facts), _labels(config, facts, names))
        rows = functools.partial(_marked, table, names, marks, stop.check)
        settings = _settings(config, facts, names, marks)
        if config.output is not None:
            _check_output(config, settings if is_whole else None, facts.get("contents"))
            check_room(config.output, facts.get("files", 0), pictures=config.thumbnails)
        job = dataclasses.replace(config, output=config.output or table)
        if config.copy_to or config.link_to or config.report or config.thumbnails:
            job = dataclasses.replace(job, input=_inputs(config, facts, rows))
            check_target(job)
        if config.report and not config.overwrite:
            check_page(job.output)
        facts["settings"] = settings
        if marks.labels and facts.get("classes"):
            facts["classes"] = dict(marks.labels)
        if config.output is None:
            counts = Counter(row["status"] for row in rows())
        else:
            counts = _write(config, facts if is_whole else None, names, rows, thumbnails_of(job))
        facts |= {"counts": counts, "files": counts.total()}
        finish(job, rows, facts, stop.check, wrote_table=config.output is not None)
    return EXIT_STRICT if config.strict and counts["error"] else 0


def _checked_columns(config: PredictConfig) -> list[str]:
    """The table's columns.

    Raises:
        DataError: it cannot be read, holds no rows, or lacks columns that a flag needs.
        UsageError: --columns names one that it lacks.
    """
    first = next(read_rows(config.from_table), None)
    if first is None:
        raise DataError(f"--from {readable(config.from_table)}: the table holds no rows")
    needed = {"--from": ("status",), **config.columns_needed()}
    needed |= {"--min-prob": ("prob",)} if config.min_prob is not None else {}
    needed |= {"--class-names": ("label", "class")} if config.class_names is not None else {}
    for flag, wanted in needed.items():
        if missing := [name for name in wanted if name not in first]:
            raise DataError(
                f"{flag}: {readable(config.from_table)} has no column {' and '.join(missing)}; make a table with it"
            )
    if unknown := [name for name in config.chosen_columns() if name not in first]:
        raise UsageError(f"--columns: got {','.join(unknown)}, expected some of {','.join(first)}")
    return list(first)


def _min_prob(config: PredictConfig, facts: dict) -> float | None:
    if config.min_prob != "auto":
        return config.min_prob
    if not isinstance(value := facts.get("auto_min_prob"), int | float):
        raise UsageError(
            f"--min-prob auto: {readable(sidecar_path(config.from_table))} names no threshold of the model, as models "
            "without one and earlier versions do not; give a probability"
        )
    return value


def _labels(config: PredictConfig, facts: dict, names: list[str]) -> dict[str, str]:
    """The display names of ``--class-names``, as in rows: for all classes of the model, or those that rows name."""
    if config.class_names is None:
        return {}
    folders = list(facts.get("classes") or ())
    if not folders:  # a table of an earlier version
        of_class = [name for name in names if name.startswith("class")]
        folders = sorted({row[name] for row in read_rows(config.from_table) for name in of_class} - {""})
    labels = display_names(tuple(map(decode_path, folders)), Path(), config.class_names)
    return dict(zip(folders, map(encode_path, labels), strict=True))


def _marked(table: Path, names: list[str], marks: _Marks, check_stop: Callable[[], None]) -> Iterator[dict[str, str]]:
    """The rows of the table, with other marks; a line of JSON may leave out what it has no value of.

    Raises:
        DataError: it cannot be read, or holds a probability that is none: somebody may have changed it.
    """
    empty = dict.fromkeys(names, "")
    of_prob = [name for name in names if name.startswith("prob")]
    of_label = [name for name in names if name.startswith("label")] if marks.labels else []
    for number, row in enumerate(read_rows(table)):
        if number % _ROWS_BETWEEN_STOPS == 0:
            check_stop()
        row = empty | row
        is_marked = marks.min_prob is not None and row["status"] in ("ok", "unsure")
        for name in of_prob:
            if not row[name] and not (is_marked and name == "prob"):
                continue
            prob = _number(row[name])
            if not 0 <= prob <= 1:
                said = f"{name} of {row['path']} is {row[name]!r}, expected a number from 0 to 1"
                raise DataError(f"{readable(table)}: {said}")
            row[name] = prob_text(prob)
            if is_marked and name == "prob":
                row["status"] = status_by_prob(prob, marks.min_prob)
        for name in of_label:
            row[name] = marks.labels.get(row[name.replace("label", "class", 1)], row[name])
        yield row


def _number(text: str) -> float:
    """A cell's number; NaN where it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _settings(config: PredictConfig, facts: dict, names: list[str], marks: _Marks) -> dict:
    """The settings of a job that would write the new table; see ``predict.py``."""
    of_output = ("excel", "columns", "thumbnails")
    settings = {name: value for name, value in facts.get("settings", {}).items() if name not in of_output}
    if marks.min_prob is not None:
        settings["min_prob"] = marks.min_prob
    if marks.labels:
        settings["class_names"] = names_digest(list(map(decode_path, marks.labels.values())))
    if config.output is None:
        return settings
    chosen = config.chosen_columns() or names
    settings |= {"kind": OUTPUT_KINDS[config.suffix()], "embeddings": None}
    settings |= {name: True for name in ("excel", "thumbnails") if getattr(config, name)}
    return settings | ({"columns": chosen} if chosen != columns(settings.get("topk", 1)) else {})


def _check_output(config: PredictConfig, settings: dict | None, contents: list | None) -> None:
    """Refuse to replace the table itself, or what an earlier job of other settings left.

    Args:
        settings: of the new table; None if it is that of no job.
        contents: samples of the photos, see ``work.sample_contents``.

    Raises:
        UsageError: the output is the table or a folder, or its library is missing.
        OutputError: it was there before.
    """
    output = config.output
    require_writer(output)
    if os.path.realpath(output) == os.path.realpath(config.from_table):
        raise UsageError(f"--output {readable(output)} is the table that --from reads; give it another name")
    if os.path.isdir(output):
        raise UsageError(f"--output {readable(output)}: this is a folder, a file name was expected")
    if config.overwrite:
        return
    earlier = finished_facts(output, None)
    if earlier is not None and (earlier["settings"], earlier.get("contents")) == (settings, contents):
        return
    if output.exists():
        then = earlier["settings"] if earlier is not None and settings is not None else None
        raise OutputError(refusal(output, then, settings or {}))
    check_free(output, None)


def _inputs(config: PredictConfig, facts: dict, rows: Callable[[], Iterator[dict[str, str]]]) -> tuple[Path, ...]:
    """The inputs that the table's paths start from: those given, those of the job, or the folder as the table sees it.

    Raises:
        DataError: the first photos are in none of them.
    """
    table = config.from_table
    known = (row["path"] for row in rows() if row["status"] != "error")
    paths = [decode_path(path) for path in itertools.islice(known, LOOKED_FOR)]
    roots = [input_root(config.input)] if config.input else photo_roots(table, facts)
    anywhere = not paths or any(address_of(path) is not None for path in paths)
    if found := (roots[0], False) if anywhere and roots else find_root(roots, paths):
        return config.input or _as_given(facts, found[0])
    looked = " or ".join(map(readable, roots)) or "the folder that its .json names"
    raise DataError(
        f"the photos of {readable(table)}{f', such as {readable(paths[0])},' if paths else ''} are not in "
        f"{looked}; give --input with the folder that its paths start from"
    )


def _as_given(facts: dict, root: Path) -> tuple[Path, ...]:
    """The inputs as the job was given them, which may be parts of the folder, where they are those still."""
    given = tuple(map(Path, recorded_input(facts)))
    with contextlib.suppress(DataError, OSError):
        if given and os.path.samefile(input_root(given), root):
            return given
    return (root,)


def _write(
    config: PredictConfig,
    facts: dict | None,
    names: list[str],
    rows: Callable[[], Iterator[dict[str, str]]],
    thumbnails: Thumbnails | None,
) -> Counter:
    """Write the new table; returns the rows of each status.

    Args:
        facts: what its JSON says, but for what is known only now; None if it is the table of no job, and gets none.
    """
    output, kind, counts = config.output, OUTPUT_KINDS[config.suffix()], Counter()
    chosen = config.chosen_columns() or names

    def lines() -> Iterator[bytes]:
        for row in rows():
            counts[row["status"]] += 1
            yield line_of(row, chosen, kind)

    try:
        with new_file(output) as temporary:
            write_rows(temporary, config.suffix(), lines(), chosen, excel=config.excel, thumbnails=thumbnails)
            if facts is not None:  # before the table: a start that was killed here has left a JSON that fits no table
                _write_papers(config, temporary, {**facts, "counts": dict(counts)})
            put_in_place(temporary, output)
    except OSError as error:
        raise explain_os_error(error, output) from error
    return counts


def _write_papers(config: PredictConfig, written: Path, facts: dict) -> None:
    """Write JSON and stamps of the new table, whose bytes lie at ``written``, from those of the old one."""
    output, table = config.output, config.from_table
    del facts["output"]  # the old one
    facts |= {
        "embeddings": None,
        "from": {"table": os.path.relpath(table, output.parent), **file_digest(table), "config": to_plain(config)},
    }
    if facts.get("input_root"):
        facts["input_root"] = os.path.relpath(table.parent / facts["input_root"], output.parent)
    stamps = facts.pop("stamps", None)
    with contextlib.suppress(OSError):
        if stamps is not None and file_digest(stamps_path(table)) == stamps:
            facts["stamps"] = stamps
    write_sidecar(output, written, facts)
    if "stamps" in facts:  # after the JSON, without which they would be nobody's when this command is started again
        with open(stamps_path(table), "rb") as old, write_atomically(stamps_path(output), "wb") as new:
            shutil.copyfileobj(old, new)
