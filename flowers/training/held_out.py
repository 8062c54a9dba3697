"""Out-of-fold probabilities of a linear head on cached features, by which labels are judged."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flowers import console
from flowers.errors import DataError
from flowers.reports.label_errors import BLOCK, LabelCheck, find_suspicions, judge
from flowers.training.features import FeatureBatches
from flowers.training.flags import FIT_DEFAULTS
from flowers.training.head_search import folds_of
from flowers.training.linear_head import HeadProblem, fit_linear_head, folds
from flowers.training.stage import Stage

MOST_JUDGED = 2_500_000_000
"""Images times features times classes that are judged at the end of a training, in about a minute on two cores."""


def assign_folds(targets: np.ndarray, groups: list[list[int]], count: int, seed: int) -> np.ndarray:
    """Deal photos out to folds, class by class; photos of one group, which show the same, stay together.

    Args:
        targets: [N] int64 class indices.
        groups: indices of photos that belong together, each in one group at most.

    Returns:
        [N] int64, the fold of each photo.

    Raises:
        DataError: they all belong together.
    """
    leaders = np.arange(len(targets))
    for group in groups:
        leaders[group] = group[0]
    found = folds(targets, count, seed, leaders)
    if np.all(found == found[0]):
        raise DataError(
            f"all {len(found)} photos belong together, by --group or as near-duplicates: no others can judge them"
        )
    return found


class FeatureRows:
    """Some rows of several memory-mapped arrays, as if of one: float32 [N, D].

    Attributes:
        widths: of the blocks that the features consist of, see ``HeadProblem``.
    """

    def __init__(self, parts: Sequence[np.ndarray], kept: np.ndarray, widths: Sequence[int]):
        self._parts, self._kept = parts, kept
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape, self.widths = (len(kept), parts[0].shape[1]), widths

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Numbers in all rows."""
        return self.shape[0] * self.shape[1]

    def only(self, rows: np.ndarray) -> "FeatureRows":
        """The same without the other rows; nothing is read."""
        return FeatureRows(self._parts, self._kept[rows], self.widths)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        wanted = self._kept[rows]
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        for part, start in zip(self._parts, self._starts, strict=False):
            here = (wanted >= start) & (wanted < start + len(part))
            found[here] = part[wanted[here] - start]
        return found


def held_out_probs(
    features: FeatureRows,
    targets: np.ndarray,
    held_out: np.ndarray,
    num_classes: int,
    device: torch.device | str,
    check_stop: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Fit the linear head of training to the photos that are not held out, and ask it about those that are.

    Args:
        features: float32 [N, D]; read in blocks.
        targets: [N] int64.
        held_out: [N] bool.
        check_stop: called again and again while the head is fitted; what it raises ends the fit.

    Returns:
        float32 [held out, num_classes].
    """

    def problem(rows: np.ndarray) -> HeadProblem:
        several = len(features.widths) > 1
        return HeadProblem(features.only(rows), targets[rows], num_classes, features.widths, unit_blocks=several)

    weight_decay = FIT_DEFAULTS["weight_decay"]
    head = fit_linear_head(problem(~held_out), weight_decay=weight_decay, device=device, check_stop=check_stop)
    asked, probs = problem(held_out), np.empty((int(held_out.sum()), num_classes), np.float32)
    for first in range(0, len(probs), BLOCK):
        here = slice(first, first + BLOCK)
        probs[here] = torch.softmax(head.logits(asked.seen(here)), dim=1).numpy()
    return probs


def check_labels(stage: Stage, batches: FeatureBatches) -> LabelCheck:
    """Judge the labels of the training images, where it takes about as long as fitting the head did.

    Args:
        batches: of the stage.
    """
    if not stage.config.fits_at_once:
        return LabelCheck(left_out="only runs that fit a linear head at once do that")
    problem, parts = batches.problem(stage), folds_of(stage)
    count, width, num_classes = len(parts), problem.features.shape[1], problem.num_classes
    if count * width * num_classes > MOST_JUDGED:
        return LabelCheck(left_out=f"{count:,} images of {num_classes:,} classes are too many")
    plain = FeatureRows([problem.features], np.arange(count) * problem.views, problem.widths)
    targets, probs = problem.targets[:: problem.views], np.empty((count, num_classes), np.float32)
    numbers = np.unique(parts)
    if len(numbers) < 2:
        return LabelCheck(left_out="no class has two images")
    with console.progress("checking labels", len(numbers), "folds") as meter:
        for part in numbers:
            if reason := stage.stop.reason():
                return LabelCheck(left_out=f"the run was asked to stop ({reason})")
            held_out = parts == part
            probs[held_out] = held_out_probs(plain, targets, held_out, num_classes, stage.accelerator.device)
            meter.advance(1)
    verdicts = judge(probs, targets)
    suspicions = find_suspicions(verdicts, targets, stage.data.classes.labels)
    return LabelCheck(count, float(verdicts.estimated_wrong.sum()), suspicions)
