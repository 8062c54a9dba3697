"""A model's preprocessing: the square that it sees of a picture, and the numbers that it takes for pixels.

A view stays uint8 [size, size, 3] all the way; floats begin on the device, in ``Preprocessing.normalize``.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from flowers.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
MAX_SIDE = 8192


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
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # channels_last to torch: twice as fast
        view = self.scaled(pixels)[0].permute(1, 2, 0).numpy()
        if out is None:
            return np.ascontiguousarray(view)
        out[:] = view
        return out

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Scale and cut pictures of one size, as ``view`` does: [B, 3, H, W] to [B, 3, crop, crop].

        Floats are neither rounded nor clipped; on a GPU torch scales nothing else.
        """
        short = min(images.shape[2:])
        top, left = (max(0, (length - 2 * short) // 2) for length in images.shape[2:])
        images = images[:, :, top : images.shape[2] - top, left : images.shape[3] - left]
        height, width = (self.resize * length // short for length in images.shape[2:])
        if (height, width) != images.shape[2:]:
            images = functional.interpolate(images, (height, width), mode=self.interpolation, antialias=True)
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        return images[:, :, top : top + self.crop, left : left + self.crop]

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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
