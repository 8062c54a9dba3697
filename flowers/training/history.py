"""Records of a run while it trains: results in ``history.jsonl``, speeds in ``timing.jsonl``.

Results and speeds are kept apart so that two runs which did the same have the same history, byte for byte,
whatever the machine's speed and however often one of them was interrupted.
"""

import contextlib
import json
import os
from pathlib import Path

from flowers.errors import FlowersError
from flowers.files import explain_os_error


class History:
    """A file of JSON lines that can be cut back to where a checkpoint was taken."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def size_bytes(self) -> int:
        """Length now; stored in a checkpoint, given back to ``cut``."""
        return self.path.stat().st_size if self.path.exists() else 0

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


def read_history(path: Path) -> list[dict]:
    """The lines of a history file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
