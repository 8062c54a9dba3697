"""What a training job says before its first step and after its last one."""

from accelerate import Accelerator

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.folders import ImageFolders
from flowers.data.order import Order
from flowers.models.heads import Classifier
from flowers.training.flags import uses_features
from flowers.training.state import Plan


def say_plan(
    config: TrainConfig,
    data: ImageFolders,
    classifier: Classifier,
    crop: int,
    order: Order,
    plan: Plan,
    accelerator: Accelerator,
    searches_lr: bool,
) -> None:
    """What will be trained on what, with the arithmetic of batches and steps.

    Args:
        crop: side of the images at evaluation, pixels.
        searches_lr: whether the learning rate is yet to be found.
    """
    trainable = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    total = sum(p.numel() for p in classifier.parameters())
    test = f", {len(data.test)} test" if data.test else ""
    images = f"{len(data.train)} train, {len(data.valid)} valid{test} images, {plan.num_classes} classes"
    how = "head on cached features" if uses_features(config) else config.finetune
    lr = "auto" if searches_lr else f"{plan.peak_lr:g}"
    rows = [
        ("data", f"{images} in {config.data_dir}"),
        ("model", f"{config.model}, weights {config.weights}, {crop} px"),
        ("training", f"{how}: {trainable:,} of {total:,} parameters, {config.optimizer}, lr {lr}"),
        ("batch", f"{order.batch_arithmetic} = {order.global_batch_size} images a step"),
        ("length", f"{plan.steps_per_epoch} steps x {plan.epochs} epochs = {plan.total_steps} steps"),
        ("device", f"{accelerator.device}, precision {accelerator.mixed_precision}"),
        ("run folder", str(config.output_dir)),
    ]
    console.facts("flowers: train", rows)


def say_done(config: TrainConfig, has_test: bool) -> None:
    """What lies where, and what to do with it."""
    run_dir = config.output_dir
    best, report = run_dir / "best", run_dir / "report.html"
    written = [("best model", best), ("figures", run_dir / "metrics.json")]
    if config.report and report.exists():
        written.append(("to look at", report))
    split = ("--split", "test" if has_test else "valid")
    console.done(
        "trained",
        [*written, ("all of the run", run_dir)],
        [
            console.job_command("evaluate", "--checkpoint", best, "--data-dir", config.data_dir, *split),
            console.job_command("predict", "--checkpoint", best, "--input", "PHOTOS", "--output", "predictions.csv"),
        ],
    )
