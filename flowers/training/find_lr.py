"""The learning-rate test job: a stage set up as for training, and only tried."""

import dataclasses

from flowers import console, environment
from flowers.config.find_lr import FindLrConfig
from flowers.config.train import TrainConfig
from flowers.data.paths import readable
from flowers.errors import CheckpointError, UsageError
from flowers.training.continued import continued
from flowers.training.flags import check_flags, with_default_model
from flowers.training.lr_search import SPAN, search_lr
from flowers.training.resume import agree_on_checkpoint
from flowers.training.session import check_images, open_run
from flowers.training.train import build_batches, prepare_stage, save_config, train_head_stage
from flowers.training.trainer import Trainer


def find_lr(config: FindLrConfig) -> int:
    """Test learning rates and write the curve; the run folder keeps the cached features for training to reuse.

    A staged run also keeps the trained head of its first stage.

    Returns:
        0, with a suggestion or without.

    Raises:
        FlowersError: anything that the user can fix, in one line.
    """
    environment.join_step()
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    flags |= {"log_with": None, "min_lr": TrainConfig.min_lr}  # here that of the test
    if config.finetune == "head":
        if config.optimizer == "lbfgs" or config.tune_head:
            which = "--tune-head" if config.tune_head else "--optimizer lbfgs"
            raise UsageError(f"{which} fits a head at once, without a learning rate to look for: leave it out")
        flags["optimizer"] = config.optimizer or "adamw"
    train_config = TrainConfig(**flags)
    check_flags(train_config)
    train_config = continued(train_config)
    train_config = with_default_model(dataclasses.replace(train_config, output_dir=train_config.run_dir), None)
    with open_run(train_config) as session:
        if agree_on_checkpoint(train_config, session.accelerator) is not None:
            raise CheckpointError(
                f"{readable(train_config.output_dir)} holds a run, begun with a learning rate of its own; give another "
                "--output-dir"
            )
        if config.finetune == "staged":
            session = check_images(train_config, session)
            train_head_stage(train_config, session)
        stage = prepare_stage(train_config, session, resumed=None)
        default = stage.config.lr
        low, high = config.min_lr or default / SPAN, config.max_lr or default * SPAN
        if low >= high:
            raise UsageError(f"the rates would go from {low:g} to {high:g}: choose --min-lr and --max-lr")
        save_config(stage)
        stage.describe(searches_lr=config.lr == "auto")
        trainer = Trainer(stage, build_batches(stage))
        curve = search_lr(trainer, low, high, config.steps, config.output)
    console.say(f"next:  the same flags to jobs/train.py, with --lr {curve.suggestion or default:g}")
    return 0
