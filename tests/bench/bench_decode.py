"""Decoding and evaluation preprocessing on one core, against the usual chain of Pillow and torchvision.

    python tests/bench/bench_decode.py                      # the real photos, where the checkout has them beside it
    python tests/bench/bench_decode.py --photos DIR         # any folder of photos
    python tests/bench/bench_decode.py --size 4000 3000     # drawn photos of this size

All ways take turns within one run; of each the fastest round counts. On one core the processor's time is counted, so
that other work on the machine matters little; for two threads it is the clock.
"""

import argparse
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from flowers.data import images
from flowers.data.folders import scan_images
from flowers.data.images import read_image
from flowers.data.transforms import Preprocessing

PHOTOS = Path(os.environ.get("FLOWERS102", Path(__file__).parents[3] / "shared" / "flowers102")) / "photos"
BATCH_SIZE = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of photos")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="draw photos instead")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.size:
        photos = [_draw(*options.size, seed) for seed in range(10)]
    else:
        photos = [Path(options.photos, path).read_bytes() for path in scan_images(options.photos)]
    torch.set_num_threads(1)
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])

    preprocessing = Preprocessing(256, 224)
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize])
    short_side = preprocessing.min_short_side

    def ours(data: bytes) -> np.ndarray:
        return preprocessing.view(read_image(data, min_short_side=short_side))

    def ours_normalized() -> None:
        for start in range(0, len(photos), BATCH_SIZE):
            views = np.stack([ours(data) for data in photos[start : start + BATCH_SIZE]])
            preprocessing.normalize(torch.from_numpy(views))

    def decode_with_pillow() -> None:
        fast, images.decode_jpeg = images.decode_jpeg, None
        each(lambda data: read_image(data, min_short_side=short_side))
        images.decode_jpeg = fast

    def each(work: Callable[[bytes], object]) -> None:
        for data in photos:
            work(data)

    width, height = Image.open(io.BytesIO(photos[0])).size
    print(
        f"{len(photos)} photos, the first of {width} x {height}, {np.mean([*map(len, photos)]) / 1000:.0f} kB; one core"
    )
    _compare(
        {
            "usual: open, convert, Resize, CenterCrop, ToTensor, Normalize": lambda: each(
                lambda data: usual(Image.open(io.BytesIO(data)).convert("RGB"))
            ),
            "ours: read_image, view": lambda: each(ours),
            "ours: the same, and normalize in batches": ours_normalized,
            "only decode, usual: open, convert": lambda: each(lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
            "only decode, ours": lambda: each(lambda data: read_image(data, min_short_side=short_side)),
            "only decode, ours, at full scale": lambda: each(read_image),
            "only decode, ours, without torchvision.io": decode_with_pillow,
        },
        len(photos),
        options.rounds,
        time.process_time,
    )

    os.sched_setaffinity(0, cpus)
    if len(cpus) > 1:
        with ThreadPoolExecutor(2) as pool:
            print("\ntwo threads on two cores")
            _compare(
                {"one thread": lambda: each(ours), "two threads": lambda: list(pool.map(ours, photos))},
                len(photos),
                options.rounds,
                time.perf_counter,
            )


def _compare(ways: dict[str, Callable[[], object]], count: int, rounds: int, clock_s: Callable[[], float]) -> None:
    """Print images/s of each way and its ratio to the first one."""
    best_s = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, work in ways.items():
            start_s = clock_s()
            work()
            best_s[name] = min(best_s[name], clock_s() - start_s)
    first_s = next(iter(best_s.values()))
    for name, seconds in best_s.items():
        print(f"{name:62} {count / seconds:7.0f} images/s  {first_s / seconds:5.2f} x")


def _draw(width: int, height: int, seed: int) -> bytes:
    """A JPEG with about as much detail as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)).resize((width, height))
    grain = rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
