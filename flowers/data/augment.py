"""Turn a picture into the square that a network sees: one way for evaluation, one for training.

Both stay uint8 [size, size, 3] all the way; floats begin on the device, in ``Preprocessing.normalize``.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from flowers.data.recolor import draw_rand, draw_trivial, erase, jitter
from flowers.data.warp import Affine, compose, rotation, warp
from flowers.errors import ModelError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MAX_SIDE = 8192
AUTO_AUGMENT = {"trivial": draw_trivial, "rand": draw_rand}


@dataclass(frozen=True)
class Preprocessing:
    """A model's preprocessing: saved in its bundle, applied wherever the model runs.

    Attributes:
        resize: short side in pixels before the crop.
        crop: side of the square cut from the centre.
        mean: per channel, of pixels in 0 to 1.
        std: per channel, of pixels in 0 to 1.
        interpolation: "bilinear" or "bicubic", antialiased.
        to_srgb: photos with another colour profile are converted to sRGB; models of earlier versions saw the stored
            numbers, and their description lacks this entry.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    to_srgb: bool = False

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            ModelError: names the value and what was expected.
        """
        if not (_is_int(self.resize) and _is_int(self.crop) and 1 <= self.crop <= self.resize <= MAX_SIDE):
            raise ModelError(
                f"preprocessing: got resize {self.resize!r} and crop {self.crop!r}, expected whole numbers, "
                f"1 <= crop <= resize <= {MAX_SIDE}"
            )
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 3 and all(_is_number(v, low, 1e6) for v in value)):
                raise ModelError(f"preprocessing: got {name} {value!r}, expected three numbers of at least {low:g}")
        if self.interpolation not in INTERPOLATIONS:
            expected = " or ".join(INTERPOLATIONS)
            raise ModelError(f"preprocessing: got interpolation {self.interpolation!r}, expected {expected}")
        if not isinstance(self.to_srgb, bool):
            raise ModelError(f"preprocessing: got to_srgb {self.to_srgb!r}, expected true or false")

    @property
    def min_short_side(self) -> int:
        """A picture decoded at reduced scale must keep this short side, in pixels."""
        return self.resize

    def to_dict(self) -> dict:
        """Plain values for JSON; ``from_dict`` reads them back."""
        values = dataclasses.asdict(self)
        if not self.to_srgb:
            del values["to_srgb"]  # so that models of earlier versions keep their hash
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Preprocessing":
        """Read a bundle's spec, trusting nothing.

        Raises:
            ModelError: a key is missing or unknown, or a value cannot be.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or set(values) | {"to_srgb"} != known:
            got = ", ".join(sorted(map(str, values))) if isinstance(values, Mapping) else type(values).__name__
            raise ModelError(f"preprocessing: got {got or 'nothing'}, expected exactly {', '.join(sorted(known))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def view(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Scale the short side to ``resize``, antialiased, and cut the centre: the one evaluation view.

        The same pixels as torchvision's Resize and CenterCrop give, at a third of the time. Of a picture more than
        twice as long as wide only the middle is looked at, so that a strip of 1 x 5000 is no 256 x 1280000.

        Args:
            image: uint8 [H, W, 3], any size.
            out: where the view is written, such as its place in a batch, so that it need not be copied there.

        Returns:
            uint8 [crop, crop, 3], contiguous; ``out`` if that is given.
        """
        short = min(image.shape[:2])
        top, left = (max(0, (length - 2 * short) // 2) for length in image.shape[:2])
        image = image[top : image.shape[0] - top, left : image.shape[1] - left]
        height, width = (self.resize * length // short for length in image.shape[:2])
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # channels_last to torch: twice as fast
        if (height, width) != pixels.shape[2:]:
            pixels = functional.interpolate(pixels, (height, width), mode=self.interpolation, antialias=True)
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        view = pixels[0, :, top : top + self.crop, left : left + self.crop].permute(1, 2, 0).numpy()
        if out is None:
            return np.ascontiguousarray(view)
        out[:] = view
        return out

    def normalize(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normalize pixels as the network was trained: (x / 255 - mean) / std, as one multiply-add.

        Args:
            images: uint8 [B, H, W, 3], on any device.

        Returns:
            [B, 3, H, W] of ``dtype`` in channels_last order, on the same device.
        """
        # Row by row rather than pixel by pixel: three channels are too short a vector for a CPU.
        batch, height, width, channels = images.shape
        rows = images.reshape(batch * height, width * channels).to(torch.float32)
        offset, scale = _row_of_offsets_and_scales(self.mean, self.std, width, images.device)
        torch.addcmul(offset, rows, scale, out=rows)
        return rows.to(dtype).view(images.shape).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _row_of_offsets_and_scales(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """For a row of pixels; kept, since to bring numbers to a GPU is to wait until all its earlier work is done."""
    stds = torch.tensor(std, device=device)
    return (-torch.tensor(mean, device=device) / stds).repeat(width), (1 / (255 * stds)).repeat(width)


class Geometry(NamedTuple):
    """A view as four steps that one warp does at once: rotate about the centre, crop, resize, flip.

    Attributes:
        angle: degrees, counter-clockwise.
        flip: left-right, at the end.
        left, top, width, height: the crop's box in the rotated picture, pixels.
        vflip: upside down, at the end.
    """

    angle: float
    flip: bool
    left: float
    top: float
    width: float
    height: float
    vflip: bool = False

    def matrix(self, width: int, height: int, size: int) -> Affine:
        """The map from the points of a view of side ``size`` to those of a picture of width x height."""
        across, down = self.width / size, self.height / size
        left, across = (self.left + self.width, -across) if self.flip else (self.left, across)
        top, down = (self.top + self.height, -down) if self.vflip else (self.top, down)
        crop = (across, 0.0, left, 0.0, down, top)
        return compose(rotation(math.radians(self.angle), width / 2, height / 2), crop)


@dataclass(frozen=True)
class Augmentation:
    """Random views for training: rotation, resized crop and flip as one affine warp, then the optional operations.

    Corners that a rotation brings in from outside the picture get ``fill``, by default the mean grey of ImageNet: it
    becomes about zero in ``Preprocessing.normalize``, which is what convolutions pad with anyway, and unlike black
    makes no strong edges, unlike reflection no flowers that are not there. (A linear head on frozen features of one
    plain and one augmented view of Oxford 102 did not care: 0.888 with the mean, 0.891 black, 0.887 reflected.)

    Attributes:
        size: side of the view in pixels.
        rotation: largest angle, in degrees, either way.
        scale: share of the picture's area that the crop covers, from and to.
        ratio: width / height of the crop, from and to.
        hflip: probability of a left-right flip.
        color_jitter: strength of random brightness, contrast and saturation, 0 to 1; 0 is off.
        random_erasing: probability of blanking a random rectangle.
        auto_augment: "trivial": one random operation of TrivialAugment; "rand": two of RandAugment; or "none".
        interpolation: "bilinear" or "bicubic": how sharp, as in Preprocessing.
        fill: grey, 0 to 255, for corners and erased rectangles.
        vflip: probability of a top-bottom flip.
        to_srgb: as in Preprocessing, for the pictures that views are drawn of.
    """

    size: int
    rotation: float = 30.0
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str = "none"
    interpolation: str = "bilinear"
    fill: int = 114
    vflip: float = 0.0
    to_srgb: bool = dataclasses.field(default=False, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("size", 1, MAX_SIDE),
            ("rotation", 0, 180),
            ("hflip", 0, 1),
            ("vflip", 0, 1),
            ("color_jitter", 0, 1),
            ("random_erasing", 0, 1),
            ("fill", 0, 255),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected {low} to {high}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"scale: got {self.scale}, expected two shares of the area, 0 < from <= to <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"ratio: got {self.ratio}, expected two ratios of width to height, 0 < from <= to")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation: got {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        if self.auto_augment not in ("none", *AUTO_AUGMENT):
            raise UsageError(f"auto_augment: got {self.auto_augment!r}, expected none, {' or '.join(AUTO_AUGMENT)}")

    @property
    def min_short_side(self) -> int:
        """A picture decoded at reduced scale must keep this short side, so that the smallest crop is not enlarged."""
        return math.ceil(self.size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])))

    @property
    def cache_short_side(self) -> int:
        """Short side of a cached picture: little above ``size``, so that the smallest square crop is not enlarged.

        That is size / sqrt(smallest share of the area), 317 for 224 and half the area; but no more than 1.5 sizes, as
        very small crops are enlarged from the usual 500-pixel photo too.
        """
        return math.ceil(self.size * min(1.5, 1 / math.sqrt(self.scale[0])))

    def view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one view.

        Args:
            image: uint8 [H, W, 3], any size.
            rng: the only source of chance.

        Returns:
            uint8 [size, size, 3]
        """
        height, width = image.shape[:2]
        matrix = self.draw(width, height, rng).matrix(width, height, self.size)
        recolor = None
        if self.auto_augment != "none":
            move, recolor = AUTO_AUGMENT[self.auto_augment](self.size, rng)
            matrix = compose(matrix, move) if move is not None else matrix
        view = warp(image, matrix, self.size, self.interpolation, self.fill)
        if recolor is not None:
            view = recolor(view)
        if self.color_jitter > 0:
            view = jitter(view, self.color_jitter, rng)
        if self.random_erasing > 0 and rng.random() < self.random_erasing:
            view = erase(view, self.fill, rng)
        return view

    def draw(self, width: int, height: int, rng: np.random.Generator) -> "Geometry":
        """Draw the angle, the flips and the crop of a view."""
        angle = self.rotation * (2 * rng.random() - 1)
        flip = rng.random() < self.hflip
        crop = self._draw_crop(width, height, rng)
        # drawn last and only where asked for: without it the views are those of earlier versions
        return Geometry(angle, flip, *crop, vflip=self.vflip > 0 and rng.random() < self.vflip)

    def _draw_crop(self, width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """A box (left, top, width, height) as torchvision's RandomResizedCrop draws it, but not cut to whole pixels.

        So a picture and its smaller copy in a cache are cropped at the same place.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            ratio = math.exp(low + (high - low) * rng.random())
            crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if crop_width <= width and crop_height <= height:
                left, top = rng.random() * (width - crop_width), rng.random() * (height - crop_height)
                return left, top, crop_width, crop_height
        crop_width, crop_height = min(width, height * self.ratio[1]), min(height, width / self.ratio[0])
        return (width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
