"""The training loss, mixup and CutMix of a batch, and losses and weights that are not finite.

Those are detected before anything is saved, and reported with the step and images. A loss only shows the weights before
its own step. So the weights are checked too before they are evaluated or saved: the last update may have broken them
though every loss so far was finite.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers.training.checkpoint import list_checkpoints

ADVICE = "try a lower --lr, --max-grad-norm 1, or --mixed-precision no, with another --output-dir"


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Weighted sum of cross-entropies.

    A sum, not a mean: the caller divides by the images of the whole step, so that every image weighs the same in
    micro-steps, on all ranks and in a short last step.

    Args:
        logits: [B, num_classes].
        targets: [B] int64 class indices, or [B, num_classes] float probabilities after mixing.
        weights: [B] float, 0 for images that only pad the batch.
    """
    return (F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing) * weights).sum()


def mix(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    key: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Blend every image with the one at the mirrored batch position: mixup, CutMix, or one of them at random.

    Args:
        images: [B, 3, H, W] float.
        targets: [B] int64.
        key: seeds the random draw; the same key gives the same blend.

    Returns:
        images [B, 3, H, W] and targets [B, num_classes] as probabilities.

    Source: mixup, Zhang et al. 2018, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899.
    """
    rng = np.random.default_rng(key)
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha <= 0 or rng.random() < 0.5)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    keep = float(rng.beta(alpha, alpha))
    if use_cutmix:
        height, width = images.shape[-2:]
        cut_h, cut_w = round(height * math.sqrt(1 - keep)), round(width * math.sqrt(1 - keep))
        top, left = int(rng.integers(0, height - cut_h + 1)), int(rng.integers(0, width - cut_w + 1))
        box = (..., slice(top, top + cut_h), slice(left, left + cut_w))
        mixed = images.clone()
        mixed[box] = images.flip(0)[box]
        keep = 1 - cut_h * cut_w / (height * width)
    else:
        mixed = images.lerp(images.flip(0), 1 - keep)
    one_hot = F.one_hot(targets, num_classes).to(images.dtype)
    return mixed, one_hot.lerp(one_hot.flip(0), 1 - keep)


class MicroStep(NamedTuple):
    """A micro-batch whose loss still lies on the device.

    Attributes:
        step: its update, from 0.
        sums: [3] loss, hits and images of this rank.
        indices: [B] of its images in the training set.
    """

    step: int
    sums: Tensor
    indices: Tensor


class Breakdown(NamedTuple):
    """The first loss or update of a rank that is not finite; ``step`` is infinite where all are."""

    step: float = math.inf
    what: str = ""
    images: Sequence[Tensor] = ()


def find_breakdown(
    micro_steps: Sequence[MicroStep], losses: Sequence[float], network: nn.Module | None, last_step: int
) -> Breakdown:
    """Look for the first loss that is not finite, then at the weights.

    Args:
        losses: of the micro-steps.
        network: whose weights to check; None checks losses only.
        last_step: the last update, from 0.
    """
    for micro_step, loss in zip(micro_steps, losses, strict=True):
        if not math.isfinite(loss):
            what = f"the loss is not finite at step {micro_step.step + 1}"
            return Breakdown(micro_step.step, what, [micro_step.indices])
    if network is None or weights_are_finite(network):
        return Breakdown()
    images = [micro_step.indices for micro_step in micro_steps if micro_step.step == last_step]
    return Breakdown(last_step + 0.5, f"the weights are not finite after step {last_step + 1}", images)


def weights_are_finite(network: nn.Module) -> bool:
    """True if every parameter and buffer of this rank is finite."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point() and t.numel()], math.inf)
    return bool(torch.stack(largest).isfinite().all())


def last_good(run_dir: Path) -> str:
    """Name the newest checkpoint, for an error message: every saved one is sound."""
    found = list_checkpoints(run_dir)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was saved yet"
