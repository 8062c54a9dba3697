"""How fast one core makes training and evaluation views, against torchvision's usual chains on Pillow images.

    python tests/bench/bench_augment.py PHOTOS [--images 60] [--rounds 7]

PHOTOS is a folder of original photos, such as photos/ of the Oxford 102 subset (300 of about 500 x 667 pixels). The
contestants take turns, round by round, so that a busy machine slows all of them; the median round counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as tv

from flowers.data.cache import open_cache
from flowers.data.folders import Samples
from flowers.data.images import read_image
from flowers.data.order import sample_rng
from flowers.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Preprocessing


def main() -> None:
    """Time everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path.name for path in arguments.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[: arguments.images]
    samples = Samples(arguments.photos, paths, np.zeros(len(paths), np.int64))

    finish = [tv.ToTensor(), tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    augment_chain = tv.Compose(
        [tv.RandomRotation(30), tv.RandomResizedCrop(224, (0.5, 1.0)), tv.RandomHorizontalFlip(), *finish]
    )
    evaluate_chain = tv.Compose([tv.Resize(256), tv.CenterCrop(224), *finish])
    augmentation, preprocessing = Augmentation(224), Preprocessing(256, 224)
    cache = open_cache(samples, "ram", augmentation.cache_short_side)

    def chain(steps: tv.Compose, index: int) -> object:
        with Image.open(samples.full_path(index)) as picture:
            return steps(picture.convert("RGB"))

    def augmented(index: int) -> object:
        image = read_image(samples.full_path(index), min_short_side=augmentation.min_short_side)
        return augmentation.view(image, sample_rng(0, 0, index))

    def evaluated(index: int) -> object:
        return preprocessing.view(read_image(samples.full_path(index), min_short_side=preprocessing.min_short_side))

    contestants: dict[str, Callable[[int], object]] = {
        "training: torchvision's chain, from file": lambda index: chain(augment_chain, index),
        "training: one warp, from file": augmented,
        "training: one warp, from the cache": lambda index: augmentation.view(
            cache.read(index), sample_rng(0, 0, index)
        ),
        "evaluation: torchvision's chain, from file": lambda index: chain(evaluate_chain, index),
        "evaluation: ours, from file": evaluated,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, make_view in contestants.items():
            start_s = time.perf_counter()
            for index in range(len(samples)):
                make_view(index)
            seconds[name].append(time.perf_counter() - start_s)

    base_s = 1.0
    print(f"{len(samples)} photos, median of {arguments.rounds} rounds, one core")
    for name, rounds in seconds.items():
        typical_s = statistics.median(rounds)
        base_s = typical_s if "chain" in name else base_s
        print(f"{name:45s} {len(samples) / typical_s:6.0f} images/s  {base_s / typical_s:5.2f} x")


if __name__ == "__main__":
    main()
