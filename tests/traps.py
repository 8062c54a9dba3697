"""Traps for training jobs in processes of their own: killed, stopped or spoilt at a chosen point.

The names that traps replace stand here alone. They are for ``Job(..., before=trap)``: what a trap replaces stays
replaced until the process ends.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from jobs_in_processes import die


def nothing(*_: object) -> None:
    """Default of ``around_step``."""


def around_step(before: Callable = nothing, after: Callable = nothing, into: object = setattr) -> None:
    """Call functions with (trainer, micro_batches) around each training step.

    Args:
        into: sets an attribute; pass ``monkeypatch.setattr`` in the process of the tests.
    """
    from flowers.training.trainer import Trainer

    original = Trainer.step

    def step(trainer, micro_batches, real_images):
        before(trainer, micro_batches)
        original(trainer, micro_batches, real_images)
        after(trainer, micro_batches)

    into(Trainer, "step", step)


def wrap_loss(wrapper: Callable) -> None:
    """Replace the training loss by ``wrapper(original)``."""
    from flowers.training import trainer

    trainer.weighted_loss = wrapper(trainer.weighted_loss)


def record_steps(log: str) -> None:
    """Write down each step's images, views and learning rate, a JSON line a micro-batch."""

    def record(trainer, micro_batches):
        with open(log, "a") as file:
            for batch in micro_batches:
                real = batch.weights > 0
                line = {
                    "step": trainer.progress.step,
                    "indices": batch.indices[real].tolist(),
                    "pixels": [int(image.long().sum()) for image in batch.images[real]],
                    "lr": trainer.schedule.lr(trainer.progress.step),
                }
                file.write(json.dumps(line) + "\n")

    around_step(before=record)


def recorded(*logs: Path) -> dict[int, tuple]:
    """By step: learning rate, and the set of (image, sum of its pixels) over all ranks and micro-steps."""
    steps: dict[int, tuple] = {}
    for line in (json.loads(text) for log in logs for text in log.read_text().splitlines()):
        rate, images = steps.setdefault(line["step"], (line["lr"], []))
        assert rate == line["lr"]
        images += zip(line["indices"], line["pixels"], strict=True)
    return {step: (rate, sorted(images)) for step, (rate, images) in steps.items()}


def record_and_stop(log: str, step: int) -> None:
    """Record, and touch the run's stop file when a step is reached."""
    from flowers import stopping

    stopping.LOOK_EVERY_S = 0.0

    def stop(trainer, _):
        if trainer.progress.step + 1 == step and trainer.accelerator.is_main_process:
            (trainer.stage.run_dir / "stop").touch()

    record_steps(log)
    around_step(after=stop)


def record_rank(prefix: str) -> None:
    """As ``record_steps``, each rank into a file of its own."""
    record_steps(f"{prefix}-rank{os.environ.get('RANK', '0')}.jsonl")


def record_rank_and_stop(prefix: str, step: int) -> None:
    """As ``record_and_stop``, each rank into a file of its own."""
    record_and_stop(f"{prefix}-rank{os.environ.get('RANK', '0')}.jsonl", step)


def record_waits(prefix: str) -> None:
    """Write down after which steps the training loop waits for the other ranks, a number a line, a file a rank."""
    from flowers.training import trainer

    original, steps = trainer.rows_of_ranks, []

    def rows_of_ranks(accelerator, row):
        with open(f"{prefix}-rank{os.environ['RANK']}.txt", "a") as file:
            file.write(f"{len(steps)}\n")
        return original(accelerator, row)

    trainer.rows_of_ranks = rows_of_ranks
    around_step(after=lambda *_: steps.append(1))


def slow_steps(prefix: str, seconds: float) -> None:
    """As ``record_waits``, where rank 1's steps seem to take some seconds more than they do."""
    import time

    original, steps = time.monotonic, []
    record_waits(prefix)
    around_step(after=lambda *_: steps.append(1))
    if os.environ["RANK"] == "1":
        time.monotonic = lambda: original() + seconds * len(steps)


def die_in_step(number: int) -> None:
    """Be killed in the middle of micro-step ``number`` of this start."""
    seen = []

    def wrapper(original):
        def trap(*args):
            seen.append(1)
            if len(seen) == number:
                die()
            return original(*args)

        return trap

    wrap_loss(wrapper)


def die_in_save(call: str) -> None:
    """Be killed inside a save: before this call of the second one."""
    import shutil

    import torch

    from flowers import files
    from flowers.training import checkpoint

    seen = []

    def trap(original):
        def wrapped(*args, **kwargs):
            if "checkpoints" in str(args[0]) or "checkpoints" in str(args[-1]):
                seen.append(1)
                if len(seen) == 2:
                    die()
            return original(*args, **kwargs)

        return wrapped

    module, name = {
        "write weights": (checkpoint, "write_bundle"),
        "write optimizer": (torch, "save"),
        "rename": (files.os, "rename"),
        "remove old": (shutil, "rmtree"),
    }[call]
    setattr(module, name, trap(getattr(module, name)))


def die_at_the_end(where: str) -> None:
    """Be killed after the last step: before the last model, the figures or the report is written (on rank 0)."""
    from flowers.training import final_report, train, trainer

    module, name = {
        "last": (trainer, "save_bundle"),
        "metrics.json": (train, "write_json"),
        "report.html": (final_report, "write_model_report"),
    }[where]
    original = getattr(module, name)

    def trap(*args, **kwargs):
        if any(isinstance(value, Path) and value.name == where for value in args):
            die()
        return original(*args, **kwargs)

    setattr(module, name, trap)


def spoil_an_update(step: int) -> None:
    """After this update a weight is NaN, though the loss that led to it was finite."""

    def spoil(trainer, _):
        if trainer.progress.step + 1 == step:
            next(trainer.network.parameters()).data.view(-1)[0] = float("nan")

    around_step(after=spoil)


def spoil_a_loss(rank: str, number: int) -> None:
    """On one rank the loss of this micro-step is NaN."""
    seen = []

    def wrapper(original):
        def spoilt(*args):
            seen.append(1)
            broken = os.environ["RANK"] == rank and len(seen) == number
            return original(*args) * (float("nan") if broken else 1.0)

        return spoilt

    wrap_loss(wrapper)


def save_first_weights(path: str) -> None:
    """Write the weights with which a run begins."""
    from safetensors.torch import save_file

    from flowers.training import train

    original = train.build_model

    def trapped(*args):
        model = original(*args)
        save_file(model.classifier.state_dict(), path)
        return model

    train.build_model = trapped


def write_down_pieces(signal_at: int | None, number: int) -> None:
    """Write down the pieces of features that a job writes, and at one of them send it a signal."""
    from flowers.files import write_atomically
    from flowers.training import features

    written: list[str] = []

    def write(path: Path, *mode: str):
        if path.parent.suffix == ".parts" and path.suffix == ".npz":
            if len(written) == signal_at:
                os.kill(os.getpid(), number)
            written.append(path.parent.name + "/" + path.name)
            Path(f"written-{os.environ.get('RANK', 0)}.txt").write_text("\n".join(written))
        return write_atomically(path, *mode)

    features.write_atomically = write


def choose_precision(name: str) -> None:
    """Set the precision as `accelerate launch` does."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = name
