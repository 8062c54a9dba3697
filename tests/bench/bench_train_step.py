"""One training step of the full network: ours against the plain float32 loop that people copy.

    python tests/bench/bench_train_step.py                          # EfficientNet-Lite0, batch 32, at 224 and 176 px
    python tests/bench/bench_train_step.py --no-compile             # compiling takes a minute or two at first

The plain loop: contiguous float32, eager, AdamW, cross-entropy. Ours are runs as jobs/train.py sets them up, with
--finetune full and the flags named; only the batch is the same one every time, so no image is read or decoded. Every
way lives in a process of its own and they take turns, a few steps each.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import Row, contestants, rate, run_alone, take_turns, times_faster

NUM_CLASSES = 102


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 176])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    rows = []
    for size in options.sizes:
        task = (options.model, size, options.batch_size, options.steps)
        ways = {"plain": (plain_step, *task)}
        ours = our_ways(options.compile)
        ways |= {name: (our_step, flags, *task) for name, flags in ours.items()}
        if "bf16" in ours:
            ways["onednn"] = (our_step_with_onednn_gradients, ours["bf16"], *task)
        with contestants(ways) as processes:
            seconds = take_turns(processes, options.rounds)
        images = options.steps * options.batch_size
        plain = rate(images, seconds["plain"])
        for name in ours:
            rows.append(
                Row(
                    f"training step of all {options.model}, {size} px, batch {options.batch_size}, {name}",
                    rate(images, seconds[name]),
                    f"{times_faster(seconds['plain'], seconds[name])} the plain float32 loop, {plain}",
                )
            )
        if "bf16" in ours:
            rows.append(
                Row(
                    f"training step of all {options.model}, {size} px, batch {options.batch_size}, bf16",
                    rate(images, seconds["bf16"]),
                    f"{times_faster(seconds['onednn'], seconds['bf16'])} the same step with oneDNN's gradients of "
                    f"depthwise convolutions, {rate(images, seconds['onednn'])}",
                )
            )
    return rows


def our_ways(compiled: bool) -> dict[str, list[str]]:
    """Names and flags of the ways to compare: bf16 only where the CPU multiplies it, for elsewhere it is emulated."""
    from flowers.machine import cpu_has_bf16

    ways = {"float32": ["--mixed-precision", "no"]}
    if cpu_has_bf16():
        ways["bf16"] = ["--mixed-precision", "bf16"]
    if compiled:
        fastest, flags = list(ways.items())[-1]
        ways[f"{fastest}, compiled"] = [*flags, "--compile"]
    return ways


def plain_step(model: str, size: int, batch_size: int, steps: int) -> Callable[[], None]:
    """The loop that people copy."""
    import torch
    from torch import nn

    from flowers.machine import cpus_per_process
    from flowers.models.backbones import build_backbone

    torch.set_num_threads(cpus_per_process())
    backbone = build_backbone(model)
    network = nn.Sequential(backbone.network, nn.Linear(backbone.num_features, NUM_CLASSES)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss_fn = nn.CrossEntropyLoss()
    images = torch.randn(batch_size, 3, size, size)
    targets = torch.randint(0, NUM_CLASSES, (batch_size,))

    def turn() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(network(images), targets)
            loss.backward()
            optimizer.step()
            loss.item()

    return turn


def our_step(flags: list[str], model: str, size: int, batch_size: int, steps: int) -> Callable[[], None]:
    """A step of a run that jobs/train.py would do, on a batch that is there already."""
    trainer, batch = resident_trainer([*flags, "--model", model, "--train-size", size, "-b", batch_size])

    def turn() -> None:
        for _ in range(steps):
            trainer.step([batch], batch_size)
        trainer.read_losses()  # waits for the device, as training does each --log-interval steps

    return turn


def resident_trainer(flags: list[object]) -> tuple["Trainer", "Batch"]:  # noqa: F821
    """A trainer of the whole network as jobs/train.py sets it up, and a random batch that lies on its device."""
    import torch

    from flowers import cli, distributed
    from flowers.config.train import TrainConfig
    from flowers.data.folders import load_image_folders
    from flowers.data.loaders import Batch
    from flowers.stopping import StopRequest
    from flowers.training.flags import check_flags
    from flowers.training.session import Session
    from flowers.training.train import build_batches, prepare_stage
    from flowers.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as temporary:
        data_dir, run_dir = draw_data(Path(temporary, "data")), Path(temporary, "run")
        flags = [*flags, "--data-dir", data_dir, "--output-dir", run_dir, "--finetune", "full", "-j", 0]
        config = cli.parse(TrainConfig, list(map(str, flags)))
        check_flags(config)
        accelerator = distributed.start(config.mixed_precision)
        data = load_image_folders(data_dir)
        with contextlib.redirect_stdout(None):
            session = Session(accelerator, data, StopRequest(run_dir / "stop"))
            stage = prepare_stage(config, session, resumed=None)
            trainer = Trainer(stage, build_batches(stage))
    size, count = trainer.config.train_size, config.batch_size
    batch = Batch(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8),
        torch.randint(0, len(data.classes.folders), (count,)),
        torch.ones(count),
        torch.zeros(count, dtype=torch.int64),
    )
    return trainer, Batch(*(tensor.to(accelerator.device) for tensor in batch))


def our_step_with_onednn_gradients(*args) -> Callable[[], None]:
    """As ``our_step``, without ``flowers.models.depthwise``."""
    from flowers.models import heads

    heads.fast_depthwise = contextlib.nullcontext
    return our_step(*args)


def draw_data(folder: Path) -> Path:
    """A set that a run can be set up with: one grey picture a class and split."""
    from PIL import Image

    for split in ("train", "valid"):
        for index in range(NUM_CLASSES):
            path = folder / split / str(index) / "0.jpg"
            path.parent.mkdir(parents=True)
            Image.new("L", (32, 32), index).save(path)
    return folder


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
