"""The photos of a finished table, found again: for its page, and as small pictures in an .xlsx."""

import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flowers import console
from flowers.config.predict import PredictConfig
from flowers.data.archives import Archive
from flowers.data.paths import decode_path
from flowers.data.remote import address_of, read_address
from flowers.data.threads import in_order
from flowers.data.workbook import SIDE
from flowers.errors import DataError, ImageError
from flowers.files import file_digest
from flowers.machine import cpus_per_process
from flowers.prediction.inputs import Inputs, input_root
from flowers.prediction.table import page_path
from flowers.reports.photos import thumbnail
from flowers.reports.predictions_report import write_predictions_report
from flowers.retries import is_there


def write_report(config: PredictConfig, rows: Iterable[Mapping[str, str]], facts: dict) -> None:
    """Write the page of a finished output; photos that are not there any more are only named.

    Args:
        rows: of the finished table, as ``read_rows`` gives them.
        facts: what the JSON beside the output says.

    Raises:
        FlowersError: the file cannot be written.
    """
    try:
        root = input_root(config.input)
    except DataError as error:  # --merge, or a finished output, needs no photos
        console.warn(f"the report has no pictures: {error}")
        root = Path(os.devnull)
    page = page_path(config.output)
    write_predictions_report(
        page,
        rows,
        photo_reader(root),
        facts=_told(config, facts),
        photo_base=_address(root, page.parent) if root.is_dir() else None,
        classes=facts.get("classes") or {},  # a table of an earlier version names none
        key=file_digest(config.output)["sha256"],
    )


def _address(folder: Path, start: Path) -> str:
    """Address of a folder as seen from a page in ``start``, with a slash at the end."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(folder, start) + "/"))


def _told(config: PredictConfig, facts: dict) -> list[tuple[str, object]]:
    made, engine, settings = facts.get("made") or {}, facts.get("engine") or {}, facts["settings"]
    seconds = ", ".join(f"{stage} {value:,.1f}" for stage, value in facts.get("seconds", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items())
    told = [
        ("input", " ".join(map(str, config.input))),
        ("predictions", config.output),
        ("checkpoint", config.checkpoint or made.get("config", {}).get("checkpoint")),
        ("model hash", facts.get("model")),
        ("engine", ", ".join(f"{name} {value}" for name, value in engine.items())),
        ("unsure below", settings.get("min_prob") or None),
        ("test-time augmentation", None if settings.get("tta") == "none" else settings.get("tta")),
        ("seconds by stage, all threads", seconds),
        ("made", made.get("date")),
        ("versions", versions),
    ]
    return [(name, value) for name, value in told if value]


def photo_reader(root: Path) -> Callable[[str], str | bytes | None]:
    """Where a row's photo is: a function from its path, as the row has it, to a file, bytes, or None if it is gone.

    Args:
        root: folder that paths are relative to.
    """
    archive = Archive(root)

    def read(path: str) -> str | bytes | None:
        path = decode_path(path)
        source = os.path.join(root, path)
        try:
            if address_of(path) is not None:
                return read_address(path)
            if is_there(source):
                return source
            return archive.read(path) if archive.find(path) else None
        except (ImageError, OSError):
            return None

    return read


def with_thumbnails(inputs: Inputs, rows: Iterator[dict]) -> Iterator[tuple[dict, bytes | None]]:
    """Each row with the middle square of its photo as a small JPEG; None if that cannot be read.

    Raises:
        DataError: the input is not there.
    """
    read = photo_reader(input_root(inputs))

    def small(item: tuple[dict, str | bytes | None]) -> tuple[dict, bytes | None]:
        row, source = item
        try:
            return row, thumbnail(source, SIDE) if source is not None else None
        except ImageError:
            return row, None

    sources = ((row, None if row.get("status") == "error" else read(row["path"])) for row in rows)
    return in_order(small, sources, cpus_per_process())
