"""The report of the best model that a training ends with, and what the report of an evaluation shares with it."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator

from flowers import console
from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples
from flowers.datasets.check import check_splits
from flowers.datasets.check_report import findings
from flowers.distributed import precision_of
from flowers.errors import FlowersError
from flowers.models.bundle import Bundle
from flowers.reports.answers import Answers
from flowers.reports.label_errors import LabelCheck
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.photos import training_views
from flowers.training.stage import Stage

MAX_LOGITS = 250_000_000
"""A larger table of logits (1 GB) is not gathered for a report."""
MAX_CHECKED = 10_000
"""For more images the report leaves the data check to ``prepare.py check``; these take about 15 s."""


def write_training_report(
    stage: Stage,
    best: Bundle,
    results: Mapping[str, Mapping[str, float]],
    shown: Answers,
    valid: Answers,
    labels: LabelCheck,
) -> None:
    """Write ``report.html`` of the best model into the run folder.

    Args:
        results: figures by split, as in metrics.json.
        shown: what the details are about.
        valid: answers on the validation split.
        labels: of the training images.
    """
    config, data = stage.config, stage.data
    drawn = range(1, config.views) if config.uses_features else range(config.epochs)  # cached view 0 is plain
    views = training_views(data.train, stage.augmentation, config.seed, drawn) if drawn else ()
    facts = [("device", device_name(stage.accelerator))]
    found = data_findings(data.classes, data.splits)
    background = Background(
        results, stage.run_dir, data.splits, found, views, facts, config.data_dir, data.left_out, labels
    )  # fmt: skip
    write_model_report(stage.run_dir / "report.html", best, shown, background, valid)


def can_gather(images: int, classes: int) -> bool:
    """Return True if the logits of a split may be gathered in one table."""
    return images * classes <= MAX_LOGITS


def can_report(images: int, classes: int) -> bool:
    """Return False, and say why, if the table of logits would be too large for a report."""
    if can_gather(images, classes):
        return True
    console.warn(f"no report: {images:,} images of {classes:,} classes are too many for one page")
    return False


def device_name(accelerator: Accelerator) -> str:
    """Number of processes, device and precision."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{accelerator.num_processes} x {name}, precision {precision_of(accelerator)}"


def data_findings(classes: ClassIndex, splits: Mapping[str, Samples]) -> list[list[object]] | None:
    """The findings of the data check; None if it would take too long at the end of another job."""
    if sum(map(len, splits.values())) > MAX_CHECKED:
        return None
    return findings(check_splits(classes, splits))


@contextlib.contextmanager
def or_warn() -> Iterator[None]:
    """Turn any error inside the block into a one-line warning: a failed report must not fail the run."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, FlowersError) else f"{type(error).__name__}: {error}"
        console.warn(f"no report: {' '.join(reason.split())}")
