"""Flags of ``jobs/evaluate.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from flowers.errors import UsageError
from flowers.flags import Flag


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained model on one split: loss, top1, top5, every image counted once.

    Or score a predictions file, without the model.
    """

    checkpoint: Path | None = None
    """Model bundle, or a run folder (its best model)."""
    data_dir: Annotated[Path | None, Flag("--data")] = None
    """Image-folder root with the split below it, or a list of images."""
    predictions: Path | None = None
    """Instead of the two above: a file that jobs/predict.py wrote, or any such CSV."""
    labels: Path | None = None
    """With --predictions: CSV with path,class; default: a file's class is the folder it lies in."""
    config: Path | None = None
    """YAML file of defaults for these flags."""

    split: str = "test"
    """Folder of the split; val and valid mean the same."""
    output: Path | None = None
    """JSON file of the metrics; default: metrics-SPLIT.json beside the model, NAME-score.json beside predictions."""
    report: bool = True
    """Also write a page to look at, report-SPLIT.html, beside the metrics."""
    calibrate: bool = False
    """Fit a temperature on --split valid and store it in the model: its probs change, its answers do not."""
    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per process and batch."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Loader processes per process; default: the CPUs it may use."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Default: what `accelerate launch` says, else no."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size: got {self.batch_size}, expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers: got {self.workers}, expected at least 0")
        if self.predictions is None:
            for flag, value in (("--checkpoint", self.checkpoint), ("--data-dir", self.data_dir)):
                if value is None:
                    raise UsageError(f"{flag} is missing; expected --checkpoint C --data-dir D, or --predictions FILE")
            if self.labels is not None:
                raise UsageError("--labels belongs to --predictions; with --checkpoint, class folders are the labels")
            if self.calibrate and self.split not in ("valid", "val"):
                raise UsageError(f"--calibrate: got --split {self.split}, expected valid: other splits stay unseen")
        elif self.calibrate:
            raise UsageError("--calibrate changes a model: use it with --checkpoint C --data-dir D --split valid")
        elif self.checkpoint is not None or self.data_dir is not None:
            raise UsageError("--predictions is scored without a model: leave --checkpoint and --data-dir out")
