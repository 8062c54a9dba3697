"""The loop: ``fit`` over epochs, ``train_one_epoch`` over steps, ``evaluate`` over a split.

One process or many, images or cached features, any precision: the loop is the same. What happens at the end of a
step (read the loss, evaluate, save, stop) happens on all ranks at the same step.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console
from flowers.data.loaders import Batch
from flowers.distributed import rows_of_ranks
from flowers.errors import StoppedError, TrainingError, UsageError
from flowers.reports.metrics import LogitTable, Metrics, Tally
from flowers.training.feed import Stopwatch, to_device
from flowers.training.finite import ADVICE, check_finite, last_good
from flowers.training.optimizer import mix, step_seed, weighted_loss
from flowers.training.state import Run

SAY_EVERY_S = 3.0
AGREE_EVERY = 5  # steps between the ranks' votes on stopping; each vote waits for the device


def fit(run: Run) -> None:
    """Train until the plan is fulfilled.

    Raises:
        StoppedError: on request, after saving; the same command goes on from there.
        TrainingError: a loss or the weights are not finite.
    """
    order, progress = run.order, run.progress
    steps_left = run.plan.total_steps - progress.step
    with console.progress("train", steps_left * order.global_batch_size) as meter:
        while not progress.finished:
            meter.describe(f"epoch {progress.epoch + 1}/{run.plan.epochs}")
            train_one_epoch(run, meter)


def train_one_epoch(run: Run, meter: console.Meter) -> None:
    """Train from where the epoch stands to its end."""
    progress, plan, order = run.progress, run.plan, run.order
    epoch, started_s, images = progress.epoch, time.monotonic(), 0
    waiting = Stopwatch()
    batches = to_device(waiting.time(run.train.epoch(epoch, progress.step_in_epoch)), run.accelerator.device)
    while progress.epoch == epoch:
        micro_batches = [next(batches) for _ in range(plan.grad_accum_steps)]
        real = order.real_in_step(progress.step_in_epoch)
        train_step(run, micro_batches, real)
        images += real
        meter.advance(real, wait=waiting.seconds / max(time.monotonic() - started_s, 1e-9))
        end_step(run, meter)
    seconds = time.monotonic() - started_s
    if run.accelerator.is_main_process:
        run.timing.append(
            "epoch",
            epoch=epoch + 1,
            seconds=round(seconds, 3),
            images_per_s=round(images / seconds, 1),
            data_wait_share=round(waiting.seconds / seconds, 4),
        )


def steps_of(run: Run) -> Iterator[tuple[list[Batch], int]]:
    """For trials: each step's micro-batches of this rank and its images over all ranks, from the first epoch on."""
    for epoch in itertools.cycle(range(run.plan.epochs)):
        batches = to_device(iter(run.train.epoch(epoch, 0)), run.accelerator.device)
        for step in range(run.plan.steps_per_epoch):
            yield [next(batches) for _ in range(run.plan.grad_accum_steps)], run.order.real_in_step(step)


