"""Colour, erasing and TrivialAugment: against torchvision's own, with numbers typed by hand."""

import numpy as np
import pytest
import torch
from pictures import differences, photo
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import autoaugment

from flowers.data.recolor import draw_trivial, erase, jitter
from flowers.data.warp import warp


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
    names = "ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize"
    name = [*names.split(), "AutoContrast", "Equalize", "Identity"][operation]
    magnitudes, signed = autoaugment.TrivialAugmentWide()._augmentation_space(31)[name]
    strength_bin = int(strength * 31)
    magnitude = round(float(magnitudes[strength_bin]), 3) if magnitudes.ndim else 0.0
    magnitude *= -1 if signed and sign < 0.5 else 1

    view = photo(224, 224)
    move, recolor = draw_trivial(224, Typed((operation + 0.5) / 14, strength, sign))
    got = view if move is None else warp(view, move, 224, "bilinear", 114)
    got = got if recolor is None else recolor(got)
    mode = tv.InterpolationMode.BILINEAR
    expected = autoaugment._apply_op(Image.fromarray(view), name, magnitude, mode, [114.0] * 3)
    if move is None:
        assert differences(got, np.asarray(expected)).max() <= 1
    else:  # pixels at the edge of the fill differ
        assert np.median(differences(got, np.asarray(expected))) <= 2
        assert differences(got, np.asarray(expected)).mean() < 4
