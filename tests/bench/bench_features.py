"""Head training on cached features against one plain pass of the backbone over the same images.

    python tests/bench/bench_features.py                        # the real photos, where the checkout has them beside it
    python tests/bench/bench_features.py --data-dir DATA --rounds 1 --per-class 5

Ours is the whole command `python jobs/train.py --data-dir DATA` with its default flags: from its start, imports and
conversion of the network included, over the features and the head's epochs to the model on disk. The plain pass is
what people write to get features: ImageFolder, Pillow, torchvision's transforms, a DataLoader of as many workers as
there are CPUs, eager float32, no gradients; its imports and the network's building are not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import FLOWERS102, ROOT, Row, contestants, duration, run_alone, take_turns, times_faster

SPLITS = ("train", "valid")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="with train/ and valid/")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default", help="as in jobs/train.py")
    parser.add_argument("--per-class", type=int, help="take only so many images of each class and split")
    parser.add_argument("--rounds", type=int, default=2)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = link(options.data_dir, Path(temporary, "data"), options.per_class)
        images = sum(1 for split in SPLITS for _ in (data_dir / split).glob("*/*"))
        network = ["--model", options.model, "--weights", options.weights]
        tops: list[float] = []

        def ours() -> None:
            run_dir = Path(temporary, f"run-{len(tops)}")
            flags = ["--data-dir", data_dir, "--output-dir", run_dir, *network]
            done = subprocess.run(
                [sys.executable, ROOT / "jobs" / "train.py", *flags], capture_output=True, text=True, cwd=temporary
            )
            assert done.returncode == 0, done.stderr
            tops.append(json.loads((run_dir / "metrics.json").read_text())["valid"]["top1"])

        with contestants({"plain": (plain_pass, data_dir, options.model, options.weights)}) as processes:
            seconds = take_turns({**processes, "ours": ours}, options.rounds, warm_up=False)
    return [
        Row(
            f"train.py, default flags, {images} images, {options.model}: valid top1 {tops[-1]:.3f}",
            duration(seconds["ours"]),
            f"{times_faster(seconds['ours'], seconds['plain'])} the time of one plain pass of the backbone, "
            f"{duration(seconds['plain'])}",
        )
    ]


def link(data_dir: Path, target: Path, per_class: int | None) -> Path:
    """The same tree with links for files, cut to so many a class."""
    for split in SPLITS:
        for folder in sorted((data_dir / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:per_class]:
                (target / split / folder.name / path.name).symlink_to(path.resolve())
    return target


def plain_pass(data_dir: Path, model: str, weights: str) -> Callable[[], None]:
    """The backbone over all images of all splits, as people write it."""
    import torch
    from torch.utils.data import ConcatDataset, DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from flowers.machine import cpus_per_process
    from flowers.models.backbones import build_backbone

    torch.set_num_threads(cpus_per_process())
    backbone = build_backbone(model, weights)
    network, view = backbone.network.eval(), backbone.preprocessing
    mode = getattr(transforms.InterpolationMode, view.interpolation.upper())
    steps = [transforms.Resize(view.resize, mode), transforms.CenterCrop(view.crop), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(view.mean, view.std)])
    photos = ConcatDataset([ImageFolder(data_dir / split, transform) for split in SPLITS])
    loader = DataLoader(photos, batch_size=32, num_workers=cpus_per_process())

    def turn() -> None:
        features = []
        with torch.no_grad():
            for images, _ in loader:
                features.append(network(images))
        torch.cat(features)

    return turn


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
