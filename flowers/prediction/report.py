"""The page to look at, of a finished predictions file."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from flowers import console
from flowers.config.predict import PredictConfig
from flowers.data.archives import Archive
from flowers.data.paths import decode_path
from flowers.data.remote import address_of, read_address
from flowers.errors import DataError, ImageError
from flowers.prediction.inputs import input_root
from flowers.prediction.table import page_path
from flowers.reports.predictions_report import write_predictions_report


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
    archive, page = Archive(root), page_path(config.output)

    def read(path: str) -> str | bytes | None:
        path = decode_path(path)
        if address_of(path) is not None:
            with contextlib.suppress(ImageError):
                return read_address(path)
            return None
        source = os.path.join(root, path)
        if os.path.lexists(source):
            return source
        return archive.read(path) if archive.find(path) else None

    write_predictions_report(
        page,
        rows,
        read,
        facts=_told(config, facts),
        photo_base=_address(root, page.parent) if root.is_dir() else None,
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
