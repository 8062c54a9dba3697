"""Evaluation of a network on a split, and what is fitted on its answers: temperature, thresholds and familiarity."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console, distributed
from flowers.data.loaders import Batch
from flowers.errors import DataError
from flowers.models.bundle import Bundle
from flowers.models.familiarity import MIN_FITTED, fit_familiarity, step_of
from flowers.models.temperature import store, with_temperature
from flowers.reports.answers import Answers
from flowers.reports.calibration import calibration_error, fit_temperature, out_of_fold, softmax, sure_above
from flowers.reports.metrics import FeatureTable, LogitTable, Metrics, Tally
from flowers.training.batches import to_device

MIN_CALIBRATED, MIN_MISTAKES = 100, 5
"""Images, and wrong answers among them, from which on training stores a temperature."""
SURE = 0.99
"""Share of the answers that must be right at the threshold of ``--min-prob auto``."""


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    inputs: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    meter: console.Meter | None = None,
    logits: LogitTable | None = None,
    features: FeatureTable | None = None,
) -> Metrics:
    """Measure a network on a split, every image exactly once over all ranks.

    Args:
        inputs: gives the network's input for a batch.
        batches: this rank's share; rows of weight 0 only pad the shape.
        num_images: of the whole split.
        meter: shows the progress of all ranks.
        logits: filled with the logits of this rank's images.
        features: filled with what the head sees of them.

    Raises:
        TrainingError: an image was missed or counted twice.
    """
    network.eval()
    tally = Tally(num_images, accelerator.device)
    with features.watching() if features is not None else contextlib.nullcontext():
        for batch in to_device(iter(batches), accelerator.device):
            scores = network(inputs(batch))
            tally.update(batch.indices, batch.weights, scores, batch.targets)
            if logits is not None:
                logits.update(batch.indices, batch.weights, scores)
            if features is not None:
                features.take(batch.indices, batch.weights)
            if meter is not None:
                meter.advance(len(batch.targets) * accelerator.num_processes)
    return tally.result(accelerator.reduce)


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


def features_of_some(num_images: int, bundle: Bundle, head: nn.Module) -> FeatureTable:
    """An empty table for the features that ``learn_unfamiliar`` fits on, of a split that ``head`` is measured on."""
    return FeatureTable(num_images, bundle.head.in_features, step_of(num_images), head)


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
