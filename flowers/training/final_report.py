"""The report of the best model that a training ends with, and what the report of an evaluation shares with it."""

import contextlib
import functools
from collections.abc import Iterator, Mapping

import numpy as np
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
from flowers.reports.label_errors import LabelCheck, find_suspicions, judge
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.photos import training_views
from flowers.training.features import FeatureBatches
from flowers.training.flags import FIT_DEFAULTS
from flowers.training.head_search import folds_of
from flowers.training.linear_head import fit_linear_head, out_of_fold
from flowers.training.stage import Stage

MAX_LOGITS = 250_000_000
"""A larger table of logits (1 GB) is not gathered for a report."""
MOST_JUDGED = 2_500_000_000
"""Images times features times classes whose labels are judged, in about a minute on two cores."""
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


def check_labels(stage: Stage, batches: FeatureBatches) -> LabelCheck:
    """Judge the labels of the training images, where it takes about as long as fitting the head did.

    Args:
        batches: of the stage.
    """
    if not stage.config.fits_at_once:
        return LabelCheck(left_out="only runs that fit a linear head at once do that")
    problem, parts = batches.problem(), folds_of(stage)
    count, num_classes = len(parts), problem.num_classes
    if count * problem.features.shape[1] * num_classes > MOST_JUDGED:
        return LabelCheck(left_out=f"{count:,} images of {num_classes:,} classes are too many")
    if np.all(parts == parts[0]):
        return LabelCheck(left_out="no class has two images")
    plain = slice(None, None, problem.views)
    targets, probs = problem.targets[plain], np.empty((count, num_classes), np.float32)
    problem = problem._replace(features=problem.features[plain], targets=targets, weights=None, views=1)
    fit = functools.partial(fit_linear_head, weight_decay=FIT_DEFAULTS["weight_decay"], device=stage.accelerator.device)
    with console.progress("checking labels", len(np.unique(parts)), "folds") as meter:
        for left, logits in out_of_fold(problem, parts, fit):
            probs[left] = torch.softmax(torch.from_numpy(logits), dim=1)
            meter.advance(1)
            if reason := stage.stop.reason():
                return LabelCheck(left_out=f"the run was asked to stop ({reason})")
    verdicts = judge(probs, targets)
    suspicions = find_suspicions(verdicts, targets, stage.data.classes.labels)
    return LabelCheck(count, float(verdicts.estimated_wrong.sum()), suspicions)


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
