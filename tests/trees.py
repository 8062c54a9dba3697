"""Trees of files for tests of scans, classes and splits."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowers.data.folders import ImageFolders, load_image_folders
from flowers.data.splits import ValidationDraw


def touch(root: Path, *names: str) -> Path:
    """Make empty files below a folder, which is returned."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def images(*counts: tuple[str, int]) -> list[str]:
    """Names of so many images in each of some folders."""
    return [f"{folder}/{index:03}.jpg" for folder, count in counts for index in range(count)]


def load(data_dir: Path, **options: object) -> ImageFolders:
    """``load_image_folders`` with the defaults of training; options of the draw may stand among its own."""
    of_draw = {field.name for field in dataclasses.fields(ValidationDraw)} & options.keys()
    draw = ValidationDraw(**({"val_fraction": 0.2, "seed": 0} | {name: options.pop(name) for name in of_draw}))
    return load_image_folders(data_dir, draw=draw, **options)


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder to work in, and permissions that count: root is turned into nobody for a while."""
    with tempfile.TemporaryDirectory() as folder:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                pytest.skip("the folder for temporary files is for root only")
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)
