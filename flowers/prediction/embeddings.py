"""The features of every file as one .npy, float32 [files, D], in the order of the rows.

Every process writes the block of each shard it finishes straight into the file, at its place; the header is
stretched to a page, so that blocks of different shards share no page where shards are of the usual size. The part of a
shard holds the CRC of its block. Until all is done the file lies in the work folder.
"""

import contextlib
import errno
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.paths import readable
from flowers.files import make_folder, remove, sync_folder, write_atomically
from flowers.prediction import parts
from flowers.prediction.work import Work

_HEADER_BYTES = 4096


class EmbeddingsFile:
    """One embeddings file in the making.

    Args:
        path: its final name.
        work: the job.
        width: D.
    """

    def __init__(self, path: Path, work: Work, width: int):
        self.path, self.width = path, width
        self._work, self._partial = work, work.folder / "embeddings.npy"
        self.bytes = _HEADER_BYTES + work.num_files * width * 4

    @property
    def is_unfinished(self) -> bool:
        """True if it is in the making, and does not have its final name yet."""
        return os.path.lexists(self._partial)

    def open(self) -> None:
        """Make the unfinished file, or find it; finished shards whose embeddings are lost lose their parts.

        Raises:
            FlowersError: the disk is full or the place cannot be written.
        """
        with parts.explained(self.path):
            make_folder(self.path.parent)  # before the work, not after it
            done = parts.finished(self._work.parts)
            published = len(done) == self._work.files.num_shards and self._is_whole(self.path)
            if self._is_whole(self._partial) or published:
                return
            if done:
                console.warn(f"{readable(self.path)}: embeddings of finished shards are lost; they are made again")
            for index in done:
                parts.remove_part(self._work.parts, index)
            if self._partial.is_dir() or self._partial.is_symlink():
                remove(self._partial)
            with open(self._partial, "ab") as file:  # several processes may do this at a time
                file.truncate(self.bytes)
            with open(self._partial, "r+b") as file:
                file.write(self._header())

    def write(self, index: int, features: np.ndarray) -> int:
        """Write the block of one shard, wait until the disk has it, and return its CRC.

        Args:
            index: which shard.
            features: float32 [files of the shard, D].

        Raises:
            FileNotFoundError: the unfinished file is gone: another process has finished the whole job.
            FlowersError: the disk is full.
        """
        block = memoryview(np.ascontiguousarray(features, dtype="<f4")).cast("B")
        crc = zlib.crc32(block)
        with parts.explained(self.path), open(self._partial, "r+b", buffering=0) as file:
            file.seek(self._start(index))
            while block:
                block = block[file.write(block) :]
            os.fsync(file.fileno())
        return crc

    def publish(self) -> None:
        """Check every block, then give the file its final name; harmless if another process has done so.

        Raises:
            FileNotFoundError: a part is gone: another process has finished the whole job.
            DamagedError: blocks are damaged; their parts are removed.
        """
        with parts.explained(self.path):
            source = self._partial if self._partial.exists() else self.path
            self._check(source)
            if source == self.path:
                return
            try:
                os.replace(source, self.path)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with open(source, "rb") as old, write_atomically(self.path, "wb") as new:
                    shutil.copyfileobj(old, new)
                source.unlink()
            sync_folder(self.path.parent)

    def _check(self, source: Path) -> None:
        damaged = []
        with open(source, "r+b") as file:
            if source == self._partial:
                file.write(self._header())
                file.flush()
                os.fsync(file.fileno())
            for index in range(self._work.files.num_shards):
                file.seek(self._start(index))
                block = file.read(self._work.size(index) * self.width * 4)
                if zlib.crc32(block) != parts.read_facts(self._work.parts, index).get("embeddings_crc32"):
                    damaged.append(index)
        for index in damaged:
            parts.remove_part(self._work.parts, index)
        if damaged:
            with contextlib.suppress(OSError):  # a cut file is stretched to its size again
                if source == self._partial:
                    os.truncate(source, self.bytes)
            shards = console.counted(len(damaged), "shard")
            raise parts.DamagedError(
                f"{readable(self.path)}: the embeddings of {shards} were damaged: they are done again"
            )

    def _start(self, index: int) -> int:
        return _HEADER_BYTES + index * self._work.settings["shard_size"] * self.width * 4

    def _is_whole(self, path: Path) -> bool:
        try:
            return path.lstat().st_size == self.bytes
        except OSError:
            return False

    def _header(self) -> bytes:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self._work.num_files}, {self.width}), }}"
        length = _HEADER_BYTES - 10
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.encode().ljust(length - 1) + b"\n"
