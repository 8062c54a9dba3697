"""Out-of-fold probabilities of a linear head on cached features, and the labels that they contradict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowers.training.linear_head import HeadProblem, fit_linear_head, folds

WEIGHT_DECAY = 0.001
BLOCK = 8192
"""Photos computed at a time, so that memory is bounded whatever their number."""
TINY = 1e-6


def assign_folds(targets: np.ndarray, groups: list[list[int]], count: int, seed: int) -> np.ndarray:
    """Deal photos out to folds, class by class; photos of one group, which show the same, stay together.

    Args:
        targets: [N] int64 class indices.
        groups: indices of photos that belong together, each in one group at most.

    Returns:
        [N] int64, the fold of each photo.
    """
    leaders = np.arange(len(targets))
    for group in groups:
        leaders[group] = group[0]
    return folds(targets, count, seed, leaders)


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
    features: FeatureRows, targets: np.ndarray, held_out: np.ndarray, num_classes: int, device: torch.device | str
) -> np.ndarray:
    """Fit the linear head of training to the photos that are not held out, and ask it about those that are.

    Args:
        features: float32 [N, D]; read in blocks.
        targets: [N] int64.
        held_out: [N] bool.

    Returns:
        float32 [held out, num_classes].
    """

    def problem(rows: np.ndarray) -> HeadProblem:
        several = len(features.widths) > 1
        return HeadProblem(features.only(rows), targets[rows], num_classes, features.widths, unit_blocks=several)

    head = fit_linear_head(problem(~held_out), weight_decay=WEIGHT_DECAY, device=device)
    asked, probs = problem(held_out), np.empty((int(held_out.sum()), num_classes), np.float32)
    for first in range(0, len(probs), BLOCK):
        here = slice(first, first + BLOCK)
        probs[here] = torch.softmax(head.logits(asked.seen(here)), dim=1).numpy()
    return probs


@dataclass(frozen=True)
class Verdicts:
    """The verdict of out-of-fold probabilities on N labels of C classes.

    Attributes:
        own: [N] probability of the given class.
        best: [N] index of the best other class.
        other: [N] its probability.
        score: [N] from 0 to 1, how suspicious the label is.
        joint: [C, C] confident joint: estimated number of photos of given class i whose true class is j.
        wrong: [N] bool, the label is counted as wrong there.
    """

    own: np.ndarray
    best: np.ndarray
    other: np.ndarray
    score: np.ndarray
    joint: np.ndarray
    wrong: np.ndarray


def judge(probs: np.ndarray, targets: np.ndarray) -> Verdicts:
    """Count and find wrong labels.

    A class counts for a photo if its probability is at least the mean one of the photos that are labelled so: thus a
    class that the head is generally unsure of needs less. Photos are ranked by the probability of their given class,
    which no margin was better than (see tests/bench/README.md).

    Args:
        probs: float32 [N, C], out of fold.
        targets: [N] int64, the given classes.

    Source: confident learning, Northcutt et al. 2021, arXiv:1911.00068.
    """
    count, num_classes = probs.shape
    own, best = np.empty(count, np.float32), np.empty(count, np.int64)
    other, wrong = np.empty(count, np.float32), np.zeros(count, bool)
    sums = np.zeros(num_classes)
    for first in range(0, count, BLOCK):
        block, given = probs[first : first + BLOCK], targets[first : first + BLOCK]
        np.add.at(sums, given, block[np.arange(len(block)), given])
    given_counts = np.bincount(targets, minlength=num_classes)
    thresholds = (sums / np.maximum(given_counts, 1)).astype(np.float32)
    thresholds[given_counts == 0] = 2.0  # above any probability
    joint = np.zeros((num_classes, num_classes))
    for first in range(0, count, BLOCK):
        here = slice(first, first + BLOCK)
        block, given = np.array(probs[here]), targets[here]
        rows = np.arange(len(block))
        own[here] = block[rows, given]
        confident = np.where(block >= thresholds - TINY, block, -1.0)
        true = confident.argmax(axis=1)
        sure = confident[rows, true] >= 0
        np.add.at(joint, (given[sure], true[sure]), 1)
        wrong[here] = sure & (true != given) & (block[rows, true] > own[here])
        block[rows, given] = -1.0
        best[here], other[here] = block.argmax(axis=1), block.max(axis=1)
        best[here] = np.where(wrong[here], true, best[here])
        other[here] = np.maximum(probs[here][rows, best[here]], 0)
    totals = joint.sum(axis=1, keepdims=True)
    joint = np.divide(joint, totals, out=np.zeros_like(joint), where=totals > 0) * given_counts[:, None]
    return Verdicts(own, best, other, 1 - own, joint, wrong)
