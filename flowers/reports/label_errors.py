"""Labels that out-of-fold probabilities contradict: how many, which, and what the photos show instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowers.data.paths import readable

BLOCK = 8192
"""Photos computed at a time, so that memory is bounded whatever their number."""
TINY = 1e-6


class Suspicion(NamedTuple):
    """A label to check: the photo, its given and its suggested class, how suspicious from 0 to 1, and why."""

    index: int
    given: int
    suggested: int
    score: float
    why: str


@dataclass(frozen=True)
class LabelCheck:
    """What is said about the labels of the training images of a run.

    Attributes:
        judged: number of labels.
        estimated_wrong: how many of them are probably wrong.
        suspicions: the labels to check, the most suspicious first.
        left_out: why none was judged; None where they were.
    """

    judged: int = 0
    estimated_wrong: float = 0.0
    suspicions: Sequence[Suspicion] = ()
    left_out: str | None = None


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

    @property
    def estimated_wrong(self) -> np.ndarray:
        """[C] estimated number of wrong labels among those of each class."""
        return self.joint.sum(axis=1) - np.diag(self.joint)


def judge(probs: np.ndarray, targets: np.ndarray) -> Verdicts:
    """Count and find wrong labels.

    A class counts for a photo if its probability is at least the mean one of the photos that are labelled so: thus a
    class that the head is generally unsure of needs less. Photos are ranked by the probability of their given class,
    which no margin was better than (see tests/bench/README.md). The only photo of a class is not judged: a head
    that did not see it does not know the class.

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
    thresholds[given_counts < 2] = 2.0  # above any probability
    joint = np.zeros((num_classes, num_classes))
    for first in range(0, count, BLOCK):
        here = slice(first, first + BLOCK)
        block, given = np.array(probs[here]), targets[here]
        rows = np.arange(len(block))
        own[here] = block[rows, given]
        confident = np.where(block >= thresholds - TINY, block, -1.0)
        true = confident.argmax(axis=1)
        sure = (confident[rows, true] >= 0) & (given_counts[given] > 1)
        np.add.at(joint, (given[sure], true[sure]), 1)
        wrong[here] = sure & (true != given) & (block[rows, true] > own[here])
        block[rows, given] = -1.0
        best[here], other[here] = block.argmax(axis=1), block.max(axis=1)
        best[here] = np.where(wrong[here], true, best[here])
        other[here] = np.maximum(probs[here][rows, best[here]], 0)
    totals = joint.sum(axis=1, keepdims=True)
    joint = np.divide(joint, totals, out=np.zeros_like(joint), where=totals > 0) * given_counts[:, None]
    return Verdicts(own, best, other, 1 - own, joint, wrong)


def find_suspicions(verdicts: Verdicts, targets: np.ndarray, labels: Sequence[str]) -> list[Suspicion]:
    """The labels that are counted as wrong, the most suspicious first.

    Args:
        targets: [N] int64, the given classes.
        labels: names to show of the C classes.
    """
    found, names = [], [readable(label) for label in labels]
    wrong = np.flatnonzero(verdicts.wrong)
    for index in wrong[np.argsort(verdicts.own[wrong], kind="stable")].tolist():
        given, best = int(targets[index]), int(verdicts.best[index])
        why = f"like {names[best]} ({verdicts.other[index]:.0%}), not like {names[given]} ({verdicts.own[index]:.1%})"
        found.append(Suspicion(index, given, best, float(verdicts.score[index]), why))
    return found
