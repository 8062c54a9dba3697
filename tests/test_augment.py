"""Views: against torchvision's and Pillow's own steps, on pictures from one pixel to strips, and by distribution."""

import math
import pickle

import numpy as np
import pytest
import torch
from pictures import differences, photo
from PIL import Image

from flowers.data.augment import Augmentation, Geometry
from flowers.data.warp import compose, rotation, warp
from flowers.errors import UsageError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
STRIPS = [(1, 1), (1, 5000), (5000, 1), (2, 3), (40, 7), (223, 225)]


def four_steps(image: np.ndarray, geometry: Geometry, size: int, interpolation: str, fill: int) -> np.ndarray:
    """What one warp stands for, by Pillow, step by step."""
    angle, flip, left, top, width, height, _ = geometry
    resampling = RESAMPLING[interpolation]
    picture = Image.fromarray(image).rotate(angle, resampling, fillcolor=(fill,) * 3)
    picture = picture.resize((size, size), resampling, box=(left, top, left + width, top + height))
    return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture)


class TestOneWarp:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("shape", [(500, 667), (1000, 700), (300, 300)])
    def test_it_equals_the_four_steps(self, shape, interpolation):
        """Tolerance: 2 of 255 on average and 10 for 99 of 100 values; 1.1 and 6 are usual."""
        image = photo(*shape)
        augmentation = Augmentation(128, interpolation=interpolation, fill=100)
        for seed in range(6):
            geometry = augmentation.draw(shape[1], shape[0], np.random.default_rng(seed))
            view = augmentation.view(image, np.random.default_rng(seed))
            expected = four_steps(image, geometry, 128, interpolation, 100)
            difference = differences(view, expected)
            assert difference.mean() < 2, (seed, geometry)
            assert np.percentile(difference, 99) < 10, (seed, geometry)

    @pytest.mark.parametrize("angle", [0, 25, 90])
    @pytest.mark.parametrize("flip", [False, True])
    def test_it_shows_the_same_place(self, angle, flip):
        """A pattern that has neither symmetry nor repetition, at no change of scale: half a pixel off would show."""
        image = photo(96, 96, seed=3)
        geometry = Geometry(angle, flip, 20, 30, 48, 48)
        view = warp(image, geometry.matrix(96, 96, 48), 48, "bilinear", 0)
        right = differences(view, four_steps(image, geometry, 48, "bilinear", 0)).mean()
        shifted = geometry._replace(left=21)
        assert right < 0.6
        assert right < 0.2 * differences(view, four_steps(image, shifted, 48, "bilinear", 0)).mean()

    def test_no_change_means_the_same_pixels(self):
        image = photo(64, 64)
        still = Augmentation(64, rotation=0, scale=(1, 1), ratio=(1, 1), hflip=0)
        assert np.array_equal(still.view(image, np.random.default_rng(0)), image)
        flipped = Augmentation(64, rotation=0, scale=(1, 1), ratio=(1, 1), hflip=1)
        assert np.array_equal(flipped.view(image, np.random.default_rng(0)), image[:, ::-1])
        turned = Augmentation(64, rotation=0, scale=(1, 1), ratio=(1, 1), hflip=0, vflip=1)
        assert np.array_equal(turned.view(image, np.random.default_rng(0)), image[::-1])

    @pytest.mark.parametrize("angle", [0, 20])
    def test_fine_patterns_turn_grey_when_shrunk(self, angle):
        """A board of 1-pixel fields shrunk by 3.1 would alias into stripes without a filter."""
        board = np.indices((400, 400)).sum(axis=0) % 2 * 255
        image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
        view = warp(image, Geometry(angle, False, 80, 80, 248, 248).matrix(400, 400, 80), 80, "bilinear", 0)
        assert abs(view.mean() - 127.5) < 2
        assert view.std() < 6

    def test_fill_where_the_picture_ends(self):
        white = np.full((50, 50, 3), 255, np.uint8)
        view = warp(white, compose(rotation(math.pi / 4, 25, 25), (1, 0, 0, 0, 1, 0)), 50, "bilinear", 7)
        assert np.all(view[0, 0] == 7)
        assert np.all(view[-1, -1] == 7)
        assert np.all(view[20:30, 20:30] == 255)
        elsewhere = warp(white, (1, 0, 500, 0, 1, -900), 50, "bilinear", 7)
        assert np.all(elsewhere == 7)

    @pytest.mark.parametrize("shape", STRIPS)
    @pytest.mark.parametrize("auto_augment", ["none", "trivial", "rand"])
    def test_any_shape_gives_a_full_view(self, shape, auto_augment):
        augmentation = Augmentation(32, auto_augment=auto_augment, color_jitter=0.4, random_erasing=1)
        for seed in range(12):
            view = augmentation.view(photo(*shape), np.random.default_rng(seed))
            assert view.shape == (32, 32, 3)
            assert view.dtype == np.uint8


