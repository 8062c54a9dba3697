"""Learning-rate range test: train some steps with a rate that grows from step to step, and read the loss.

The steps are those of training (``Trainer.step``) on its first images and views, so one process and N with the same
global batch draw the same curve for a head on features, a head on images and a whole network. Afterwards weights,
batch-norm statistics, optimizer, loss scale and torch's random state are restored bit for bit.

Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
"""

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from flowers import console
from flowers.data.loaders import Batch
from flowers.distributed import from_main, sums_of_ranks
from flowers.errors import StoppedError, UsageError
from flowers.files import write_json
from flowers.reports.plots import draw_lr_curve
from flowers.training.batches import to_device
from flowers.training.checkpoint import Progress
from flowers.training.trainer import Trainer

STEPS = 100
SPAN = 300.0  # the range goes from the default rate / SPAN to the default rate * SPAN
DIVERGED = 4.0  # stop where a step's loss is so many times the lowest smoothed one; as fastai does
SMOOTHING = 0.15  # standard deviation of the smoothing, in decades of the rate
RULE = "a tenth of the rate at which the smoothed loss is lowest (fastai's `minimum`)"
LEAST_FALL = 0.05  # of the first loss: less is no fall
NOISES = 4.0  # and a fall must be so many standard errors of the smoothed loss


