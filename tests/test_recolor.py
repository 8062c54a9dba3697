"""Colour, erasing, TrivialAugment and RandAugment: against torchvision's own, with numbers typed by hand."""

import math

import numpy as np
import pytest
import torch
from pictures import differences, photo
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import autoaugment

from flowers.data.recolor import Drawn, draw_rand, draw_trivial, erase, jitter
from flowers.data.warp import compose, rotation, warp

NAMES = "ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize"
OPERATIONS = [*NAMES.split(), "AutoContrast", "Equalize", "Identity"]


class Typed:
    """A generator whose numbers are typed by hand."""

    def __init__(self, *numbers: float):
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


def test_jitter_equals_its_three_steps():
    view = (photo(40, 40) // 2 + 50).astype(np.uint8)  # far enough from 0 and 255 that nothing is cut
    got = jitter(view, 0.2, Typed(0.9, 0.2, 0.1))
    image = tv.functional.adjust_brightness(torch.from_numpy(view).permute(2, 0, 1) / 255, 1 + 0.2 * 0.8)
    image = tv.functional.adjust_contrast(image, 1 - 0.2 * 0.6)
    image = tv.functional.adjust_saturation(image, 1 - 0.2 * 0.8)
    expected = (image * 255).round().byte().permute(1, 2, 0).numpy()
    assert differences(got, expected).max() <= 1


def test_jitter_cuts_off_at_black_and_white():
    view = np.array([[[0, 128, 255]]], np.uint8).repeat(4, axis=0)
    for seed in range(20):
        got = jitter(view, 1.0, np.random.default_rng(seed))
        assert got.shape == view.shape
        assert got.dtype == np.uint8
    assert jitter(view, 1.0, Typed(1.0, 0.5, 0.5)).tolist() == [[[0, 255, 255]]] * 4


def test_erased_rectangles():
    shares = []
    for seed in range(300):
        view = erase(np.zeros((100, 100, 3), np.uint8), 9, np.random.default_rng(seed))
        rows, columns = np.nonzero(view[..., 0])
        assert np.all(view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 9)
        shares.append((view[..., 0] == 9).mean())
    assert 0.018 < min(shares) < 0.04
    assert 0.29 < max(shares) < 0.35


@pytest.mark.parametrize("strength", [0.01, 0.49, 0.99])
@pytest.mark.parametrize("sign", [0.2, 0.8])
@pytest.mark.parametrize("operation", range(14))
def test_trivial_augment_equals_torchvision(operation, sign, strength):
    name = OPERATIONS[operation]
    magnitudes, signed = autoaugment.TrivialAugmentWide()._augmentation_space(31)[name]
    strength_bin = int(strength * 31)
    magnitude = round(float(magnitudes[strength_bin]), 3) if magnitudes.ndim else 0.0
    magnitude *= -1 if signed and sign < 0.5 else 1

    view = photo(224, 224)
    drawn = draw_trivial(224, Typed((operation + 0.5) / 14, strength, sign))
    assert_like_torchvision(view, drawn, [(name, magnitude)])


@pytest.mark.parametrize("sign", [0.2, 0.8])
@pytest.mark.parametrize("operation", range(14))
def test_rand_augment_equals_torchvision(operation, sign):
    """Two operations in turn; the other one is of colour, which moves no pixel."""
    magnitudes = autoaugment.RandAugment()._augmentation_space(31, (224, 224))

    def magnitude(name: str, sign: float) -> float:
        values, signed = magnitudes[name]
        return (float(values[9]) if values.ndim else 0.0) * (-1 if signed and sign < 0.5 else 1)

    view, other = photo(224, 224), "Brightness"
    number = (OPERATIONS.index(other) + 0.5) / 14
    drawn = draw_rand(224, Typed((operation + 0.5) / 14, sign, number, 0.1))
    name = OPERATIONS[operation]
    assert_like_torchvision(view, drawn, [(name, magnitude(name, sign)), (other, magnitude(other, 0.1))])


def test_two_moves_of_rand_augment_follow_one_another():
    move, recolor = draw_rand(224, Typed(2.5 / 14, 0.8, 4.5 / 14, 0.8))  # shift, then turn
    assert recolor is None
    turned = compose((1, 0, -0.3 * 150 / 331 * 224, 0, 1, 0), rotation(math.radians(9), 112, 112))
    assert move == pytest.approx(turned)


def assert_like_torchvision(view: np.ndarray, drawn: Drawn, operations: list[tuple[str, float]]) -> None:
    """Compare a view after what was drawn with torchvision's operations, by name and magnitude."""
    move, recolor = drawn
    got = view if move is None else warp(view, move, 224, "bilinear", 114)
    got = got if recolor is None else recolor(got)
    expected = Image.fromarray(view)
    for name, magnitude in operations:
        mode = tv.InterpolationMode.BILINEAR
        expected = autoaugment._apply_op(expected, name, magnitude, mode, [114.0] * 3)
    if move is None:
        assert differences(got, np.asarray(expected)).max() <= 1
    else:  # pixels at the edge of the fill differ
        assert np.median(differences(got, np.asarray(expected))) <= 2
        assert differences(got, np.asarray(expected)).mean() < 4