def train_step(run: Run, micro_batches: list[Batch], real_images: int) -> None:
    """One update from the micro-batches of this rank; ``real_images`` is their number over all ranks."""
    plan, step, accelerator = run.plan, run.progress.step, run.accelerator
    run.network.train()
    lr = plan.lr(step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    for micro_step, batch in enumerate(micro_batches):
        # Dropout depends on the step alone, so nothing of a generator's state needs saving.
        torch.manual_seed(step_seed(plan.seed, step, micro_step, accelerator.process_index))
        is_last = micro_step == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(run.network):
            images, targets = run.inputs(batch), batch.targets
            if plan.mixes(run.progress.epoch):
                images, targets = mix(
                    images,
                    targets,
                    plan.num_classes,
                    mixup_alpha=plan.mixup_alpha,
                    cutmix_alpha=plan.cutmix_alpha,
                    key=(plan.seed, step, micro_step),
                )
            logits = forward(run.network, images)
            loss = weighted_loss(logits, targets, batch.weights, plan.label_smoothing)
            # Gradients are averaged over ranks, the loss is a mean over all images of the step.
            accelerator.backward(loss * (accelerator.num_processes / real_images))
        hits = ((logits.argmax(1) == batch.targets) * batch.weights).sum()
        run.unread.append((step, torch.stack([loss.detach(), hits, batch.weights.sum()]), batch.indices))
    if plan.max_grad_norm is not None:
        accelerator.clip_grad_norm_(run.network.parameters(), plan.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        run.average.update(step + 1)


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """What the network says in training; in one line where batch norm has but one value a channel to learn from."""
    try:
        return network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    few = f"--batch-size {len(images)}: batch norm in this network needs two images or more"
    raise UsageError(f"{few}; with --freeze-bn it does without")


def end_step(run: Run, meter: console.Meter) -> None:
    """What is due after an update: read the loss, evaluate, save, stop. In this order, on all ranks alike."""
    progress, plan = run.progress, run.plan
    progress.step += 1
    progress.step_in_epoch += 1
    ends_epoch = progress.step_in_epoch == plan.steps_per_epoch
    evaluates = ends_epoch or (plan.eval_every is not None and progress.step % plan.eval_every == 0)
    votes = ends_epoch or run.accelerator.num_processes == 1 or progress.step % AGREE_EVERY == 0
    stops, saves = vote(run) if votes else (False, False)
    saves = saves or stops or (run.save_every_steps and progress.step % run.save_every_steps == 0)
    if evaluates or saves or progress.step % plan.log_interval == 0:
        loss = read_losses(run, check_weights=bool(evaluates or saves))
        top1 = run.sums[1] / max(run.sums[2], 1.0)
        meter.advance(0, loss=loss, top1=top1, lr=plan.lr(progress.step - 1), best=progress.best_top1 or 0.0)
    if evaluates:
        validate(run)
    if ends_epoch:
        end_epoch(run)
        progress.finished = progress.step == plan.total_steps or is_out_of_patience(run)
    if saves or progress.finished:
        run.save_checkpoint()
        run.saved_s = time.monotonic()
    if stops and not progress.finished:
        reason = run.stop.reason() or "another process was asked"
        raise StoppedError(f"stopped at step {progress.step} ({reason}), all saved: the same command goes on from here")


def is_out_of_patience(run: Run) -> bool:
    """Whether too many epochs in a row have brought no better model; all ranks measured the same and agree."""
    plan, progress = run.plan, run.progress
    waited = (progress.step - progress.best_step) // plan.steps_per_epoch
    if plan.patience is None or waited < plan.patience:
        return False
    console.say(f"no better model in {waited} epochs (--patience): stopping after epoch {progress.epoch}")
    return True


def vote(run: Run) -> tuple[bool, bool]:
    """Whether any rank was asked to stop, and whether rank 0's clock says that a checkpoint is due."""
    wants_stop = run.stop.reason() is not None
    wants_save = run.save_every_s is not None and time.monotonic() - run.saved_s > run.save_every_s
    rows = rows_of_ranks(run.accelerator, [float(wants_stop), float(wants_save)])
    return any(stop for stop, _ in rows), rows[0][1] > 0


def read_losses(run: Run, check_weights: bool = False) -> float:
    """Fetch the losses since the last reading, the only place where a step waits for the device.

    Args:
        check_weights: the weights are about to be evaluated or saved: look at them too.

    Returns:
        Mean training loss of this rank's images in the epoch so far.

    Raises:
        TrainingError: one of them is not finite.
    """
    rows = torch.stack([row for _, row, _ in run.unread]).cpu().double().tolist() if run.unread else []
    check_finite(run, [row[0] for row in rows], check_weights)
    for row in rows:
        run.sums = [total + value for total, value in zip(run.sums, row, strict=True)]
    run.unread.clear()
    return run.sums[0] / max(run.sums[2], 1.0)


def validate(run: Run) -> None:
    """Evaluate on the validation split, write it down, keep the best model: top1, then loss.

    Raises:
        TrainingError: the loss is not finite.
    """
    progress = run.progress
    with run.averaged():
        metrics = evaluate(run.accelerator, run.network, run.inputs, run.valid, run.valid_images)
        if not math.isfinite(metrics.loss):
            raise TrainingError(
                f"the validation loss is not finite after step {progress.step}; {last_good(run)}; {ADVICE}"
            )
        if progress.best_step is None or (metrics.top1, -metrics.loss) > (progress.best_top1, -progress.best_loss):
            progress.best_step, progress.best_top1, progress.best_loss = progress.step, metrics.top1, metrics.loss
            run.save_best(metrics)
    values = {**metrics.to_dict(), "train_loss": loss_since_validation(run)}
    if run.accelerator.is_main_process:
        run.history.append("valid", step=progress.step, epoch=progress.epoch + 1, **values)
    run.accelerator.log({f"valid/{name}": value for name, value in values.items()}, step=progress.step)
    run.last_metrics = metrics
    if progress.step_in_epoch < run.plan.steps_per_epoch:
        say_validation(run, metrics, values["train_loss"])


def epoch_sums(run: Run) -> list[float]:
    """Of the epoch so far, over all ranks: summed loss, hits, images."""
    return [sum(column) for column in zip(*rows_of_ranks(run.accelerator, run.sums), strict=True)]


def loss_since_validation(run: Run) -> float:
    """Mean training loss of all ranks' images since the last validation, or since the epoch began."""
    loss, _, images = epoch_sums(run)
    loss_before, images_before = run.progress.validated
    run.progress.validated = [loss, images]
    return (loss - loss_before) / max(images - images_before, 1.0)


def end_epoch(run: Run) -> None:
    """Sum the epoch up over all ranks and go on to the next one."""
    progress = run.progress
    loss, hits, images = epoch_sums(run)
    values = {"loss": loss / images, "top1": hits / images, "images": int(images)}
    lr = run.plan.lr(progress.step - 1)
    if run.accelerator.is_main_process:
        run.history.append("train", step=progress.step, epoch=progress.epoch + 1, lr=lr, **values)
    run.accelerator.log({"lr": lr, **{f"train/{k}": v for k, v in values.items()}}, step=progress.step)
    say_epoch(run, values)
    progress.epoch += 1
    progress.step_in_epoch = 0
    progress.validated = [0.0, 0.0]
    run.sums = [0.0, 0.0, 0.0]


def say_validation(run: Run, metrics: Metrics, train_loss: float) -> None:
    """A line for each validation that ``--eval-every`` asks for within an epoch."""
    progress = run.progress
    best = ", the best so far" if progress.best_step == progress.step else ""
    console.say(
        f"epoch {progress.epoch + 1}/{run.plan.epochs}, step {progress.step}: train loss {train_loss:.4f}; "
        f"valid loss {metrics.loss:.4f} top1 {metrics.top1:.4f} top5 {metrics.top5:.4f}{best}"
    )


def say_epoch(run: Run, values: dict) -> None:
    """A line an epoch, or one every few seconds where epochs fly by."""
    progress, plan, valid = run.progress, run.plan, run.last_metrics
    if progress.step < plan.total_steps and time.monotonic() - run.said_s < SAY_EVERY_S:
        return
    run.said_s = time.monotonic()
    best = ", the best so far" if progress.best_step == progress.step else ""
    console.say(
        f"epoch {progress.epoch + 1}/{plan.epochs}: train loss {values['loss']:.4f} top1 {values['top1']:.4f}; "
        f"valid loss {valid.loss:.4f} top1 {valid.top1:.4f} top5 {valid.top5:.4f}{best}"
    )


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    inputs: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    on_batch: Callable[[int], None] = lambda count: None,
    logits: LogitTable | None = None,
) -> Metrics:
    """Measure a network on a split, every image exactly once over all ranks.

    Args:
        inputs: a batch to what the network takes.
        batches: this rank's share; rows of weight 0 only fill up the shape.
        num_images: of the whole split.
        on_batch: told the images of every batch, to show progress.
        logits: where to keep what this rank's images gave.

    Raises:
        TrainingError: an image was missed or counted twice.
    """
    network.eval()
    tally = Tally(num_images, accelerator.device)
    for batch in to_device(iter(batches), accelerator.device):
        scores = network(inputs(batch))
        tally.update(batch.indices, batch.weights, scores, batch.targets)
        if logits is not None:
            logits.update(batch.indices, batch.weights, scores)
        on_batch(len(batch.targets))
    return tally.result(accelerator.reduce)
