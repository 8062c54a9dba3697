"""Going on with a run: which checkpoint, the same on all ranks, and the run put back to where it was taken."""

import dataclasses
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from flowers import console
from flowers.config.train import TrainConfig
from flowers.distributed import from_main
from flowers.errors import CheckpointError, ModelError
from flowers.files import old_name, write_atomically
from flowers.models.bundle import load_bundle, save_bundle
from flowers.training.checkpoint import Checkpoint, Progress, list_checkpoints, load_checkpoint, newest_checkpoint
from flowers.training.flags import uses_features
from flowers.training.head_search import TUNED
from flowers.training.state import Run


def find_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """The checkpoint that ``--resume`` means, if any.

    A path says where a run begins. Started again, it goes on with what it has saved itself since.

    Raises:
        CheckpointError: ``never``, and there is a run; or a path that holds no sound checkpoint, or an older one of
            the run itself.
    """
    run_dir = config.output_dir
    if config.resume == "auto":
        return newest_checkpoint(run_dir)
    if config.resume == "never":
        if list_checkpoints(run_dir):
            raise CheckpointError(f"{run_dir} holds a run and --resume is never; give another --output-dir")
        return None
    path = Path(config.resume)
    is_own = path.resolve().is_relative_to(run_dir.resolve())
    if not is_own and (own := newest_checkpoint(run_dir)) is not None:
        console.warn(f"{run_dir} has checkpoints of its own: going on from {own.path.name}, not from --resume {path}")
        return own
    found = newest_checkpoint(path) if (path / "checkpoints").is_dir() else load_checkpoint(path)
    if found is None:
        raise CheckpointError(f"--resume {path}: holds no checkpoint")
    ahead = [newer for newer in list_checkpoints(run_dir) if newer.name > found.path.name]
    if ahead and path.resolve() != run_dir.resolve():
        raise CheckpointError(
            f"--resume {path}: {run_dir} is further already ({ahead[0].name}); give another --output-dir"
        )
    return found


def agree_on_checkpoint(config: TrainConfig, accelerator: Accelerator) -> Checkpoint | None:
    """What rank 0 finds; the other ranks load that one, whatever they see on a file system that lags behind.

    Raises:
        CheckpointError: as ``find_checkpoint``, on rank 0.
        PeerError: on the other ranks then.
    """
    found: list[Checkpoint | None] = [None]

    def find() -> Path | None:
        found[0] = find_checkpoint(config)
        return found[0] and found[0].path

    path = from_main(find)
    return found[0] if accelerator.is_main_process or path is None else load_checkpoint(path)


def as_begun(config: TrainConfig, resumed: Checkpoint) -> TrainConfig:
    """The config with what was searched for when the run began, in the place of the request to search."""
    searched = TUNED if config.tune_head and uses_features(config) else ("lr",) if config.lr == "auto" else ()
    found = {name: resumed.fingerprint[f"--{name.replace('_', '-')}"] for name in searched}
    return dataclasses.replace(config, **found)


def restore(run: Run, resumed: Checkpoint) -> None:
    """Put a run back to where its checkpoint was taken; the weights are in the network already."""
    accelerator, run_dir = run.accelerator, run.history.path.parent
    run.progress = resumed.progress
    run.optimizer.load_state_dict(resumed.tensors["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(resumed.tensors["scaler"])
    if run.average is not None:
        run.average.load_state_dict(resumed.tensors["average"])
    sums, rank = resumed.progress.rank_sums, accelerator.process_index
    if len(sums) == accelerator.num_processes:
        run.sums = sums[rank]
    elif rank == 0:  # another number of processes: only the total matters
        run.sums = [sum(column) for column in zip(*sums, strict=True)]
    if accelerator.is_main_process:
        set_damaged_aside(run_dir, resumed)
        take_history(run, resumed)
    take_best(run, resumed)
    console.say(f"resumed from {resumed.path.name}: {run.progress.step} of {run.plan.total_steps} steps are done")


def set_damaged_aside(run_dir: Path, resumed: Checkpoint) -> None:
    """Rename newer checkpoints that could not be read: they must not count among those that are kept."""
    if not is_own(run_dir, resumed):
        return
    for path in list_checkpoints(run_dir):
        if path.name > resumed.path.name:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)


def take_history(run: Run, resumed: Checkpoint) -> None:
    """The lines up to the checkpoint; those of a run in another folder are copied."""
    own, other = run.history.path, resumed.path.parent.parent / "history.jsonl"
    if not is_own(own.parent, resumed):
        with write_atomically(own, "wb") as file:
            file.write(other.read_bytes() if other.exists() else b"")
    run.history.cut(resumed.progress.history_bytes)


def take_best(run: Run, resumed: Checkpoint) -> None:
    """See to it that ``best/`` is there: that of the run in another folder, or else the next model will be the best."""
    progress, best = run.progress, run.history.path.parent / "best"

    def take() -> bool:
        if progress.best_step is None or best.exists() or old_name(best).exists():
            return True
        try:
            bundle = load_bundle(resumed.path.parent.parent / "best")
        except ModelError:
            return False
        known = (bundle.metrics.get("valid_top1"), bundle.metrics.get("valid_loss"))
        if known != (progress.best_top1, progress.best_loss):  # that run has gone on since
            return False
        save_bundle(bundle, best)
        return True

    if not from_main(take):
        console.warn("the best model so far is not at hand: the best from here on will be kept")
        fresh = Progress()
        progress.best_step, progress.best_top1, progress.best_loss = fresh.best_step, fresh.best_top1, fresh.best_loss


def is_own(run_dir: Path, resumed: Checkpoint) -> bool:
    """Whether a checkpoint is the run's own, not that of a run in another folder."""
    return resumed.path.parent.parent.resolve() == run_dir.resolve()
