"""The features of every file as one .npy, float32 [files, D], in the order of the rows.

Every process writes the block of each shard it finishes straight into the file, at its place; the header is
stretched to a page, so that blocks of different shards share no page where shards are of the usual size. Until all is
done the file has another name.
"""

import contextlib
import io
import os
from pathlib import Path

import numpy as np

from flowers.data.paths import readable
from flowers.errors import OutputError
from flowers.files import explain_os_error, sync_folder

_HEADER_BYTES = 4096


class EmbeddingsFile:
    """One embeddings file in the making.

    Args:
        path: its final name.
        key: names the job, so that the unfinished files of two jobs differ.
        files: rows.
        width: D.
    """

    def __init__(self, path: Path, key: str, files: int, width: int):
        self.path, self.width = path, width
        self.partial = path.with_name(f".{path.name}.{key}.partial")
        self._shape = (files, width)
        self.bytes = _HEADER_BYTES + files * width * 4

    def open(self, begun: bool) -> None:
        """Make the unfinished file, or find it.

        Args:
            begun: shards are finished already, so their blocks must be there.

        Raises:
            OutputError: they are not.
            FlowersError: the disk is full or the place cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if begun and not self._is_whole(self.partial) and not self._is_whole(self.path):
                raise OutputError(
                    f"{readable(self.partial)}: the embeddings of the shards that are finished are not there; "
                    "remove the .parts folder of the output to do everything anew"
                )
            if not begun:
                with open(self.partial, "ab") as file:  # several processes may do this at a time
                    file.truncate(self.bytes)
                with open(self.partial, "r+b") as file:
                    file.write(self._header())
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def write(self, start: int, features: np.ndarray) -> None:
        """Write the block of one shard, and wait until the disk has it.

        Args:
            start: row of its first file.
            features: float32 [files of the shard, D].

        Raises:
            FileNotFoundError: the unfinished file is gone: another process has finished the whole job.
            FlowersError: the disk is full.
        """
        try:
            with open(self.partial, "r+b", buffering=0) as file:
                file.seek(_HEADER_BYTES + start * self.width * 4)
                block = memoryview(np.ascontiguousarray(features, dtype="<f4")).cast("B")
                while block:
                    block = block[file.write(block) :]
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def publish(self) -> None:
        """Give the file its final name; harmless if another process has done so.

        Raises:
            OutputError: the file is not there.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.partial, self.path)
                sync_folder(self.path.parent)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        if not self._is_whole(self.path):
            raise OutputError(f"{readable(self.path)}: the embeddings are gone; pass --overwrite to make them anew")

    def _is_whole(self, path: Path) -> bool:
        try:
            return path.stat().st_size == self.bytes
        except OSError:
            return False

    def _header(self) -> bytes:
        out = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(out, header)
        text = out.getvalue()
        prefix, body = text[:8], text[10:].rstrip(b"\n")
        length = _HEADER_BYTES - 10
        return prefix + length.to_bytes(2, "little") + body.ljust(length - 1) + b"\n"
