"""One training job: from flags to a run folder with a model in it, started afresh or gone on with."""

import contextlib
import dataclasses
from collections.abc import Iterator

from accelerate import Accelerator

from flowers import console, distributed
from flowers.config.train import TrainConfig
from flowers.data.folders import ImageFolders, load_image_folders
from flowers.errors import StoppedError
from flowers.files import make_folder
from flowers.stopping import StopRequest
from flowers.training import checkpoint as checkpoints
from flowers.training.checkpoint import lock_run
from flowers.training.flags import check_flags
from flowers.training.job import Job
from flowers.training.resume import agree_on_checkpoint
from flowers.training.setup import HEAD_STAGE, settle_bad_images, settle_splits

WAIT_S = 2 * 3600.0
"""How long ranks wait for one: it may join the features of millions of images, or read more slowly than the others.

On GPUs torch's own limit is ten minutes. A rank that is dead is noticed by the launcher, at once.
"""
LAST_STAGE_FLAGS = {
    "epochs", "optimizer", "lr", "weight_decay", "schedule", "warmup_epochs", "max_grad_norm", "mixup_alpha",
    "cutmix_alpha", "mix_off_epochs", "model_ema_decay", "layer_decay", "drop_path", "freeze_bn", "patience",
    "train_size", "first_train_size", "eval_every", "scale", "auto_augment",
}  # fmt: skip
"""Of a staged run these are about its last stage; its head is trained with the defaults."""


def train(config: TrainConfig) -> int:
    """Train as the config says, in the run folder it names.

    Returns:
        0; a stop on request is raised, after saving.

    Raises:
        FlowersError: anything that the user can mend, in one line.
    """
    check_flags(config)
    config = dataclasses.replace(config, output_dir=config.run_dir)
    with opened(config) as (accelerator, data, stop):
        if config.finetune == "staged" and agree_on_checkpoint(config, accelerator) is None:
            train_head_stage(config, accelerator, data, stop)
        Job(config, accelerator, data, stop).train()
    return 0


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[tuple[Accelerator, ImageFolders, StopRequest]]:
    """Inside the block the run folder is ours, the processes are one group, and signals ask to stop.

    Raises:
        FlowersError: the folder is in use or cannot be written, the data or the launch is not as it should be.
    """
    run_dir = config.output_dir
    with contextlib.ExitStack() as stack:
        if console.is_main_process():
            make_folder(run_dir)
            stack.enter_context(lock_run(run_dir))
            for folder in (run_dir, run_dir / HEAD_STAGE):
                checkpoints.remove_leftovers(folder)
            console.log_to(run_dir / "log.txt")
        data = load_image_folders(
            config.data_dir,
            class_names=config.class_names,
            val_fraction=config.val_fraction,
            seed=config.seed,
            split_file=run_dir / "split.json",
            # Of a start that failed before its first checkpoint, on a broken image say, which is removed by now.
            anew=not (checkpoints.list_checkpoints(run_dir) or checkpoints.list_checkpoints(run_dir / HEAD_STAGE)),
        )
        stop = stack.enter_context(StopRequest(run_dir / "stop", config.max_hours))
        accelerator = distributed.start(
            config.mixed_precision,
            config.log_with,
            str(run_dir),
            timeout_s=WAIT_S,
            default_precision="no" if config.finetune == "head" else None,
        )
        data = settle_splits(data)
        try:
            yield accelerator, data, stop
        except StoppedError:  # on all ranks alike; after any other error the ranks are no longer in step
            accelerator.end_training()
            raise
        accelerator.end_training()


def train_head_stage(config: TrainConfig, accelerator: Accelerator, data: ImageFolders, stop: StopRequest) -> None:
    """What a staged run begins with, unless it is done already.

    The images are looked at before it: the head itself would not find that one of test/ is broken.
    """
    data = settle_bad_images(config, accelerator, data, None)
    Job(head_stage(config), accelerator, dataclasses.replace(data, test=None), stop).train(last_stage=False)
    accelerator.free_memory()


def head_stage(config: TrainConfig) -> TrainConfig:
    """The first stage of a staged run: the head on cached features, in a folder of its own, by its own defaults."""
    own = {field.name: field.default for field in dataclasses.fields(config) if field.name in LAST_STAGE_FLAGS}
    folder = config.output_dir / HEAD_STAGE
    config = dataclasses.replace(config, finetune="head", output_dir=folder, log_with=None, report=False)
    return dataclasses.replace(config, resume="auto", **own)
