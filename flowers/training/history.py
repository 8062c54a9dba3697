"""Records of a run while it trains: results in ``history.jsonl`` and ``history.csv``, speeds in ``timing.jsonl``.

Results and speeds are kept apart so that two runs which did the same have the same history, byte for byte,
whatever the machine's speed and however often one of them was interrupted.
"""

import contextlib
import csv
import json
import os
from pathlib import Path

from flowers.errors import FlowersError
from flowers.files import explain_os_error, write_atomically
from flowers.parsing import parse_json
from flowers.retries import is_there, retries

COLUMNS = (
    "step", "epoch", "lr", "train_loss", "train_top1", "train_images", "valid_loss", "valid_top1", "valid_top5",
    "valid_images",
)  # fmt: skip
_OF_THE_STEP = ("step", "epoch", "lr", "train_loss")


class History:
    """A file of JSON lines that can be cut back to where a checkpoint was taken.

    Args:
        with_table: keep the same as a table beside it, ``.csv``, with a row for each step that was measured.
    """

    def __init__(self, path: Path, *, with_table: bool = False):
        self.path = path
        self.table = path.with_suffix(".csv") if with_table else None

    @property
    def size_bytes(self) -> int:
        """Length now; stored in a checkpoint, given back to ``cut``."""
        return retries.read(self.path.stat).st_size if is_there(self.path) else 0

    def append(self, event: str, **values: object) -> None:
        """Write one line and make it last.

        Raises:
            FlowersError: the disk is full or the file cannot be written; no half line stays behind.
        """
        size_bytes = self.size_bytes
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(FlowersError):
                self.cut(size_bytes)
            raise explain_os_error(error, self.path) from error
        self.write_table()

    def cut(self, size_bytes: int) -> None:
        """Drop the lines written after a checkpoint, whose steps will be repeated.

        Raises:
            FlowersError: the file cannot be written.
        """
        try:
            if self.size_bytes > size_bytes:
                os.truncate(self.path, size_bytes)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self.write_table()

    def replace(self, lines: bytes) -> None:
        """Put other lines in the place of all that are there.

        Raises:
            FlowersError: the file cannot be written.
        """
        with write_atomically(self.path, "wb") as file:
            file.write(lines)
        self.write_table()

    def write_table(self) -> None:
        """Write the table anew, whole, from the lines: it never holds another number of steps than they do.

        Raises:
            FlowersError: the file cannot be written.
        """
        if self.table is None or not is_there(self.path):
            return
        rows: dict[int, dict] = {}
        for line in read_history(self.path):
            event = line.pop("event")
            named = {name if name in _OF_THE_STEP else f"{event}_{name}": value for name, value in line.items()}
            rows.setdefault(line["step"], {}).update(named)
        more = sorted({name for row in rows.values() for name in row} - set(COLUMNS))
        with write_atomically(self.table) as file:
            writer = csv.DictWriter(file, [*COLUMNS, *more], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def read_history(path: Path) -> list[dict]:
    """The lines of a history file; a last line cut short by a crash is left out."""
    if not is_there(path):
        return []
    lines = retries.read(lambda: path.read_text(encoding="utf-8"), path).splitlines(keepends=True)
    return [parse_json(line) for line in lines if line.endswith("\n")]
