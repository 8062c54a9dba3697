"""Flags of ``jobs/audit.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowers.config.values import check_least, given, read_values
from flowers.errors import UsageError
from flowers.flags import Flag


@dataclass(frozen=True)
class AuditConfig:
    """Find labels that are probably wrong, and write a page to fix them on. Photos are never changed.

    Each photo of train, valid and test is judged by a head that was trained on the others. Open audit.html of the
    output folder, save corrections.csv from it, and train with --corrections corrections.csv.
    """

    GROUPS: ClassVar = {"data_dir": "data and results", "model": "model", "batch_size": "machine"}
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("data_dir", "checkpoint")
    """Fields of paths that are looked for before anything is imported."""

    data_dir: Annotated[Path, Flag("--data", takes="a folder or list of images")]
    """Folder with train/ and, if you like, valid/ and test/, each with one folder per class; or photos directly in
    class folders; or tar shards of either, such as WebDataset's; or a list (.csv or .txt)."""
    output_dir: Path
    """Folder for labels.csv, audit.json, audit.html and the cached features."""
    corrections: Annotated[Path | None, Flag(takes="a CSV of path,class")] = None
    """Labels that were corrected already: CSV of path,class; the class - leaves an image out."""
    class_names: Path | None = None
    """JSON file that maps class folders to display names. Default: cat_to_name.json in the data folder, if it
    exists."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that fit one of these patterns, by name or by path below the data folder:
    --exclude '*_small.jpg' thumbs."""
    group: tuple[str, ...] = ()
    """Images that belong together (a plant, a camera, a burst): none is judged by a head that was trained on others of
    its group. Given as in jobs/train.py: regular expressions, tables (.csv) or the findings of prepare.py check
    (.json)."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: fail lists all of them and stops; skip leaves them out."""
    photos: int = 300
    """Largest number of photos on the page; labels.csv has all that are suspicious."""

    model: Annotated[str, Flag("--arch")] = "efficientnet_lite0+2"
    """Frozen network whose features are used, as in jobs/train.py."""
    weights: str = "default"
    """Its weights, as in jobs/train.py."""
    image_size: int | None = None
    """Side of the square image, in pixels. Default: the size that the model was pre-trained with."""
    checkpoint: Annotated[Path | None, Flag(takes="a model folder or run folder")] = None
    """Model or run whose network is used instead; features that the run has cached are taken from there."""
    folds: int = 5
    """Parts into which the photos are cut; each is judged by a head that was trained on the others."""
    seed: int = 0
    """Seed of these parts."""

    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per process and batch."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Loader processes per process. Default: the available CPUs."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Arithmetic of the network. Default: the fastest on this machine."""
    max_hours: float | None = None
    """Stop with exit code 75 after this many hours; the same command resumes. Default: no limit."""

    def __post_init__(self) -> None:
        read_values(self)
        check_least(self, {"folds": 2, "photos": 1})
        if self.checkpoint is not None and (network := given(self, ("model", "weights", "image_size"))):
            raise UsageError(f"{network}: the network is that of --checkpoint; leave it out")


@dataclass(frozen=True)
class ApplyConfig:
    """Move photos to the folders of their corrected classes, or copy the corrected data set; a move can be undone."""

    COMMAND: ClassVar = "apply"
    """First word of the command line."""
    GROUPS: ClassVar = {"data_dir": "data", "move": "what to do"}
    """First field of each group of flags in --help, and its title."""

    data_dir: Annotated[Path, Flag("--data", takes="a folder of images")]
    """Folder of class folders, with or without train/, valid/ and test/."""
    corrections: Annotated[Path | None, Flag(takes="a CSV of path,class")] = None
    """Corrected labels: CSV of path,class; the class - leaves an image out."""

    move: bool = False
    """Move the photos; those left out go to .removed in the data folder, which no job reads."""
    copy_to: Path | None = None
    """Copy all photos, with corrected classes and without those left out, to this new folder instead."""
    undo: bool = False
    """Move back what the last --move has moved."""

    def __post_init__(self) -> None:
        read_values(self)
        if (self.move, self.copy_to is not None, self.undo).count(True) != 1:
            raise UsageError("expected one of --move, --copy-to DIR and --undo")
        if self.corrections is None and not self.undo:
            raise UsageError("--corrections is missing, expected a CSV of path,class")
