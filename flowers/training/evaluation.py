"""Evaluation of a network on a split, and what is fitted on its answers: temperature, thresholds and familiarity."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console, distributed
from flowers.data.folders import Samples
from flowers.data.loaders import Batch
from flowers.errors import DataError
from flowers.models.bundle import Bundle
from flowers.models.familiarity import MIN_FITTED, fit_familiarity, step_of
from flowers.models.temperature import store, with_temperature
from flowers.reports.answers import Answers
from flowers.reports.calibration import calibration_error, fit_temperature, out_of_fold, softmax, sure_above
from flowers.reports.metrics import Metrics, Table, Tally
from flowers.training.batches import to_device

MIN_CALIBRATED, MIN_MISTAKES = 100, 5
"""Images, and wrong answers among them, from which on training stores a temperature."""
SURE = 0.99
"""Share of the answers that must be right at the threshold of ``--min-prob auto``."""


class AnswerTables:
    """What an evaluation keeps of a split for its ``Answers``: all logits, and features of every few images.

    Args:
        bundle: the model.
        head: its head, as it runs in the evaluation and not compiled: what goes into it are the features that
            ``learn_unfamiliar`` fits on. None keeps none.
    """

    def __init__(self, split: str, samples: Samples, bundle: Bundle, head: nn.Module | None = None):
        count, cpu = len(samples), torch.device("cpu")
        self._about, self._step = (split, samples, bundle.classes), step_of(count)
        self._logits, self._features = Table(count, len(bundle.classes), cpu), None
        self._seen: Tensor | None = None
        self.head = head
        if head is not None:
            self._features = Table(-(-count // self._step), bundle.head.in_features, cpu)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take notice of what goes into the head inside the block."""

        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            self._seen = inputs[0].detach()

        hook = self.head.register_forward_pre_hook(keep) if self.head is not None else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def update(self, batch: Batch, logits: Tensor) -> None:
        """Enter a batch that the network has just seen."""
        self._logits.add(batch.indices, batch.weights, logits.float())
        if self._features is not None:
            chosen = batch.indices % self._step == 0
            rows = batch.indices[chosen] // self._step
            self._features.add(rows, batch.weights[chosen], self._seen[chosen].float())

    def answers(self, accelerator: Accelerator) -> Answers:
        """Those of the whole split, on every rank."""
        tables = (self._logits, self._features)
        rows = (table and table.sum(accelerator.reduce, accelerator.device).numpy() for table in tables)
        return Answers(*self._about, *rows)


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    inputs: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    meter: console.Meter | None = None,
    tables: AnswerTables | None = None,
) -> Metrics:
    """Measure a network on a split, every image exactly once over all ranks.

    Args:
        inputs: gives the network's input for a batch.
        batches: this rank's share; rows of weight 0 only pad the shape.
        num_images: of the whole split.
        meter: shows the progress of all ranks.
        tables: filled with what this rank's images give.

    Raises:
        TrainingError: an image was missed or counted twice.
    """
    network.eval()
    tally = Tally(num_images, accelerator.device)
    with tables.watching() if tables is not None else contextlib.nullcontext():
        for batch in to_device(iter(batches), accelerator.device):
            scores = network(inputs(batch))
            tally.update(batch.indices, batch.weights, scores, batch.targets)
            if tables is not None:
                tables.update(batch, scores)
            if meter is not None:
                meter.advance(len(batch.targets) * accelerator.num_processes)
    return tally.result(accelerator.reduce)


def show_figures(title: str, results: Mapping[str, Mapping[str, float]]) -> None:
    """Print what was measured, a row a split."""
    columns = ("loss", "top1", "top5")
    rows = [
        (split, values["images"], *(f"{values[name]:.4f}" for name in columns)) for split, values in results.items()
    ]
    console.table(title, ("split", "images", *columns), rows)


