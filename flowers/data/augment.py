"""Random views of a picture for training, uint8 [size, size, 3] as evaluation's are."""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowers.data.preprocessing import INTERPOLATIONS, MAX_SIDE
from flowers.data.recolor import draw_rand, draw_trivial, erase, jitter
from flowers.data.warp import Affine, compose, rotation, warp
from flowers.errors import UsageError

AUTO_AUGMENT = {"trivial": draw_trivial, "rand": draw_rand}


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
