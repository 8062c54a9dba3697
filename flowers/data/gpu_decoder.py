"""JPEGs decoded and scaled by a GPU, for machines with few CPUs for each GPU: nvJPEG, through TorchCodec.

(torchvision's own way to nvJPEG is deprecated, and can overwrite memory that the network still reads:
pytorch/vision#9606. TorchCodec waits for the network first.)

Only plain JPEGs are taken (``flowers.data.formats.jpeg.JpegDecoder.is_plain``); all else, and what nvJPEG refuses, is
left to the CPU. nvJPEG rounds and interpolates in its own way, so that views differ from the CPU's by a few of 255.
Damage within a scan, of which libjpeg tells, goes unnoticed.
"""

import contextlib
import io
import queue
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from flowers.data.formats.jpeg import JpegDecoder
from flowers.data.formats.limits import check_pixels
from flowers.data.formats.tiff import orientation
from flowers.data.pixels import turns
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ImageError, UsageError

_EXIF = re.compile(rb"\xff\xe1(..Exif\0)", re.DOTALL)
_TOGETHER_PIXELS = 200_000_000
"""Decoded in one call: 0.6 GB of the GPU's memory."""
_AT_ONCE = 2
"""Threads that use the GPU, each on a stream of its own: while one's pictures are decoded, the other's are scaled."""


class PlainJpeg(NamedTuple):
    """A file that the GPU may decode.

    Attributes:
        data: uint8 [bytes], on the CPU, without EXIF.
        num_pixels: of the picture.
        orientation: how it has to be turned, 1 to 8 as in EXIF.
    """

    data: torch.Tensor
    num_pixels: int
    orientation: int


class GpuDecoder:
    """From the bytes of JPEGs to a model's views of them. Threads may share one.

    Args:
        preprocessing: the model's view of a picture.
        device: a CUDA device; or "cpu", where libjpeg takes the place of nvJPEG, to try the rest.

    Raises:
        UsageError: there is no TorchCodec that can use the device.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        self._preprocessing, self._device = preprocessing, device
        try:
            from torchcodec.decoders import decode_jpeg
        except ImportError:
            raise UsageError("--decode gpu needs the extra gpu: pip install flowers[gpu]") from None
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"--decode gpu: TorchCodec does not fit this torch ({_short(error)}); leave it out"
            ) from None
        probe = io.BytesIO()
        Image.new("RGB", (16, 16)).save(probe, "JPEG")
        try:
            decode_jpeg([probe.getvalue()], device=device)
        except RuntimeError as error:
            raise UsageError(f"--decode gpu: TorchCodec cannot decode here ({_short(error)}); leave it out") from None
        self._decode_jpeg = decode_jpeg
        self._streams: queue.SimpleQueue[torch.cuda.Stream | None] = queue.SimpleQueue()
        for _ in range(_AT_ONCE):
            self._streams.put(torch.cuda.Stream(device) if device.type == "cuda" else None)

    def prepare(self, data: bytes | bytearray) -> PlainJpeg | None:
        """Look at a file; None of one that is for the CPU, which also finds what is wrong with it."""
        if not data.startswith(b"\xff\xd8\xff"):
            return None
        try:
            jpeg = JpegDecoder(data := bytearray(data), self._preprocessing.to_srgb)
            check_pixels(jpeg.header.width, jpeg.header.height)
        except ImageError:
            return None
        if not jpeg.is_plain:
            return None
        header = jpeg.header
        # TorchCodec turns pictures as well, but knows only some of the ways in which files say how: it gets none.
        start = _EXIF.sub(lambda found: b"\xff\xef" + found[1], data[: header.start])
        stored = torch.frombuffer(start + data[header.start :], dtype=torch.uint8)
        return PlainJpeg(stored, header.width * header.height, orientation(header.exif, header.xmp))

    def views(self, files: Sequence[PlainJpeg]) -> list[np.ndarray | None]:
        """Decode files.

        Returns:
            of each uint8 [crop, crop, 3], or None where the GPU cannot decode it.
        """
        stream = self._streams.get()
        try:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                return [view for group in _groups(files) for view in self._together(group)]
        finally:
            self._streams.put(stream)

    def _together(self, files: Sequence[PlainJpeg]) -> list[np.ndarray | None]:
        try:
            images = self._decode_jpeg([file.data for file in files], mode="RGB", device=self._device)
            return list(torch.stack(list(map(self._view, images, files))).cpu().numpy())
        except Exception:  # one file's, or the memory of all is full: it does not tell, and the CPU tries next
            return [None] if len(files) == 1 else [view for file in files for view in self._together([file])]

    def _view(self, image: torch.Tensor, file: PlainJpeg) -> torch.Tensor:
        """The view of a picture, uint8 [3, H, W] as it is stored: uint8 [crop, crop, 3]."""
        is_transposed, flipped = turns(file.orientation)
        if is_transposed:
            image = image.transpose(1, 2)
        scaled = self._preprocessing.scaled(image.flip([1 + axis for axis in flipped])[None].float())
        return scaled[0].round().clamp(0, 255).byte().permute(1, 2, 0)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _groups(files: Sequence[PlainJpeg]) -> Iterator[list[PlainJpeg]]:
    """Neighbours that are decoded in one call."""
    group: list[PlainJpeg] = []
    for file in files:
        if group and sum(other.num_pixels for other in group) + file.num_pixels > _TOGETHER_PIXELS:
            yield group
            group = []
        group.append(file)
    if group:
        yield group