def calibrate(bundle: Bundle, answers: Answers) -> tuple[Bundle, Answers]:
    """Fit a temperature and the threshold of ``--min-prob auto``, store them in the model's folder, and say so.

    Returns:
        The calibrated model and its answers.

    Raises:
        DataError: no temperature fits best, for example because every answer is correct.
    """
    temperature = fit_temperature(answers.logits, answers.targets)
    if temperature is None:
        raise DataError(
            f"--calibrate: cannot fit a temperature: {int(answers.hits.sum())} of {len(answers.hits)} answers are "
            "correct. Nothing was stored; calibrate on more, and harder, images"
        )
    after = dataclasses.replace(answers, logits=(answers.logits / temperature).astype(answers.logits.dtype))
    made = {name: value for name, value in bundle.made.items() if name != "min_prob"}
    min_prob = sure_above(after.confidences, after.hits, SURE)
    if min_prob is not None:
        made["min_prob"] = round(min_prob, 4)
    calibrated = with_temperature(dataclasses.replace(bundle, made=made), temperature)
    distributed.from_main(lambda: store(calibrated))
    errors = [calibration_error(found.confidences, found.hits) for found in (answers, after)]
    console.say(
        f"temperature {temperature:.4f} stored in {console.plain(bundle.folder)}: calibration error {errors[0]:.4f} -> "
        f"{errors[1]:.4f}, loss {answers.metrics.loss:.4f} -> {after.metrics.loss:.4f}, the same answers"
    )
    if min_prob:
        kept = after.confidences >= min_prob
        console.say(
            f"predict --min-prob auto: below {min_prob:.4f} an answer is unsure; {kept.mean():.1%} of the images are "
            f"not, and {after.hits[kept].mean():.1%} of these right"
        )
    return calibrated, after


def calibrate_trained(best: Bundle, answers: Answers) -> tuple[Bundle, Answers]:
    """Calibrate the best model of a run on the validation split, where that is reliable; else say why not.

    The calibration error is measured out of fold. It joins the model's figures as ``valid_ece_out_of_fold``, and what
    it was before as ``valid_ece_uncalibrated``. A start that was killed after it finds the model calibrated.

    Returns:
        The model and its answers, calibrated or as they were.
    """
    if "temperature" in best.made:
        return best, answers
    wrong = int((~answers.hits).sum())
    reason, scaled = None, None
    if len(answers.hits) < MIN_CALIBRATED:
        reason = f"{len(answers.hits)} validation images are too few, expected at least {MIN_CALIBRATED}"
    elif wrong < MIN_MISTAKES:
        reason = f"{wrong} of {len(answers.hits)} answers are wrong, too few to fit on"
    elif (scaled := out_of_fold(answers.logits, answers.targets)) is None:
        reason = "no temperature fits best"
    else:
        held_out = dataclasses.replace(answers, logits=scaled.astype(answers.logits.dtype))
        if held_out.metrics.loss >= answers.metrics.loss:
            reason = "it would not lower the loss on images that it was not fitted on"
    if reason is not None:
        console.say(f"not calibrated: {reason}; evaluate --calibrate fits a temperature on other images")
        return best, answers
    figures = {
        "valid_ece_out_of_fold": calibration_error(held_out.confidences, held_out.hits),
        "valid_ece_uncalibrated": calibration_error(answers.confidences, answers.hits),
    }
    best, answers = calibrate(dataclasses.replace(best, metrics={**best.metrics, **figures}), answers)
    console.say(
        f"calibration error on images that the temperature was not fitted on: {figures['valid_ece_out_of_fold']:.4f}"
    )
    return best, answers


def learn_unfamiliar(bundle: Bundle, answers: Answers) -> Bundle:
    """Fit what tells photos of none of the classes, store it in the model's folder, and say so; or why it cannot be.

    Args:
        answers: with features, on images that the head was not trained on.

    Returns:
        The model, with its familiarity where that could be fitted.
    """
    probs = softmax(answers.logits[:: step_of(len(answers.logits))])
    found = fit_familiarity(probs, answers.features)
    if found is None:
        console.say(
            f"unfamiliar photos will not be marked: {len(probs)} validation images of {len(bundle.classes)} classes "
            f"are too few or too much alike, expected at least {MIN_FITTED} images and two classes"
        )
        return bundle
    bundle = dataclasses.replace(bundle, familiarity=found)
    distributed.from_main(lambda: store(bundle))
    console.say(f"predict marks photos of none of the classes as unfamiliar, and up to {1 - found.share:.0%} of others")
    return bundle
