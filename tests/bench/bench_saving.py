"""What a checkpoint costs: seconds to save one of the whole default network, and the share at one save a minute.

python tests/bench/bench_saving.py [--model efficientnet_lite0] [--saves 10]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from measuring import Row, duration, run_alone, take_turns

from flowers.data.folders import ClassIndex
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.training.checkpoint import Progress, save_checkpoint
from flowers.training.optimizer import build_optimizer, parameter_groups


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--saves", type=int, default=10)


def measure(flags: argparse.Namespace) -> list[Row]:
    """Rows of the table: ours, against the `torch.save` of both states that people write."""
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
    steps = iter(range(1, 10**6))
    with tempfile.TemporaryDirectory() as folder:
        run_dir, plain_path = Path(folder, "run"), Path(folder, "plain.pth")

        def ours() -> None:
            save_checkpoint(
                run_dir,
                bundle=bundle,
                tensors={"optimizer": optimizer.state_dict()},
                progress=Progress(step=next(steps)),
                fingerprint={},
                keep=2,
            )

        def plain() -> None:
            torch.save({"model": classifier.state_dict(), "optimizer": optimizer.state_dict()}, plain_path)

        seconds = take_turns({"ours": ours, "plain": plain}, flags.saves)
        newest = max((run_dir / "checkpoints").iterdir())
        size_mb = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    share = statistics.median(seconds["ours"]) / 60
    return [
        Row(
            f"a checkpoint of {flags.model} with AdamW, {size_mb:.0f} MB, hashed, synced and renamed",
            duration(seconds["ours"]),
            f"{share:.2%} of the time at one a minute; a plain torch.save, which a crash can leave half written, takes "
            f"{duration(seconds['plain'])}",
        )
    ]


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
