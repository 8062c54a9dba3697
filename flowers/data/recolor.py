"""Augmentations of a view's pixels: colour, erasing, and the operations of TrivialAugment and RandAugment.

All work on uint8 [size, size, 3] and take all chance from the generator they are given.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from flowers.data.warp import Affine, compose, rotation

_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as in Pillow's convert("L")
_BINS = 30  # strengths: 0 to 30 thirtieths of the largest
_OPERATIONS = 14

Drawn = tuple[Affine | None, Callable[[np.ndarray], np.ndarray] | None]
"""A map of the view's points, a function of the view; None where nothing of the kind was drawn.

The operations that move pixels are maps to put inside the warp, so that they cost no resampling of their own and show
the picture, not fill, where the crop ends.
"""


class _Space(NamedTuple):
    """The largest strengths of the operations.

    Attributes:
        shear: pixels across for each pixel down, or the other way round.
        shift: share of the view's side.
        degrees: of a rotation.
        enhance: change of the factors of brightness, colour, contrast and sharpness, either way.
        bits: taken from each channel by posterize.
    """

    shear: float
    shift: float
    degrees: float
    enhance: float
    bits: int


_TRIVIAL = _Space(shear=0.99, shift=32 / 224, degrees=135, enhance=0.99, bits=6)
_RAND = _Space(shear=0.3, shift=150 / 331, degrees=30, enhance=0.9, bits=4)


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


def draw_trivial(size: int, rng: np.random.Generator) -> Drawn:
    """Draw one of TrivialAugment's fourteen operations (wide space) with its strength.

    Source: Müller and Hutter 2021, arXiv:2103.10158; operations and ranges as torchvision's TrivialAugmentWide.
    """
    number = int(rng.random() * _OPERATIONS)
    strength = int(rng.random() * (_BINS + 1)) / _BINS
    return _operation(number, strength, _sign(rng), size, _TRIVIAL)


def draw_rand(size: int, rng: np.random.Generator) -> Drawn:
    """Draw two of RandAugment's fourteen operations, of strength 9 of 30; the same one may come twice.

    Both moves are within the one warp, so they come before both changes of colour, in whatever order they are drawn.

    Source: Cubuk et al. 2019, arXiv:1909.13719; operations, ranges and defaults as torchvision's RandAugment.
    """
    drawn = [_operation(int(rng.random() * _OPERATIONS), 9 / _BINS, _sign(rng), size, _RAND) for _ in range(2)]
    moves = [move for move, _ in drawn if move is not None]
    recolorings = [recolor for _, recolor in drawn if recolor is not None]

    def recolor_all(view: np.ndarray) -> np.ndarray:
        for recolor in recolorings:
            view = recolor(view)
        return view

    return functools.reduce(compose, moves) if moves else None, recolor_all if recolorings else None


def _sign(rng: np.random.Generator) -> float:
    return -1.0 if rng.random() < 0.5 else 1.0


def _operation(number: int, strength: float, sign: float, size: int, space: _Space) -> Drawn:
    """One operation by its number; ``strength`` is a share of the largest, from 0 to 1."""
    shear, shift = sign * strength * space.shear, sign * strength * space.shift * size
    moves: dict[int, Affine] = {
        0: (1, shear, 0, 0, 1, 0),
        1: (1, 0, 0, shear, 1, 0),
        2: (1, 0, -shift, 0, 1, 0),
        3: (1, 0, 0, 0, 1, -shift),
        4: rotation(sign * math.radians(space.degrees * strength), size / 2, size / 2),
    }
    if number in moves:
        return moves[number], None
    factor = 1 + sign * strength * space.enhance
    recolorings: dict[int, Callable[[Image.Image], Image.Image]] = {
        5: lambda picture: ImageEnhance.Brightness(picture).enhance(factor),
        6: lambda picture: ImageEnhance.Color(picture).enhance(factor),
        7: lambda picture: ImageEnhance.Contrast(picture).enhance(factor),
        8: lambda picture: ImageEnhance.Sharpness(picture).enhance(factor),
        9: lambda picture: ImageOps.posterize(picture, 8 - round(space.bits * strength)),
        10: lambda picture: ImageOps.solarize(picture, 255 * (1 - strength)),
        11: ImageOps.autocontrast,
        12: ImageOps.equalize,
    }
    if number not in recolorings:
        return None, None
    return None, lambda view: np.array(recolorings[number](Image.fromarray(view)))
