"""What a checkpoint costs: seconds to save one of the whole default network, and the share at one save a minute.

python tests/bench/bench_saving.py [--model efficientnet_lite0] [--saves 10]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from flowers.data.folders import ClassIndex
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.training.checkpoint import Progress, save_checkpoint
from flowers.training.groups import parameter_groups
from flowers.training.recipe import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--saves", type=int, default=10)
    flags = parser.parse_args()
    backbone = build_backbone(flags.model, "none")
    head = HeadSpec(102, backbone.num_features)
    classifier = Classifier(backbone.network, build_head(head))
    optimizer = build_optimizer("adamw", parameter_groups(classifier, 0.1), torch.device("cpu"))
    for parameter in classifier.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # now it has a state to save
    names = tuple(map(str, range(102)))
    bundle = Bundle(
        flags.model, head, ClassIndex(names, names), backbone.preprocessing, {}, {}, classifier.state_dict()
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir, seconds = Path(folder), []
        for step in range(1, flags.saves + 1):
            start_s = time.perf_counter()
            path = save_checkpoint(
                run_dir,
                bundle=bundle,
                tensors={"optimizer": optimizer.state_dict()},
                progress=Progress(step=step),
                fingerprint={},
                keep=2,
            )
            seconds.append(time.perf_counter() - start_s)
        size_mb = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    median_s = statistics.median(seconds)
    print(
        f"{flags.model}: {size_mb:.0f} MB in {median_s:.2f} s (from {min(seconds):.2f} to {max(seconds):.2f}), "
        f"{median_s / 60:.2%} of the time at one save a minute"
    )


if __name__ == "__main__":
    main()
