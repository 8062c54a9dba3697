"""Decoding and evaluation preprocessing on one core, against the usual chain of Pillow and torchvision.

    python tests/bench/bench_decode.py                      # the real photos, where the checkout has them beside it
    python tests/bench/bench_decode.py --photos DIR         # any folder of photos
    python tests/bench/bench_decode.py --size 4000 3000     # drawn photos of this size

On one core the processor's time is counted, so that other work on the machine matters little; for two threads it is the
clock.
"""

import argparse
import functools
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from measuring import FLOWERS102, Row, photos_in, rate, run_alone, take_turns, times_faster
from PIL import Image
from torchvision import transforms

from flowers.data.formats import jpeg
from flowers.data.images import read_image
from flowers.data.preprocessing import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[1]))

from color_profiles import P3_PRIMARIES, rgb_profile, srgb_profile

BATCH_SIZE = 32
USUAL = "usual"
OPEN = "usual open"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos", help="folder of photos")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="draw photos instead")
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    if options.size:
        photos = [draw_photo(*options.size, seed) for seed in range(10)]
    else:
        photos = [path.read_bytes() for path in photos_in(options.photos)]
    torch.set_num_threads(1)
    preprocessing = Preprocessing(256, 224)
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize])
    short_side = preprocessing.min_short_side

    def ours(data: bytes, to_srgb: bool = False) -> np.ndarray:
        return preprocessing.view(read_image(data, min_short_side=short_side, to_srgb=to_srgb))

    def ours_normalized() -> None:
        for start in range(0, len(photos), BATCH_SIZE):
            views = np.stack([ours(data) for data in photos[start : start + BATCH_SIZE]])
            preprocessing.normalize(torch.from_numpy(views))

    def decode_with_pillow() -> None:
        fast, jpeg.decode_jpeg = jpeg.decode_jpeg, None
        each(lambda data: read_image(data, min_short_side=short_side))
        jpeg.decode_jpeg = fast

    def each(work: Callable[[bytes], object], of: list[bytes] = photos) -> None:
        for data in of:
            work(data)

    width, height = Image.open(io.BytesIO(photos[0])).size
    photo = f"photos of {width}x{height}"
    ours_by_name = {
        f"{photo} to normalised evaluation batches, one core": ours_normalized,
        f"{photo} to evaluation views, one core": lambda: each(ours),
    }
    decoding_by_name = {
        f"{photo} decoded at the scale needed, one core": lambda: each(
            lambda data: read_image(data, min_short_side=short_side)
        ),
        f"{photo} decoded at full scale, one core": lambda: each(read_image),
        f"{photo} decoded without torchvision.io, one core": decode_with_pillow,
    }
    converted = functools.partial(ours, to_srgb=True)
    converted_by_name = {
        f"{photo} with the profile of {name} to evaluation views in sRGB, one core": functools.partial(
            each, converted, [_tagged(data, profile) for data in photos]
        )
        for name, profile in (("sRGB", srgb_profile()), ("Display P3", rgb_profile(P3_PRIMARIES)))
    }
    with one_core():
        seconds = take_turns(
            {
                USUAL: lambda: each(lambda data: usual(Image.open(io.BytesIO(data)).convert("RGB"))),
                OPEN: lambda: each(lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
                **ours_by_name,
                **decoding_by_name,
                **converted_by_name,
            },
            options.rounds,
            clock_s=time.process_time,
        )
    count = len(photos)
    texts = {USUAL: "the usual Pillow and torchvision chain", OPEN: "Pillow's open and convert"}
    rows = [
        Row(name, rate(count, seconds[name]), f"{times_faster(seconds[plain], seconds[name])} {texts[plain]}, "
            f"{rate(count, seconds[plain])}")
        for plain, names in ((USUAL, ours_by_name), (OPEN, decoding_by_name)) for name in names
    ]  # fmt: skip
    plain = f"{photo} to evaluation views, one core"
    rows += [
        Row(name, rate(count, seconds[name]), f"{times_faster(seconds[plain], seconds[name])} the same photos without "
            f"a profile, {rate(count, seconds[plain])}")
        for name in converted_by_name
    ]  # fmt: skip
    if len(os.sched_getaffinity(0)) > 1:
        with ThreadPoolExecutor(2) as pool:
            seconds = take_turns(
                {"one": lambda: each(ours), "two": lambda: list(pool.map(ours, photos))}, options.rounds
            )
        faster = f"{times_faster(seconds['one'], seconds['two'])} one thread, {rate(count, seconds['one'])}"
        rows.append(Row(f"{photo} to evaluation views, two threads on two cores", rate(count, seconds["two"]), faster))
    return rows


@contextmanager
def one_core() -> Iterator[None]:
    """Inside the block this process stays on one core."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cpus)[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _tagged(jpeg_bytes: bytes, profile: bytes) -> bytes:
    """The same JPEG with a colour profile."""
    body = b"ICC_PROFILE\0\1\1" + profile
    return jpeg_bytes[:2] + b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body + jpeg_bytes[2:]


def draw_photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG with about as much detail as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)).resize((width, height))
    grain = rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
