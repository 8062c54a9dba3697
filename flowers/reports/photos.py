"""Photos for a page: small, each at most once, and a word in place of an unreadable one."""

import dataclasses
import io
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from flowers.data.augment import Augmentation
from flowers.data.folders import Samples
from flowers.data.images import read_image
from flowers.data.order import sample_rng
from flowers.data.threads import in_order
from flowers.errors import ImageError
from flowers.machine import cpus_per_process
from flowers.reports.page import jpeg_uri

Key = TypeVar("Key", bound=Hashable)

SIDE = 144
VIEWED_IMAGES = 5
VIEWS = 5


class ViewRow(NamedTuple):
    """One training image: its path, the photo itself, and views of it, as sources of images."""

    path: str
    photo: str
    views: list[str]


def photos(sources: Mapping[Key, str | bytes], side: int = SIDE) -> dict[Key, str | None]:
    """Return thumbnails as sources of images, decoded by threads; None for unreadable files.

    Args:
        sources: by any key, a path or the bytes of an image file.
    """
    return _shown(sources, lambda source: thumbnail(source, side))


def whole_photos(sources: Mapping[Key, str | bytes], side: int) -> dict[Key, str | None]:
    """Return whole pictures, their longer side at most ``side`` pixels, as sources of images; None for unreadable ones.

    Args:
        sources: by any key, a path or the bytes of an image file.
    """

    def whole(source: str | bytes) -> bytes:
        picture = Image.fromarray(read_image(source, min_short_side=side, to_srgb=True))
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        return encode_jpeg(np.asarray(picture), quality=80)

    return _shown(sources, whole)


def _shown(sources: Mapping[Key, str | bytes], encode: Callable[[str | bytes], bytes]) -> dict[Key, str | None]:
    def shown(source: str | bytes) -> str | None:
        try:
            return jpeg_uri(encode(source))
        except ImageError:
            return None

    return dict(zip(sources, in_order(shown, sources.values(), cpus_per_process()), strict=True))


def training_views(samples: Samples, augmentation: Augmentation, seed: int, epochs: Sequence[int]) -> list[ViewRow]:
    """A contact sheet: a few images spread over the training set, and their views in some epochs.

    The draws are those of training, the views only smaller.
    """
    augmentation = dataclasses.replace(augmentation, size=min(SIDE, augmentation.size))
    chosen = [len(samples) * place // VIEWED_IMAGES for place in range(min(VIEWED_IMAGES, len(samples)))]
    rows = []
    for index in chosen:
        path = samples.full_path(index)
        try:
            how = {"min_short_side": augmentation.min_short_side, "to_srgb": augmentation.to_srgb}
            image, photo = read_image(path, **how), jpeg_uri(thumbnail(path, SIDE))
        except ImageError:
            continue
        views = [augmentation.view(image, sample_rng(seed, epoch, index, 0)) for epoch in epochs[:VIEWS]]
        rows.append(ViewRow(samples.paths[index], photo, [jpeg_uri(encode_jpeg(view)) for view in views]))
    return rows


def thumbnail(source: str | os.PathLike | bytes, side: int = 160) -> bytes:
    """The middle square of a picture, as a JPEG.

    Args:
        source: a path, or the bytes of an image file.
        side: pixels.

    Raises:
        ImageError: there is no picture; the short reason.
    """
    picture = Image.fromarray(read_image(source, min_short_side=side, to_srgb=True))
    short = min(picture.size)
    left, top = ((length - short) / 2 for length in picture.size)
    box = (left, top, left + short, top + short)
    return encode_jpeg(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box)))


def encode_jpeg(image: np.ndarray, quality: int = 75) -> bytes:
    """A picture as a JPEG.

    Args:
        image: uint8 [H, W, 3].
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
