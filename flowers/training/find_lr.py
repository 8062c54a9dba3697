"""The job that looks for a learning rate: a run set up as for training, and only tried."""

import dataclasses

from flowers import console
from flowers.config.find_lr import FindLrConfig
from flowers.config.train import TrainConfig
from flowers.data.paths import readable
from flowers.errors import CheckpointError, UsageError
from flowers.training.flags import check_flags
from flowers.training.job import Job
from flowers.training.lr_search import SPAN
from flowers.training.resume import agree_on_checkpoint
from flowers.training.train import opened, train_head_stage


def find_lr(config: FindLrConfig) -> int:
    """Test learning rates as the flags say; the curve is written, and in the run folder stays what training needs too.

    That is the cache of features, and of a staged run the head of its first stage.

    Returns:
        0, with a suggestion or without.

    Raises:
        FlowersError: anything that the user can mend, in one line.
    """
    check_flags(config)
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    train_config = TrainConfig(**{**flags, "output_dir": config.run_dir, "log_with": None})
    with opened(train_config) as (accelerator, data, stop):
        if agree_on_checkpoint(train_config, accelerator) is not None:
            raise CheckpointError(
                f"{readable(config.run_dir)} holds a run, begun with a learning rate of its own; give another "
                "--output-dir"
            )
        if config.finetune == "staged":
            train_head_stage(train_config, accelerator, data, stop)
        job = Job(train_config, accelerator, data, stop)
        low, high = config.min_lr or job.config.lr / SPAN, config.max_lr or job.config.lr * SPAN
        if low >= high:
            raise UsageError(f"the rates would go from {low:g} to {high:g}: choose --min-lr and --max-lr")
        job.describe()
        curve = job.search_lr(job.build_run(job.build_source()), low, high, config.steps, config.output)
    lr = curve.suggestion or job.config.lr
    console.say(f"next:  the same flags to jobs/train.py, with --lr {lr:g}")
    return 0
