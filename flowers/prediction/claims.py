"""Who does what: each piece of work is taken by one living process, by creating a file that must not be there yet.

A claim of a process that is dead (see workers.py) is taken over. Claims save double work, they do not guard
correctness: results are written whole, under one name, with the same bytes whoever writes them, so two processes that
both believe to own a piece do no harm.
"""

import contextlib
import os
from pathlib import Path

from flowers.files import explain_os_error
from flowers.prediction.workers import Worker, parse_sign

EMPTY_S = 5.0  # without hard links a claim is created, then filled: an empty one's process was killed in between


class Claims:
    """Pieces of work by name, each taken by at most one living process: the files of one folder."""

    def __init__(self, folder: Path, worker: Worker):
        self._folder, self._worker = Path(folder), worker
        self._mine: set[str] = set()

    def take(self, name: str) -> bool:
        """Take a piece unless a living process has it.

        Raises:
            FileNotFoundError: the folder is gone, that is, all work is done.
            FlowersError: the folder cannot be written.
        """
        try:
            if self._take(self._folder / name, name):
                self._mine.add(name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain_os_error(error, self._folder / name) from error
        return name in self._mine

    def give_back(self, name: str) -> None:
        """End a claim of this process; one that was taken over meanwhile is left alone."""
        self._mine.discard(name)
        with contextlib.suppress(OSError):
            if self.owner(name) == self._worker.token:
                os.unlink(self._folder / name)

    def give_all_back(self) -> None:
        """End all claims that this process has left."""
        for name in sorted(self._mine):
            self.give_back(name)

    def owner(self, name: str) -> str | None:
        """Token of who has a piece; "" if it did not come to write it, None if nobody has it."""
        try:
            return parse_sign((self._folder / name).read_bytes()).get("token", "")
        except FileNotFoundError:
            return None

    def _take(self, path: Path, name: str) -> bool:
        while True:
            try:
                self._create(path)
                return True
            except FileExistsError:
                owner = self.owner(name)
            if owner is None:
                continue  # given back just now
            if owner == self._worker.token:
                return True
            if not owner:
                if self._worker.unchanged_s(str(path), b"") < EMPTY_S:
                    return False
            elif self._worker.is_alive(owner):
                return False
            temporary = path.with_name(f".{name}.{self._worker.token}")
            self._create(temporary)
            os.replace(temporary, path)
            return self.owner(name) == self._worker.token

    def _create(self, path: Path) -> None:
        """Make a file that must not be there yet and says whose it is: best as a link, which is never half made."""
        try:
            os.link(self._worker.path, path)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, or something that the next lines will say
            pass
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            os.write(descriptor, self._worker.sign())
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
