"""Flags of ``jobs/prepare.py``, one dataclass a subcommand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from flowers.config.values import check_least
from flowers.flags import Flag


@dataclass(frozen=True)
class SampleConfig:
    """Draw the small sample flower set that the quickstart trains on."""

    COMMAND: ClassVar = "sample"

    output_dir: Path = Path("data/sample")
    """Folder for train/, valid/, test/ and cat_to_name.json; must be empty or missing."""
    species: int = 12
    """Number of classes, 2 to 16."""
    train: int = 40
    """Images per class in train/."""
    valid: int = 10
    """Images per class in valid/; 0 leaves the split out."""
    test: int = 20
    """Images per class in test/; 0 leaves the split out."""
    image_size: int = 256
    """Side of the square images, in pixels."""
    seed: int = 0
    """The same seed draws the same images."""


@dataclass(frozen=True)
class Oxford102Config:
    """Make the Oxford 102 flower set from its three original files, downloaded or on disk.

    Nilsback and Zisserman 2008: 8,189 photos, 102 classes. Reading the label files needs SciPy.
    """

    COMMAND: ClassVar = "oxford102"

    output_dir: Path = Path("data/flowers102")
    """Folder for train/, valid/, test/ and cat_to_name.json; must be empty or missing."""
    source_dir: Path | None = None
    """Folder that holds 102flowers.tgz, imagelabels.mat and setid.mat. Default: download them."""
    download_dir: Path = Path("data/downloads")
    """Folder that keeps downloads for the next time."""
    split_file: Path | None = None
    """CSV with the header path,split. Default: the official split of 1,020 / 1,020 / 6,149 images."""


@dataclass(frozen=True)
class CheckConfig:
    """Check a data set before training: unreadable, duplicate, tiny or odd images, missing classes.

    Exit code 0: training can start. 1: it cannot, or some images are unreadable.
    """

    COMMAND: ClassVar = "check"

    data_dir: Annotated[Path, Flag("--data")]
    """Folder with train/ and valid/ (or val/) and, if you like, test/, each with one folder per class."""
    corrections: Annotated[Path | None, Flag(takes="a CSV of path,class")] = None
    """Corrected labels, as training takes them: CSV of path,class; the class - leaves an image out."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that fit one of these patterns, by name or by path below the data folder:
    --exclude '*_small.jpg' thumbs."""
    output: Path | None = None
    """JSON file of all findings. Default: none."""
    near: int = 6
    """Bits of 64 by which the fingerprints of near-duplicates may differ, 0 to 7."""
    tiny: int = 64
    """Report images whose short side has fewer pixels than this."""
    huge: int = 50_000_000
    """Report images with more pixels than this."""
    max_pixels: int = 100_000_000
    """Images of more pixels count as unreadable, as in training; some formats get half or a quarter of this."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Threads that read images. Default: the available CPUs."""

    def __post_init__(self) -> None:
        check_least(self, {"max_pixels": 1})


PrepareConfig = SampleConfig | Oxford102Config | CheckConfig
