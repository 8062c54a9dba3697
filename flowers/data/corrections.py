"""Corrected labels: a small CSV beside a data set that gives some of its images other classes, or leaves them out.

The header is ``path,class``, other columns are ignored. Paths are those of the listing, relative to the data folder, or
those of a predictions table whose photos are added (``flowers.data.added``); a class is the name of a class folder, and
``-`` leaves the image out. (A class of that name is written ``\\x2d``.) The photos themselves are never touched.
"""

import csv
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flowers import console
from flowers.data.paths import decode_path, encode_path, readable, some
from flowers.data.tables import table_rows
from flowers.errors import DataError
from flowers.files import write_atomically

LEAVE_OUT = "-"
CORRECTIONS_FILE = "corrections.csv"
"""A run's own copy of the labels that it was trained with beside those of the folders; not there without any."""


@dataclasses.dataclass(frozen=True)
class Corrections:
    """The rows of a file, and the images of the present listing that they were found for.

    Attributes:
        file: for messages.
        classes: the new class by path; None leaves the image out.
        of_other_data: rows may name images and classes that are not there, as those of a run may that is now measured
            on other images.
        found: the class that the listing gives, by path, of the images found so far.
        of_tables: the class that predictions tables give, by the path that these have for a photo.
    """

    file: Path | str
    classes: dict[str, str | None]
    of_other_data: bool = False
    found: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    of_tables: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """Number and short hash of the rows, whatever their order."""
        digest = hashlib.sha256()
        for path, folder in sorted(self.classes.items()):
            digest.update(os.fsencode(path) + b"\0" + os.fsencode(folder or "") + b"\0")
        return f"{len(self.classes)} ({digest.hexdigest()[:12]})"

    def save(self, file: Path) -> None:
        """Write the rows, sorted by path.

        Raises:
            FlowersError: the file cannot be written.
        """
        with write_atomically(file) as opened:
            rows = csv.writer(opened)
            rows.writerow(("path", "class"))
            rows.writerows(self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Path and class as they are written, sorted by path."""
        return [(encode_path(path), written_class(folder)) for path, folder in sorted(self.classes.items())]

    def corrected(self, images: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield path and class of the images in their order, with the new classes, without those left out."""
        for path, folder in images:
            if path not in self.classes:
                yield path, folder
                continue
            self.found[path] = folder
            if self.classes[path] is not None:
                yield path, self.classes[path]

    def check_classes(self, known: Iterable[str], where: str) -> None:
        """Refuse classes that the data set or the model does not have.

        Raises:
            DataError: they are named.
        """
        known = set(known)
        new = sorted({folder for folder in self.classes.values() if folder is not None and folder not in known})
        if new and not self.of_other_data:
            raise DataError(
                f"{readable(self.file)}: {some([readable(name) for name in new])} not among the {len(known)} classes "
                f"of {where}; for a new class, make its folder with an image in it first"
            )

    def check_paths(self, where: str) -> None:
        """Refuse paths that the listing does not have, and say what was corrected. Call it after the listing.

        Raises:
            DataError: they are named.
        """
        gone = sorted(self.classes.keys() - self.found.keys() - self.of_tables.keys())
        if gone and not self.of_other_data:
            raise DataError(
                f"{readable(self.file)}: {some([readable(path) for path in gone])} not among the images of {where}; "
                "remove these rows, or give the file that belongs to these images"
            )
        given = {**self.of_tables, **self.found}
        left_out = sum(self.classes[path] is None for path in given)
        changed = sum(self.classes[path] not in (None, folder) for path, folder in given.items())
        if given:
            labels, images = console.counted(changed, "label"), console.counted(left_out, "image")
            console.say(f"corrections of {console.plain(readable(self.file))}: {labels} changed, {images} left out")


def written_class(folder: str | None) -> str:
    """A class as it is written in the file; None is written as what leaves an image out."""
    if folder is None:
        return LEAVE_OUT
    return r"\x2d" if folder == LEAVE_OUT else encode_path(folder)


def read_all_corrections(files: Sequence[Path]) -> Corrections | None:
    """Read several files of corrections as one; None for no file.

    Raises:
        DataError: one cannot be read or is no such CSV, or two give a path different classes.
    """
    read = [read_corrections(file) for file in files]
    if len(read) < 2:
        return read[0] if read else None
    classes: dict[str, str | None] = {}
    for own in read:
        for path, folder in own.classes.items():
            if classes.setdefault(path, folder) != folder:
                raise DataError(
                    f"{readable(own.file)}: {readable(path)} has the class {written_class(folder)}, and "
                    f"{written_class(classes[path])} in an earlier file; keep one of the rows"
                )
    return Corrections(", ".join(map(str, files)), classes)


def read_corrections(file: Path, of_other_data: bool = False) -> Corrections:
    """Read a file of corrections.

    Args:
        of_other_data: see ``Corrections``.

    Raises:
        DataError: the file cannot be read, is no such CSV, or names a path twice.
    """
    classes: dict[str, str | None] = {}
    for line, row in table_rows(file):
        where = f"{readable(file)}, line {line}"
        if "class" not in row:
            raise DataError(f"{readable(file)}: columns are {','.join(row)}, expected path,class")
        folder, path = row["class"], row["path"]
        if not folder or "/" in folder:
            raise DataError(f"{where}: got class {folder!r}, expected a class, or {LEAVE_OUT} to leave the image out")
        if path in classes:
            raise DataError(f"{where}: {readable(path)} is corrected twice; keep one of the rows")
        classes[path] = None if folder == LEAVE_OUT else decode_path(folder)
    return Corrections(file, classes, of_other_data)
