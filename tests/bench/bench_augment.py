"""How fast one core makes training and evaluation views, against torchvision's usual chains on Pillow images.

python tests/bench/bench_augment.py                              # the real photos, about 500 x 667 pixels
python tests/bench/bench_augment.py --photos DIR [--images 60] [--rounds 7]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from measuring import FLOWERS102, Row, photos_in, rate, run_alone, take_turns, times_faster
from PIL import Image
from torchvision import transforms as tv

from flowers.data.augment import Augmentation
from flowers.data.folders import Samples
from flowers.data.image_cache import open_cache
from flowers.data.images import read_image
from flowers.data.order import sample_rng
from flowers.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    torch.set_num_threads(1)
    paths = [str(path.relative_to(options.photos)) for path in photos_in(options.photos)][: options.images]
    samples = Samples(options.photos, paths, np.zeros(len(paths), np.int64))
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

    ways = {
        "chain": lambda index: chain(augment_chain, index),
        "training views from files": augmented,
        "training views from the image cache (--cache)": lambda index: augmentation.view(
            cache.read(index), sample_rng(0, 0, index)
        ),
        "evaluation chain": lambda index: chain(evaluate_chain, index),
        "evaluation views from files": evaluated,
    }

    def all_with(make_view) -> None:
        for index in range(len(samples)):
            make_view(index)

    seconds = take_turns(
        {name: lambda make_view=make_view: all_with(make_view) for name, make_view in ways.items()}, options.rounds
    )
    return [
        Row(
            f"{name}, one core",
            rate(len(samples), seconds[name]),
            f"{times_faster(seconds[plain], seconds[name])} torchvision's chain on Pillow images, "
            f"{rate(len(samples), seconds[plain])}",
        )
        for name, plain in zip(list(ways)[1:3] + list(ways)[4:], ("chain", "chain", "evaluation chain"), strict=True)
    ]


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
