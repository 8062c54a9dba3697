"""Flags of ``jobs/prepare.py``, one dataclass a subcommand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from flowers.flags import Flag


@dataclass(frozen=True)
class SampleConfig:
    """Draw the small sample flower set that the quickstart trains on."""

    COMMAND: ClassVar = "sample"

    output_dir: Path = Path("data/sample")
    """Folder for train/, valid/, test/ and cat_to_name.json; must be empty or not there."""
    species: int = 12
    """Number of classes, 2 to 16."""
    train: int = 40
    """Images a class in train/."""
    valid: int = 10
    """Images a class in valid/; 0 leaves the split out."""
    test: int = 20
    """Images a class in test/; 0 leaves the split out."""
    image_size: int = 256
    """Side of the square pictures, in pixels."""
    seed: int = 0
    """The same seed draws the same pictures."""


@dataclass(frozen=True)
class Oxford102Config:
    """Make the Oxford 102 flower set from its three original files, downloaded or on disk.

    Nilsback and Zisserman 2008: 8,189 photos, 102 classes. Reading the label files needs SciPy.
    """

    COMMAND: ClassVar = "oxford102"

    output_dir: Path = Path("data/flowers102")
    """Folder for train/, valid/, test/ and cat_to_name.json; must be empty or not there."""
    source_dir: Path | None = None
    """Folder that holds 102flowers.tgz, imagelabels.mat and setid.mat; without it they are downloaded."""
    download_dir: Path = Path("data/downloads")
    """Where downloads are kept, and found again."""
    split_file: Path | None = None
    """CSV with a header path,split: another split than the official 1,020 / 1,020 / 6,149."""


@dataclass(frozen=True)
class CheckConfig:
    """Look for what spoils a training run: unreadable, double, tiny, odd images, missing classes.

    Exit code 0: training would start. 1: it would not, or images cannot be read.
    """

    COMMAND: ClassVar = "check"

    data_dir: Annotated[Path, Flag("--data")]
    """Folder with train/ and valid/ (or val/), perhaps test/, each with one folder a class."""
    output: Path | None = None
    """JSON file of all findings."""
    near: int = 6
    """Bits of 64 in which the fingerprints of near-duplicates may differ, 0 to 7."""
    tiny: int = 64
    """Report images whose short side is under this many pixels."""
    huge: int = 50_000_000
    """Report images of more pixels than this."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Threads that read images; default: the CPUs it may use."""


PrepareConfig = SampleConfig | Oxford102Config | CheckConfig
