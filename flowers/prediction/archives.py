"""Photos by the paths that rows give them, in folders and in tar archives, one after the other."""

import contextlib
import os
import tarfile
from pathlib import Path

from flowers.prediction.inputs import TAR, tar_headers


class Archive:
    """The members of one archive at a time; rows of one archive follow one another.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: Path):
        self._root, self._path = root, ""
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}

    def find(self, path: str) -> bool:
        """Whether a path lies in an archive: ``archive.tar/member``."""
        if not (self._path and path.startswith(self._path + "/")):
            end = path.lower().find(TAR + "/")
            while end >= 0 and not os.path.isfile(os.path.join(self._root, path[: end + len(TAR)])):
                end = path.lower().find(TAR + "/", end + 1)
            if end < 0:
                return False
            self.close()
            self._path = path[: end + len(TAR)]
            with contextlib.suppress(tarfile.TarError, OSError, ValueError, ArithmeticError):
                self._tar = tarfile.open(os.path.join(self._root, self._path), "r:")  # noqa: SIM115
                for member in tar_headers(self._tar):
                    self._members[member.name.removeprefix("./")] = member
        return path[len(self._path) + 1 :] in self._members

    def read(self, path: str) -> bytes:
        """The bytes of a member that ``find`` has found."""
        return self._tar.extractfile(self._members[path[len(self._path) + 1 :]]).read()

    def close(self) -> None:
        """Close the archive; another ``find`` opens one again."""
        if self._tar is not None:
            self._tar.close()
        self._tar, self._members, self._path = None, {}, ""
