"""The training loss, and mixup and CutMix of a batch."""

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor


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
