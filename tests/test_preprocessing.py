"""The view of evaluation, its numbers and its description."""

import json

import numpy as np
import pytest
import torch
from pictures import differences, photo
from PIL import Image
from torchvision import transforms as tv

from flowers.data.preprocessing import Preprocessing
from flowers.errors import ModelError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
STRIPS = [(1, 1), (1, 5000), (5000, 1), (2, 3), (40, 7), (223, 225)]


class TestPreprocessing:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("shape", [(500, 667), (667, 500), (333, 333), (256, 300), (100, 150), (600, 1000)])
    def test_same_pixels_as_torchvision(self, shape, interpolation):
        image = photo(*shape)
        mode = tv.InterpolationMode(interpolation)
        steps = tv.Compose([tv.Resize(256, mode), tv.CenterCrop(224)])
        view = Preprocessing(256, 224, interpolation=interpolation).view(image)
        difference = differences(view, np.asarray(steps(Image.fromarray(image))))
        assert difference.max() <= 2
        assert difference.mean() < 0.02

    @pytest.mark.parametrize("shape", STRIPS)
    def test_any_shape_gives_a_full_view(self, shape):
        view = Preprocessing(40, 32).view(np.full((*shape, 3), (10, 200, 90), np.uint8))
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8
        assert view.flags.c_contiguous
        assert np.all(view == (10, 200, 90))

    def test_a_strip_shows_its_middle(self):
        strip = np.zeros((10, 1000, 3), np.uint8)
        strip[:, 480:520] = 255
        assert Preprocessing(10, 10).view(strip).min() == 255

    def test_what_has_the_size_stays_as_it_is(self):
        image = photo(64, 64)
        assert np.array_equal(Preprocessing(64, 64).view(image), image)
        assert np.array_equal(Preprocessing(64, 32).view(image), image[16:48, 16:48])

    def test_normalize(self):
        images = torch.randint(0, 256, (3, 5, 4, 3), dtype=torch.uint8)
        before = images.clone()
        spec = Preprocessing(8, 4, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
        expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[
            :, None, None
        ]
        got = spec.normalize(images)
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(images, before)
        half = spec.normalize(images, torch.bfloat16)
        assert torch.equal(half, got.to(torch.bfloat16))

    def test_normalize_brings_nothing_to_the_device_each_time(self, monkeypatch):
        images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta")
        with torch.inference_mode():  # as the first one is, where evaluation comes first
            Preprocessing(8, 4).normalize(images)
        monkeypatch.delattr(torch, "tensor")
        got = Preprocessing(8, 4).normalize(images)
        assert got.device.type == "meta"
        assert not got.is_inference()

    def test_spec_survives_json(self):
        spec = Preprocessing(232, 224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
        assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    @pytest.mark.parametrize(
        "change",
        [
            {"crop": 300},
            {"crop": 0},
            {"resize": 224.0},
            {"resize": True},
            {"resize": 10**9},
            {"mean": [0.5, 0.5]},
            {"mean": [0.5, 0.5, float("nan")]},
            {"mean": "abc"},
            {"std": [0.5, 0.5, 0]},
            {"std": [0.5, 0.5, None]},
            {"interpolation": "nearest"},
            {"interpolation": ["bilinear"]},
            {"antialias": True},
        ],
    )
    def test_a_tampered_spec_is_refused(self, change):
        with pytest.raises(ModelError, match=f"preprocessing.*{next(iter(change))}"):
            Preprocessing.from_dict({**Preprocessing(256, 224).to_dict(), **change})

    @pytest.mark.parametrize("values", [None, [], {}, {"resize": 256, "crop": 224}])
    def test_an_incomplete_spec_is_refused(self, values):
        with pytest.raises(ModelError, match="expected exactly crop, interpolation, mean, resize, std"):
            Preprocessing.from_dict(values)