class TestAugmentation:
    @pytest.mark.parametrize("auto_augment", ["trivial", "rand"])
    def test_its_generator_is_its_only_chance(self, auto_augment):
        image = photo(100, 130)
        augmentation = pickle.loads(
            pickle.dumps(Augmentation(64, color_jitter=0.4, random_erasing=0.5, vflip=0.5, auto_augment=auto_augment))
        )
        first = [augmentation.view(image, np.random.default_rng(seed)) for seed in range(40)]
        np.random.seed(1)
        torch.manual_seed(1)
        state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        second = [augmentation.view(image, np.random.default_rng(seed)) for seed in range(40)]
        assert all(map(np.array_equal, first, second))
        assert len({view.tobytes() for view in first}) == 40
        assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state

    def test_draws_cover_their_ranges(self):
        augmentation = Augmentation(64, rotation=20, scale=(0.3, 0.6), hflip=0.25)
        rng = np.random.default_rng(0)
        drawn = [augmentation.draw(400, 400, rng) for _ in range(2000)]
        angles = np.array([each.angle for each in drawn])
        areas = np.array([each.width * each.height / 160000 for each in drawn])
        ratios = np.array([each.width / each.height for each in drawn])
        assert -20 <= angles.min() < -19.5
        assert 19.5 < angles.max() <= 20
        assert np.mean([each.flip for each in drawn]) == pytest.approx(0.25, abs=0.04)
        assert areas.mean() == pytest.approx(0.45, abs=0.01)
        assert 0.29 < areas.min() < 0.31
        assert 0.59 < areas.max() < 0.61
        assert 0.74 < ratios.min() < 0.77
        assert 1.3 < ratios.max() < 1.35
        assert all(0 <= e.left <= 400 - e.width and 0 <= e.top <= 400 - e.height for e in drawn)
        assert min(e.left for e in drawn) < 1
        assert max(e.top + e.height for e in drawn) > 399

    def test_vertical_flips_leave_the_rest_of_a_view_as_it_was(self):
        pairs = []
        for seed in range(1000):
            plain, turned = (
                Augmentation(64, vflip=share).draw(300, 400, np.random.default_rng(seed)) for share in (0, 0.25)
            )
            assert plain[:-1] == turned[:-1]
            pairs.append((plain.vflip, turned.vflip))
        assert not any(plain for plain, _ in pairs)
        assert np.mean([turned for _, turned in pairs]) == pytest.approx(0.25, abs=0.05)

    def test_a_copy_at_half_the_size_is_cropped_at_the_same_place(self):
        augmentation = Augmentation(64)
        for seed in range(20):
            large = augmentation.draw(600, 800, np.random.default_rng(seed))
            small = augmentation.draw(300, 400, np.random.default_rng(seed))
            assert (small.angle, small.flip) == (large.angle, large.flip)
            assert [2 * value for value in small[2:6]] == pytest.approx(list(large[2:6]))

    def test_short_sides_by_hand(self):
        assert Augmentation(224).min_short_side == 366  # 224 / sqrt(0.5 * 3/4)
        assert Augmentation(224).cache_short_side == 317  # 224 / sqrt(0.5)
        assert Augmentation(224, scale=(0.08, 1)).cache_short_side == 336  # 1.5 * 224

    @pytest.mark.parametrize(
        "wrong",
        [
            {"size": 0},
            {"rotation": -1},
            {"rotation": float("nan")},
            {"hflip": 1.5},
            {"vflip": -0.5},
            {"auto_augment": "randaugment"},
            {"color_jitter": 2},
            {"random_erasing": -0.1},
            {"scale": (0, 1)},
            {"scale": (0.9, 0.5)},
            {"ratio": (2, 1)},
            {"fill": 256},
            {"interpolation": "nearest"},
        ],
    )
    def test_silly_values_are_refused(self, wrong):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Augmentation(**{"size": 64, **wrong})
