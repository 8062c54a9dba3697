"""Flags of ``jobs/evaluate.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowers.config.values import check_least, check_sizes, given
from flowers.errors import UsageError
from flowers.flags import Flag, spelled

_OF_A_TABLE = {
    "labels": "belongs to --predictions; with --checkpoint, class folders are the labels",
    "against": "compares two files of predictions: give the other one as --predictions",
    "match_labels": "belongs to --predictions; leave it out",
}
"""Fields that have no effect without --predictions, and why."""
_OF_A_MODEL = {
    "max_images": "belongs to --checkpoint; with --predictions, all rows are scored",
    "class_names": "belongs to --checkpoint; with --predictions, the table holds the names",
    "corrections": "belongs to --checkpoint; with --predictions, give --labels",
    "calibrate": "changes a model: use it with --checkpoint C --data-dir D --split valid",
}
"""Fields that have no effect with --predictions, and why."""
_OF_IMAGES = ("split", "exclude", "on_bad_image", "batch_size", "max_pixels", "workers", "mixed_precision")
"""Fields that say something of reading and measuring images, which --predictions does not do."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained model on one split: loss, top1 and top5 over every image once.

    With --predictions it scores a file of predictions instead, without the model.
    """

    GROUPS: ClassVar = {
        "checkpoint": "a model on images",
        "predictions": "a predictions file",
        "output": "results",
        "batch_size": "machine",
    }
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("checkpoint", "data_dir")
    """Fields of paths that are looked for before anything is imported."""

    checkpoint: Annotated[Path | None, Flag(takes="a model folder or run folder")] = None
    """Model folder, or a run folder (its best model)."""
    data_dir: Annotated[Path | None, Flag("--data", takes="a folder or list of images")] = None
    """Image folder with the split below it, tar shards, or a list of images."""
    split: str | None = None
    """Split to measure; val and valid mean the same. Default: test; where the data has none, valid, as the run drew it
    if it did."""
    corrections: Annotated[Path | None, Flag(takes="a CSV of path,class")] = None
    """Corrected labels: CSV of path,class; the class - leaves an image out. Default: those that the run was trained
    with."""
    class_names: Annotated[Path | None, Flag(takes="a JSON file")] = None
    """JSON file that maps class folders to display names, for the page and the figures of each class. Default: the
    names in the model."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that fit one of these patterns, by name or by path below the data folder:
    --exclude '*_small.jpg' thumbs."""
    max_images: int | None = None
    """For a trial: measure at most this many images, in the proportions of the classes and at least one of each.
    Default: all."""
    on_bad_image: Literal["fail", "skip"] | None = None
    """Unreadable images: fail lists all of them and stops; skip leaves them out. Default: as the model was trained."""
    calibrate: bool = False
    """Fit a temperature on --split valid, and what tells unfamiliar photos, and store both in the model. Probabilities
    change, answers do not."""

    predictions: Path | None = None
    """Instead of a model: a file that jobs/predict.py wrote, or another CSV or .xlsx with path and class."""
    labels: Path | None = None
    """With --predictions: CSV or .xlsx with path,class. Default: the class of a file is the folder that it lies in."""
    match_labels: bool = False
    """With --predictions: take a label that is spelled almost like a class for that class: 1 for 01, Rose for rose."""
    against: Annotated[Path | None, Flag(takes="a predictions file")] = None
    """With --predictions: another file of predictions of the same images. Counts the rows whose class differs and lists
    the first ten; where true classes are known, an exact McNemar test says if one is better."""

    output: Path | None = None
    """JSON file of metrics. Default: metrics-SPLIT.json beside the model, with the name of the data before SPLIT where
    it is not what the model was trained on, and the number of --max-images after it; NAME-score.json beside
    predictions, NAME-against-OTHER.json with --against."""
    overwrite: bool = False
    """Replace figures of other data."""
    report: bool = True
    """Write an HTML page, report-SPLIT.html, beside the metrics."""

    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per process and batch."""
    max_pixels: int = 100_000_000
    """Images of more pixels count as unreadable; some formats get half or a quarter of this."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Loader processes per process. Default: the available CPUs."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Arithmetic of the whole network. Default: the engine and precision that the model was measured with in
    training."""

    def __post_init__(self) -> None:
        check_least(self, {"batch_size": 1, "max_pixels": 1, "max_images": 1, "workers": 0})
        check_sizes(self.batch_size, self.workers)
        for name, why in (_OF_A_TABLE if self.predictions is None else _OF_A_MODEL).items():
            if given(self, [name]):
                raise UsageError(f"{spelled(name)} {why}")
        if self.predictions is None:
            self._check_model()
        elif self.checkpoint is not None or self.data_dir is not None:
            raise UsageError("--predictions is scored without a model: leave --checkpoint and --data-dir out")
        elif of_images := given(self, _OF_IMAGES):
            raise UsageError(f"--predictions is scored without images, all rows of it: leave out {of_images}")

    def _check_model(self) -> None:
        for name in ("checkpoint", "data_dir"):
            if getattr(self, name) is None:
                raise UsageError(
                    f"{spelled(name)} is missing; expected --checkpoint C --data-dir D, or --predictions FILE"
                )
        if self.calibrate and self.split not in ("valid", "val"):
            got = f"got --split {self.split}" if self.split else "--split is missing"
            raise UsageError(f"--calibrate: {got}, expected valid: other splits stay unseen")
