"""Resuming a run: find the checkpoint, the same on all ranks, and restore the trainer from it."""

import dataclasses
import os
from pathlib import Path

from accelerate import Accelerator

from flowers import console
from flowers.config.train import TrainConfig
from flowers.distributed import from_main
from flowers.errors import CheckpointError, ModelError
from flowers.files import explain_os_error, remove
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.parsing import parse_json, read_mapping
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
        history.replace(lines)


def take_best(run_dir: Path, resumed: Checkpoint) -> None:
    """Make sure that ``best/`` is there and whole: copy it from the other run folder, or rebuild it from a checkpoint.

    Where neither can be done, the next model will be the best, and a warning says so.
    """

    def take() -> bool:
        if resumed.progress.best_step is None or (is_own(run_dir, resumed) and _load(run_dir / "best") is not None):
            return True
        bundle = _load(resumed.path.parent.parent / "best")
        if bundle is None or not _is_best(bundle, resumed):  # damaged, or that run has continued since
            return rebuild_best(run_dir, resumed)
        save_bundle(bundle, run_dir / "best")
        return True

    if not from_main(take):
        console.warn("the best model so far is not at hand: the best from here on will be kept")
        progress = resumed.progress
        progress.best_step = progress.best_top1 = progress.best_loss = None


def is_whole(run_dir: Path, resumed: Checkpoint, has_report: bool) -> bool:
    """True if a finished run has all that its last start had to leave; a damaged ``best/`` is rebuilt if possible.

    Args:
        has_report: a report belongs to it.

    Raises:
        CheckpointError: ``best/`` is gone or damaged, and no checkpoint holds that model.
    """
    best = _load(run_dir / "best")
    if best is None or not _is_best(best, resumed):
        if not rebuild_best(run_dir, resumed):
            raise CheckpointError(
                f"{run_dir} is finished, but its best/ is gone or damaged and no checkpoint holds that model: use the "
                f"model of the last step, --checkpoint {run_dir / 'last'}, or train again with another --output-dir"
            )
        best = load_bundle(run_dir / "best")
    figures = read_mapping(run_dir / "metrics.json").get("valid")
    if not isinstance(figures, dict):
        return False
    own = {name.removeprefix("valid_"): value for name, value in best.metrics.items()}
    if {name: figures.get(name) for name in own} != own:
        return False
    # A start that was killed while it wrote the report has the figures alone.
    return _load(run_dir / "last") is not None and (not has_report or (run_dir / "report.html").is_file())


def rebuild_best(run_dir: Path, resumed: Checkpoint) -> bool:
    """Write ``best/`` anew if a checkpoint was taken at its step; its figures stand in the history.

    Returns:
        False if that cannot be done.
    """
    step = resumed.progress.best_step
    try:
        (path,) = [path for path in list_checkpoints(resumed.path.parent.parent) if path.name == f"step-{step:08d}"]
        found = load_checkpoint(path)
        lines = [parse_json(line) for line in (found.history or b"").splitlines()]
        (line,) = [line for line in lines if line["event"] == "valid" and line["step"] == step]
    except (CheckpointError, ValueError, LookupError, TypeError):
        return False
    figures = {f"valid_{name}": line[name] for name in line if name not in ("event", "step", "epoch", "train_loss")}
    state = dict(found.bundle.state_dict)
    average = found.tensors.get("average", {})
    prefix = "" if average.keys() <= state.keys() else "head."  # on cached features the head alone is averaged
    state.update({prefix + name: tensor for name, tensor in average.items()})
    best = dataclasses.replace(found.bundle, metrics=figures, state_dict=state)
    if not _is_best(best, resumed):
        return False
    remove(run_dir / "best")
    save_bundle(best, run_dir / "best")
    console.warn(f"{run_dir / 'best'} was gone or damaged: rebuilt from {found.path.name}")
    return True


def _load(folder: Path) -> Bundle | None:
    """A model of the run; None if it is gone or damaged."""
    try:
        return load_bundle(folder)
    except ModelError:
        return None


def _is_best(bundle: Bundle, resumed: Checkpoint) -> bool:
    """True if a bundle has the figures of the best model at a checkpoint."""
    progress, metrics = resumed.progress, bundle.metrics
    return (metrics.get("valid_top1"), metrics.get("valid_loss")) == (progress.best_top1, progress.best_loss)


def is_own(run_dir: Path, resumed: Checkpoint) -> bool:
    """True if a checkpoint belongs to this run folder, not to another."""
    return resumed.path.parent.parent.resolve() == run_dir.resolve()
