"""The photos that the rows of a finished table are about: found again, and as small pictures."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flowers.data.archives import Archive
from flowers.data.paths import decode_path
from flowers.data.remote import address_of, read_address
from flowers.data.threads import in_order
from flowers.data.workbook import SIDE
from flowers.errors import ImageError
from flowers.machine import cpus_per_process
from flowers.prediction.inputs import Inputs, input_root
from flowers.reports.photos import thumbnail


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
            if os.path.lexists(source):
                return source
            return archive.read(path) if archive.find(path) else None
        except ImageError:
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
