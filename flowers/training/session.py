"""An open run folder: held against other jobs, with its data listed, its processes connected and signals caught."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from flowers import console, distributed
from flowers.config.train import TrainConfig
from flowers.data.added import add_to_train, read_added
from flowers.data.choice import Choice, refuse_unreadable_folders
from flowers.data.corrections import read_all_corrections
from flowers.data.folders import ImageFolders, load_image_folders
from flowers.data.formats import limits
from flowers.data.grouping import warn_of_groups
from flowers.data.layout import holds_classes
from flowers.data.paths import readable
from flowers.data.splits import ValidationDraw
from flowers.engines.torch_engine import check_compiler
from flowers.errors import CheckpointError, DataError, StoppedError, UsageError
from flowers.files import make_folder, remove
from flowers.stopping import StopRequest
from flowers.training.bad_images import handle_bad_images, listing_all_faults
from flowers.training.checkpoint import list_checkpoints, lock_run, remove_leftovers
from flowers.training.run_stages import folders

WAIT_S = 2 * 3600.0
"""How long ranks wait for one: it may join the features of millions of images, or read more slowly than the others.

On GPUs torch's own limit is ten minutes. The launcher notices a dead rank at once.
"""


@dataclasses.dataclass(frozen=True)
class Session:
    """An open run folder: the processes, the data as found on disk, and the request to stop.

    Attributes:
        checked: all images were looked at, and those that cannot be read are left out.
    """

    accelerator: Accelerator
    data: ImageFolders
    stop: StopRequest
    checked: bool = False


@contextlib.contextmanager
def open_run(config: TrainConfig, *, needs_valid: bool = True) -> Iterator[Session]:
    """Hold the run folder inside the block, with the data listed, the processes connected and signals caught.

    Args:
        needs_valid: refuse data without validation images.

    Raises:
        FlowersError: the folder is in use, cannot be written or holds results; the data or the launch is wrong.
    """
    run_dir = config.output_dir
    limits.allow_pixels(config.max_pixels)
    if holds_classes(run_dir, config.data_dir):
        raise UsageError(
            f"--output-dir {readable(run_dir)}: holds the class folders of the data, and those of a run would be taken "
            "for classes next time; give another folder"
        )
    with contextlib.ExitStack() as stack:
        if console.is_main_process():
            is_new = not run_dir.exists()
            make_folder(run_dir)
            stack.enter_context(lock_run(run_dir))
            _refuse_to_replace(run_dir)
            if is_new:
                stack.enter_context(_removed_on_failure(run_dir))
            for folder in folders(run_dir):
                remove_leftovers(folder)
            console.log_to(run_dir / "log.txt")
        data = _list_images(config)
        stop = stack.enter_context(StopRequest(run_dir / "stop", config.max_hours))
        if config.deterministic:
            stack.enter_context(distributed.deterministic_kernels())
        accelerator = distributed.start(
            config.mixed_precision,
            timeout_s=WAIT_S,
            default_precision="no" if config.finetune == "head" else None,
        )
        if config.compile and accelerator.device.type == "cpu":
            check_compiler("--compile", "leave it out")
        if needs_valid and not data.valid:
            raise DataError("there are no validation images: add valid/, or let --val-fraction draw some of train/")
        try:
            yield Session(accelerator, data, stop)
        except StoppedError:  # on all ranks alike; after any other error the ranks are no longer in step
            if accelerator.is_main_process:
                stop.clear()
            accelerator.end_training()
            raise
        accelerator.end_training()


def check_images(config: TrainConfig, session: Session) -> Session:
    """The session without images that cannot be read, see ``handle_bad_images``; stages that share it look but once.

    Raises:
        DataError: there are such images, and ``--on-bad-image`` is fail.
    """
    if session.checked:
        return session
    data = handle_bad_images(config, session.accelerator, session.data, None)
    return dataclasses.replace(session, data=data, checked=True)


def _list_images(config: TrainConfig) -> ImageFolders:
    """The data set as it is on disk, with corrected labels, added photos and the validation split of the run.

    Raises:
        FlowersError: it cannot be trained on, or a table does not fit it.
    """
    corrections = read_all_corrections(config.corrections or ())
    tables = [read_added(table, Choice(exclude=config.exclude), corrections) for table in config.add or ()]
    # A start that failed before its first checkpoint, on a broken image say, may have left a split.
    anew = not _has_checkpoints(config.output_dir)
    draw = ValidationDraw(config.val_fraction, config.seed, config.output_dir / "split.json", anew, config.group)
    choice = Choice(exclude=config.exclude)
    with listing_all_faults(config):
        data = load_image_folders(
            config.data_dir, class_names=config.class_names, draw=draw, choice=choice, corrections=corrections
        )
        if config.on_bad_image == "fail":
            refuse_unreadable_folders(choice)
    if tables:
        data = add_to_train(data, tables)
    if config.group:
        warn_of_groups({name: samples.paths for name, samples in data.splits.items()}, config.group)
    return data.at_most(config.max_images, config.max_train_images, config.seed)


@contextlib.contextmanager
def _removed_on_failure(run_dir: Path) -> Iterator[None]:
    """Remove a run folder that the block fails to put to use; checkpoints and whole features are worth keeping."""
    try:
        yield
    except StoppedError:
        raise
    except Exception:
        if not _has_checkpoints(run_dir) and not any(run_dir.rglob("features/*.npy")):
            console.log_to(None)
            remove(run_dir)
        raise


def _refuse_to_replace(run_dir: Path) -> None:
    """Keep the results of a finished run whose checkpoints somebody has removed, to save room say.

    Raises:
        CheckpointError: there are such results, and a new run would replace them.
    """
    if not list_checkpoints(run_dir) and (run_dir / "metrics.json").exists():
        raise CheckpointError(
            f"{run_dir} holds the results of a finished run, and no checkpoint of it any more: its model is in best/; "
            "to train anew, give another --output-dir"
        )


def _has_checkpoints(run_dir: Path) -> bool:
    return any(map(list_checkpoints, folders(run_dir)))
