"""Photos that predictions tables name, as further images of train/: with the class of their row, or a corrected one.

Taken are rows of status ``ok``, and rows that the corrections name, whatever their status. They go to train/ alone,
also where the validation split is drawn from it: a guess must not judge. A photo that the data set holds already, in
whichever split, is not added; files are compared by device and inode, so links are seen through.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers import console
from flowers.data.choice import Choice
from flowers.data.corrections import Corrections, written_class
from flowers.data.folders import ImageFolders, Samples
from flowers.data.paths import PathList, decode_path, readable, some
from flowers.data.remote import address_of
from flowers.data.scan import Identity, file_ids
from flowers.data.tables import LOOKED_FOR, find_root, photo_roots, read_rows, read_sidecar
from flowers.errors import DataError


@dataclasses.dataclass(frozen=True)
class AddedTable:
    """The photos of one table that are to be added, and those that corrections leave out.

    Attributes:
        where: the table, for messages.
        root: the folder that its paths start from.
        paths: N paths as the table has them.
        folders: the N classes, None for photos left out.
    """

    where: str
    root: Path
    paths: PathList
    folders: list[str | None]


class _Photo(NamedTuple):
    where: str
    path: str
    full_path: str
    folder: str | None


def read_added(table: Path, choice: Choice, corrections: Corrections | None) -> AddedTable:
    """Read a table, and note in the corrections which of their rows are about it.

    Args:
        choice: its patterns leave out photos, by their paths in the table.

    Raises:
        DataError: it cannot be read, lacks a column, adds nothing, or its photos are not where they were.
    """
    where = f"--add {readable(table)}"
    decided = corrections.classes if corrections is not None else {}
    folders: list[str | None] = []
    texts: dict[str | None, str | None] = {}  # one for each class, not for each photo

    def paths() -> Iterator[str]:
        for row in read_rows(table):
            if missing := [name for name in ("status", "class") if name not in row]:
                raise DataError(f"{where}: no column {missing[0]}; make a table with it")
            path, folder = decode_path(row["path"]), decode_path(row["class"])
            if path in decided:
                corrections.of_tables[path] = folder
                folder = decided[path]
            elif row["status"] != "ok":
                continue
            if not choice.excludes_listed(path):
                folders.append(texts.setdefault(folder, folder))
                yield path

    found = PathList(paths())
    if not texts.keys() - {None}:
        raise DataError(f"{where}: no row has status ok or a corrected class, so that there is nothing to add")
    return AddedTable(where, _root(table, where, found), found, folders)


def _root(table: Path, where: str, paths: Sequence[str]) -> Path:
    """The folder that a table's paths start from.

    Raises:
        DataError: its photos are in no folder.
    """
    if remote := next((path for path in paths if address_of(path) is not None), None):
        raise DataError(f"{where}: {readable(remote)} is an address; download the photos, and classify their folder")
    roots = photo_roots(table, read_sidecar(table) or {})
    first = list(itertools.islice(paths, LOOKED_FOR))
    if found := find_root(roots, first):
        root, in_archive = found
        if in_archive:
            raise DataError(f"{where}: {readable(first[0])} lies in an archive; unpack it, and classify the folder")
        return root
    looked = " or ".join(map(readable, roots)) or "the folder that its .json names"
    raise DataError(
        f"{where}: the photos, such as {readable(first[0])}, are not in {looked}; move them back, or classify them "
        "where they are"
    )


def add_to_train(data: ImageFolders, tables: Sequence[AddedTable]) -> ImageFolders:
    """The data set with the photos of the tables after its own images of train/.

    Raises:
        DataError: a photo is gone, is given two classes, or one that the data set does not have; or a correction means
            several photos, or one that the data set knows by another path.
    """
    named: dict[Identity, _Photo] = {}
    for table in tables:
        _check_classes(table, data)
        for file, photo in _files(table):
            other = named.setdefault(file, photo)
            if other.folder != photo.folder:
                raise DataError(
                    f"{photo.where}: {readable(photo.path)} is of class {written_class(photo.folder)}, and "
                    f"{written_class(other.folder)} in {other.where}; decide with --corrections, or leave one table out"
                )
    known = _known(data, named)
    if data.corrections is not None:
        _check_corrections(data.corrections, named, known)
    new = [photo for file, photo in named.items() if file not in known and photo.folder is not None]
    class_to_idx, root = data.classes.class_to_idx, os.path.realpath(data.train.root)
    paths = (os.path.relpath(os.path.abspath(photo.full_path), root) for photo in new)
    targets = np.array([class_to_idx[photo.folder] for photo in new], np.int64)
    there = f"; {console.counted(len(known), 'is', 'are')} in the data set already" if known else ""
    photos, images = console.counted(len(new), "photo"), console.counted(len(data.train), "image")
    console.say(f"train: {photos} added to {images}{there}")
    every = PathList(itertools.chain(data.train.paths, paths))
    return dataclasses.replace(
        data, train=Samples(data.train.root, every, np.concatenate([data.train.targets, targets]))
    )


def _check_classes(table: AddedTable, data: ImageFolders) -> None:
    if new := sorted(set(table.folders) - {None, *data.classes.folders}):
        raise DataError(
            f"{table.where}: {some([readable(name) for name in new])} not among the {len(data.classes)} classes of the "
            "data set; for a new class, make its folder with an image in it first"
        )


def _files(table: AddedTable) -> Iterator[tuple[Identity, _Photo]]:
    """Each photo of a table with its file.

    Raises:
        DataError: one is not there, or lies in an archive.
    """
    full_paths = [os.path.join(table.root, path) for path in table.paths]
    files = file_ids(full_paths.__getitem__, len(full_paths))
    gone = [
        readable(path)
        for path, folder, (_, inode) in zip(table.paths, table.folders, files, strict=True)
        if inode < 0 and folder is not None
    ]
    if gone:
        raise DataError(
            f"{table.where}: {some(gone)} not there, or in an archive; renew the table with predict.py --update"
        )
    for path, full_path, folder, file in zip(table.paths, full_paths, table.folders, files.tolist(), strict=True):
        if file[1] >= 0:
            yield tuple(file), _Photo(table.where, path, full_path, folder)


def _known(data: ImageFolders, named: dict[Identity, _Photo]) -> dict[Identity, tuple[str, str | None]]:
    """Path and class in the data set of the photos that it holds; the class is None if corrections leave it out."""
    splits = [(samples.full_path, samples.paths, samples.targets) for samples in data.splits.values()]
    if (corrections := data.corrections) is not None:
        paths = [path for path in corrections.found if corrections.classes[path] is None]
        left_out = Samples(data.train.root, paths, np.full(len(paths), -1))
        splits.append((left_out.full_path, left_out.paths, left_out.targets))
    inodes = np.array([inode for _, inode in named])
    found: dict[Identity, tuple[str, str | None]] = {}
    for full_path, paths, targets in splits:
        files = file_ids(full_path, len(paths))
        for index in np.flatnonzero(np.isin(files[:, 1], inodes)):
            if (file := tuple(files[index].tolist())) in named:
                found[file] = paths[index], data.classes.folders[targets[index]] if targets[index] >= 0 else None
    return found


def _check_corrections(
    corrections: Corrections, named: dict[Identity, _Photo], known: dict[Identity, tuple[str, str | None]]
) -> None:
    """See that each correction means one photo, under the path that the data set has for it if it has it.

    Raises:
        DataError: one does not.
    """
    where, meant = readable(corrections.file), {}
    for file, photo in named.items():
        if photo.path not in corrections.of_tables:
            continue
        path, folder = known.get(file, (None, None))
        if path is not None and folder != photo.folder:
            raise DataError(
                f"{where}: {readable(photo.path)} of {photo.where} is {readable(path)} of the data set; correct it "
                "under that path"
            )
        if meant.setdefault(photo.path, file) != file or (photo.path in corrections.found and path != photo.path):
            raise DataError(
                f"{where}: {readable(photo.path)} means several photos, of {photo.where} and elsewhere; rename one of "
                "them"
            )
