"""Which photos are judged by a head that was fitted to which others, and what it says about them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flowers.errors import DataError
from flowers.reports.label_errors import BLOCK
from flowers.training.flags import FIT_DEFAULTS
from flowers.training.linear_head import HeadProblem, fit_linear_head, folds


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