@dataclass(frozen=True)
class LrCurve:
    """The result of a range test.

    Attributes:
        rates: of each step, growing.
        losses: mean loss of each step's images, before its update; the last may not be finite.
        smoothed: ``losses`` smoothed over neighbours in the logarithm of the rate.
        suggestion: the rate to train with, three digits; None if the loss never fell.
        lowest: rate at which the smoothed loss is lowest.
        why: the rule that gave the suggestion, or what stood in its way.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    lowest: float
    why: str

    def to_dict(self) -> dict:
        """Plain values for JSON, which knows no infinite numbers: they are null."""
        values = asdict(self)
        for name in ("losses", "smoothed"):
            values[name] = [value if math.isfinite(value) else None for value in values[name]]
        return values


@dataclass(frozen=True)
class GrowingRate:
    """A schedule that multiplies the rate by the same factor at each of its steps, from ``low`` to ``high``."""

    low: float
    high: float
    steps: int

    def lr(self, step: int) -> float:
        """Rate of an update: ``low`` at the first, ``high`` at the last."""
        return self.low * (self.high / self.low) ** (step / max(1, self.steps - 1))


def search_lr(
    trainer: Trainer,
    low: float | None = None,
    high: float | None = None,
    steps: int = STEPS,
    output: Path | None = None,
) -> LrCurve:
    """Run a range test about the default rate and write its curve.

    Args:
        low: first rate; default: the configured one / SPAN.
        high: last rate; default: the configured one * SPAN.
        output: of the picture; default: lr_finder.png in the run folder.

    Raises:
        StoppedError: on request, agreed by all ranks; nothing is kept.
        FlowersError: a file cannot be written.
    """
    config, images = trainer.config, trainer.stage.order.global_batch_size
    default = config.lr
    curve = range_test(trainer, low or default / SPAN, high or default * SPAN, steps)
    output = output or trainer.stage.run_dir / "lr_finder.png"
    title = f"{config.model}, --finetune {config.finetune}, {config.optimizer}, {images} images a step"
    from_main(lambda: write_curve(curve, output, title, default))
    return curve


def range_test(trainer: Trainer, low: float, high: float, steps: int) -> LrCurve:
    """Measure the curve, the same on all ranks, before the first step of training.

    Args:
        low: rate of the first step.
        high: rate of the last step, if the loss does not diverge before.

    Raises:
        StoppedError: on request, agreed by all ranks.
    """
    rates: list[float] = []
    losses: list[float] = []
    images: list[int] = []
    with restored(trainer), console.progress("learning rates", steps, "steps") as meter:
        trainer.schedule, trainer.average = GrowingRate(low, high, steps), None
        with contextlib.closing(_steps(trainer)) as batches:
            for micro_batches, real in itertools.islice(batches, steps):
                trainer.step(micro_batches, real)
                loss = _mean_loss(trainer, real)
                rates.append(trainer.schedule.lr(trainer.progress.step))
                losses.append(loss)
                images.append(real)
                meter.advance(1, lr=f"{rates[-1]:.2g}", loss=loss)
                if not math.isfinite(loss) or loss > DIVERGED * min(smooth(rates, losses, images)):
                    break
                trainer.progress.step += 1
    return read_curve(rates, losses, images)


def read_curve(rates: Sequence[float], losses: Sequence[float], images: Sequence[int]) -> LrCurve:
    """Smooth a curve and suggest a rate from it.

    The suggestion is a tenth of the rate at which the smoothed loss is lowest: there the loss still falls fast. It
    takes a true fall, of a share of the first loss (``LEAST_FALL``) that is more than noise (``NOISES``).

    Args:
        rates: [N] growing.
        losses: [N], not finite where training broke down.
        images: [N] that each loss is the mean of.
    """
    smoothed = smooth(rates, losses, images)
    curve = functools.partial(LrCurve, list(rates), list(losses), smoothed)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return curve(None, rates[0], "not one loss was finite")
    lowest = int(np.argmin(smoothed))
    # Batches differ: the jumps from one step to the next say how much, and the smoothing averages over some steps.
    noise = float(np.median(np.abs(np.diff(finite)))) / 0.954 if len(finite) > 1 else 0.0
    per_decade = len(rates) / max(1e-9, math.log10(rates[-1] / rates[0])) if len(rates) > 1 else 1.0
    averaged = max(1.0, 2 * math.sqrt(math.pi) * SMOOTHING * per_decade)
    fall = smoothed[0] - smoothed[lowest]
    if not fall > max(LEAST_FALL * smoothed[0], NOISES * noise / math.sqrt(averaged)):
        why = f"the loss did not fall: {smoothed[0]:.4g} at first, {smoothed[lowest]:.4g} at best"
        return curve(None, rates[lowest], why)
    why = RULE if lowest < len(rates) - 1 else f"{RULE}; it still fell at the end, so a larger one may do better"
    return curve(float(f"{rates[lowest] / 10:.3g}"), rates[lowest], why)


def smooth(rates: Sequence[float], losses: Sequence[float], images: Sequence[int]) -> list[float]:
    """Weigh neighbours by a bell curve of their distance in decades, and by their images; no lag, unlike an average
    that only looks back. Losses that are not finite stay so, and do not reach their neighbours."""
    at, values, counts = np.log10(rates), np.asarray(losses), np.asarray(images, dtype=np.float64)
    good = np.isfinite(values)
    if not good.any():
        return [math.inf] * len(values)
    weights = np.exp(-0.5 * ((at[:, None] - at[None, good]) / SMOOTHING) ** 2) * counts[good]
    return np.where(good, weights @ values[good] / weights.sum(1), np.inf).tolist()


def write_curve(curve: LrCurve, path: Path, title: str, default_lr: float) -> None:
    """Say what was found; draw it, and write it as JSON beside the picture.

    Args:
        path: of the PNG; without matplotlib only the JSON is written, and a line says so.
        title: what was trained.
        default_lr: what would have been taken without a search.

    Raises:
        FlowersError: a file cannot be written.
    """
    if curve.suggestion is not None:
        console.say(f"learning rate: {curve.suggestion:g} (lowest loss at {curve.lowest:.3g}): {curve.why}")
    else:
        console.warn(f"no learning rate to suggest: {curve.why}; the default is {default_lr:g}")
    facts = {"what": title, "default_lr": default_lr, **curve.to_dict()}
    write_json(path.with_suffix(".json"), facts)
    try:
        draw_lr_curve(path, curve.rates, curve.losses, curve.smoothed, suggestion=curve.suggestion, title=title)
        console.say(f"curve: {console.plain(path)}, {path.with_suffix('.json').name}")
    except UsageError as error:
        console.warn(f"{error}; the curve as numbers: {path.with_suffix('.json')}")


@contextlib.contextmanager
def restored(trainer: Trainer) -> Iterator[None]:
    """Restore the trainer after the block: tensors, optimizer, loss scale, modes, schedule, torch's random state."""
    network, optimizer, scaler = trainer.network, trainer.optimizer, trainer.accelerator.scaler
    tensors = [*network.parameters(), *network.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    state = copy.deepcopy(optimizer.state_dict())
    scale = copy.deepcopy(scaler.state_dict()) if scaler is not None else None
    was_training = network.training
    schedule, average = trainer.schedule, trainer.average
    device = trainer.accelerator.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, kept in zip(tensors, copies, strict=True):
                tensor.copy_(kept)
        optimizer.zero_grad(set_to_none=True)
        optimizer.load_state_dict(state)
        if scaler is not None:
            scaler.load_state_dict(scale)
        network.train(was_training)
        trainer.schedule, trainer.average, trainer.progress = schedule, average, Progress()
        trainer.unread.clear()


def _steps(trainer: Trainer) -> Iterator[tuple[list[Batch], int]]:
    """This rank's micro-batches of each step of training and the step's images, epoch after epoch, for ever."""
    config, order = trainer.config, trainer.stage.order
    for epoch in itertools.cycle(range(config.epochs)):
        batches = to_device(iter(trainer.batches.epoch(epoch, 0)), trainer.accelerator.device)
        for step in range(order.steps_per_epoch):
            yield [next(batches) for _ in range(config.grad_accum_steps)], order.real_in_step(step)


def _mean_loss(trainer: Trainer, real: int) -> float:
    """Loss of the last step over all ranks.

    Raises:
        StoppedError: any rank was asked to stop.
    """
    own = sum(sums[0].cpu().double().item() for _, sums, _ in trainer.unread)
    trainer.unread.clear()
    loss, stops = sums_of_ranks(trainer.accelerator, [own, float(trainer.stage.stop.reason() is not None)])
    if stops:
        raise StoppedError("stopped during the learning-rate search; run the same command to search again")
    return loss / real
