"""Out-of-fold probabilities of a linear head on cached features, and the labels that they contradict."""

from dataclasses import dataclass

import numpy as np
import torch

WEIGHT_DECAY = 0.003
STEPS = 60
BLOCK = 8192
"""Photos computed at a time, so that memory is bounded whatever their number."""
TINY = 1e-6


def assign_folds(targets: np.ndarray, groups: list[list[int]], folds: int, seed: int) -> np.ndarray:
    """Deal photos out to folds, class by class; photos of one group, which show the same, stay together.

    Args:
        targets: [N] int64 class indices.
        groups: indices of photos that belong together, each in one group at most.

    Returns:
        [N] int64, the fold of each photo.
    """
    leader = np.arange(len(targets))
    for group in groups:
        leader[group] = group[0]
    units = np.flatnonzero(leader == np.arange(len(targets)))
    rng = np.random.default_rng(seed)
    order = units[rng.permutation(len(units))]
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.zeros(len(targets), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold[leader]


def mean_and_spread(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over some photos, float32 [D] each, in one pass of blocks."""
    total, squares = 0.0, 0.0
    for first in range(0, len(rows), BLOCK):
        block = features[rows[first : first + BLOCK]].astype(np.float64)
        total, squares = total + block.sum(axis=0), squares + (block**2).sum(axis=0)
    mean = total / len(rows)
    spread = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0)) + TINY
    return mean.astype(np.float32), spread.astype(np.float32)


def held_out_probs(
    features: np.ndarray, targets: np.ndarray, held_out: np.ndarray, num_classes: int, device: torch.device | str
) -> np.ndarray:
    """Train a linear head on the photos that are not held out, and ask it about those that are.

    Full-batch L-BFGS on standardised features, which needs neither a learning rate nor a seed.

    Args:
        features: float32 [N, D]; read in blocks.
        targets: [N] int64.
        held_out: [N] bool.

    Returns:
        float32 [held out, num_classes].
    """
    rows = np.flatnonzero(~held_out)
    mean, spread = mean_and_spread(features, rows)

    def block_of(chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((features[chosen] - mean) / spread).to(device)

    cuts = [rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK)]
    kept = [block_of(cut) for cut in cuts] if len(cuts) <= 8 else None
    wanted = [torch.from_numpy(targets[cut]).to(device) for cut in cuts]
    weight = torch.zeros(features.shape[1], num_classes, device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = WEIGHT_DECAY / 2 * weight.square().sum()
        total.backward()
        for number, cut in enumerate(cuts):
            block = kept[number] if kept else block_of(cut)
            part = torch.nn.functional.cross_entropy(block @ weight + bias, wanted[number], reduction="sum") / len(rows)
            part.backward()
            total = total.detach() + part.detach()
        return total

    optimizer.step(loss)
    asked = np.flatnonzero(held_out)
    with torch.no_grad():
        return np.concatenate(
            [
                torch.softmax(block_of(asked[first : first + BLOCK]) @ weight + bias, dim=1).cpu().numpy()
                for first in range(0, len(asked), BLOCK)
            ]
            or [np.empty((0, num_classes), np.float32)]
        )


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
