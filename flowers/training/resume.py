"""Resuming a run: find the checkpoint, the same on all ranks, and restore the trainer from it."""

import os
from pathlib import Path

from accelerate import Accelerator

from flowers import console
from flowers.config.train import TrainConfig
from flowers.distributed import from_main
from flowers.errors import CheckpointError, ModelError
from flowers.files import explain_os_error, old_name, remove, write_atomically
from flowers.models.bundle import load_bundle, save_bundle
from flowers.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, newest_checkpoint
from flowers.training.history import History
from flowers.training.trainer import Trainer


def find_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """Find the checkpoint that ``--resume`` asks for, if any.

    A path says where a run begins; started again, the run resumes from its own newer checkpoints.

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
        console.warn(f"{run_dir} has checkpoints of its own: resuming from {own.path.name}, not from --resume {path}")
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
    """Load the checkpoint that rank 0 finds; other ranks may still see an older listing on a network file system.

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


def restore(trainer: Trainer, resumed: Checkpoint) -> None:
    """Restore a trainer to where its checkpoint was taken; the weights are in the network already."""
    accelerator, run_dir, progress = trainer.accelerator, trainer.stage.run_dir, resumed.progress
    trainer.progress = progress
    trainer.optimizer.load_state_dict(resumed.tensors["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(resumed.tensors["scaler"])
    if trainer.average is not None:
        trainer.average.load_state_dict(resumed.tensors["average"])
    sums, rank = progress.rank_sums, accelerator.process_index
    if len(sums) == accelerator.num_processes:
        trainer.sums = sums[rank]
    elif rank == 0:  # another number of processes: only the total matters
        trainer.sums = [sum(column) for column in zip(*sums, strict=True)]
    if accelerator.is_main_process:
        set_damaged_aside(run_dir, resumed)
        take_history(trainer.history, resumed)
    take_best(run_dir, resumed)
    total_steps = trainer.stage.total_steps
    console.say(f"resumed from {resumed.path.name}: {progress.step} of {total_steps} steps are done")


def set_damaged_aside(run_dir: Path, resumed: Checkpoint) -> None:
    """Rename newer checkpoints that could not be read, so that they do not count towards ``--keep``."""
    if not is_own(run_dir, resumed):
        return
    for path in list_checkpoints(run_dir):
        if path.name > resumed.path.name:
            aside = path.with_name(f"{path.name}.damaged")
            remove(aside)
            os.rename(path, aside)


def take_history(history: History, resumed: Checkpoint) -> None:
    """Bring the history to where the checkpoint was taken, from the copy in it if need be.

    Raises:
        FlowersError: the file cannot be read or written.
    """
    of_run, size_bytes = resumed.path.parent.parent / history.path.name, resumed.progress.history_bytes
    try:
        found = of_run.read_bytes()[:size_bytes]
    except FileNotFoundError:
        found = b""
    except OSError as error:
        raise explain_os_error(error, of_run) from error
    lines = found if resumed.history is None else resumed.history
    if found != lines:
        console.warn(f"{of_run} was damaged or gone: taken from the checkpoint")
    elif len(found) < size_bytes:  # an earlier version wrote the checkpoint, without a copy
        console.warn(f"{of_run} was cut or is gone: the lines before step {resumed.progress.step} are lost")
    if is_own(history.path.parent, resumed) and found == lines:
        history.cut(size_bytes)
    else:
        with write_atomically(history.path, "wb") as file:
            file.write(lines)


def take_best(run_dir: Path, resumed: Checkpoint) -> None:
    """Make sure that ``best/`` exists: copy it from the other run folder, or else let the next model be the best."""
    progress, best = resumed.progress, run_dir / "best"

    def take() -> bool:
        if progress.best_step is None or best.exists() or old_name(best).exists():
            return True
        try:
            bundle = load_bundle(resumed.path.parent.parent / "best")
        except ModelError:
            return False
        known = (bundle.metrics.get("valid_top1"), bundle.metrics.get("valid_loss"))
        if known != (progress.best_top1, progress.best_loss):  # that run has continued since
            return False
        save_bundle(bundle, best)
        return True

    if not from_main(take):
        console.warn("the best model so far is not at hand: the best from here on will be kept")
        progress.best_step = progress.best_top1 = progress.best_loss = None


def is_own(run_dir: Path, resumed: Checkpoint) -> bool:
    """True if a checkpoint belongs to this run folder, not to another."""
    return resumed.path.parent.parent.resolve() == run_dir.resolve()
