"""Augmentations of a view's pixels after the warp: colour, erasing, and TrivialAugment's operations.

All work on uint8 [size, size, 3] and take all chance from the generator they are given.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from flowers.data.warp import Affine, rotation

_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as in Pillow's convert("L")
_BINS = 30  # TrivialAugment's strengths: 0 to 30 thirtieths of the largest


def jitter(view: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength.

    The three are linear in the pixels, so they are one matrix; values are cut to 0..255 once, at the end.
    """
    brightness, contrast, saturation = (1 + strength * (2 * rng.random() - 1) for _ in range(3))
    planes = torch.from_numpy(view).permute(2, 0, 1).float().reshape(3, -1)
    mean_grey = brightness * (_GREY @ planes.mean(dim=1))
    mix = saturation * torch.eye(3) + (1 - saturation) * _GREY.expand(3, 3)
    # The half makes the conversion to uint8, which cuts off, a rounding.
    planes = ((1 - contrast) * mean_grey + 0.5).expand(3, 1).addmm(brightness * contrast * mix, planes)
    planes = planes.clamp_(0, 255).to(torch.uint8).view(3, *view.shape[:2])
    return np.stack(list(planes.numpy()), axis=-1)


def erase(view: np.ndarray, fill: int, rng: np.random.Generator) -> np.ndarray:
    """Blank a rectangle of 2 to 33% of the view, 0.3 to 3.3 times as high as wide; sometimes none fits in ten tries.

    Source: Zhong et al. 2017, arXiv:1708.04896, with torchvision's ranges.
    """
    size = view.shape[0]
    low, high = math.log(0.3), math.log(3.3)
    for _ in range(10):
        area = size * size * (0.02 + 0.31 * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < size and width < size:
            top, left = int(rng.random() * (size - height + 1)), int(rng.random() * (size - width + 1))
            view[top : top + height, left : left + width] = fill
            break
    return view


def draw_trivial(
    size: int, rng: np.random.Generator
) -> tuple[Affine | None, Callable[[np.ndarray], np.ndarray] | None]:
    """Draw one of TrivialAugment's fourteen operations (wide space) with its strength.

    Those that move pixels come back as a map to put inside the warp, so that they cost no resampling of their
    own and show the picture, not fill, where the crop ends; the others as a function of the view. Translations are in
    proportion to the view: 32 pixels of 224.

    Returns:
        (map of the view's points or None, function of the view or None)

    Source: Müller and Hutter 2021, arXiv:2103.10158; operations and ranges as torchvision's TrivialAugmentWide.
    """
    operation = int(rng.random() * 14)
    strength = int(rng.random() * (_BINS + 1)) / _BINS
    sign = -1.0 if rng.random() < 0.5 else 1.0
    moves: dict[int, Affine] = {
        0: (1, sign * 0.99 * strength, 0, 0, 1, 0),
        1: (1, 0, 0, sign * 0.99 * strength, 1, 0),
        2: (1, 0, -sign * strength * size / 7, 0, 1, 0),
        3: (1, 0, 0, 0, 1, -sign * strength * size / 7),
        4: rotation(sign * math.radians(135 * strength), size / 2, size / 2),
    }
    if operation in moves:
        return moves[operation], None
    factor = 1 + sign * 0.99 * strength
    recolorings: dict[int, Callable[[Image.Image], Image.Image]] = {
        5: lambda picture: ImageEnhance.Brightness(picture).enhance(factor),
        6: lambda picture: ImageEnhance.Color(picture).enhance(factor),
        7: lambda picture: ImageEnhance.Contrast(picture).enhance(factor),
        8: lambda picture: ImageEnhance.Sharpness(picture).enhance(factor),
        9: lambda picture: ImageOps.posterize(picture, 8 - round(6 * strength)),
        10: lambda picture: ImageOps.solarize(picture, 255 * (1 - strength)),
        11: ImageOps.autocontrast,
        12: ImageOps.equalize,
    }
    if operation not in recolorings:
        return None, None
    return None, lambda view: np.array(recolorings[operation](Image.fromarray(view)))
