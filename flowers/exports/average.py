"""The average of several models' weights as one model.

Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482 (fine-tuned from one start); Izmailov et al. 2018, Averaging
weights leads to wider optima, arXiv:1803.05407 (checkpoints of one run, and batch norm estimated anew).
"""

import dataclasses
from pathlib import Path

import torch

from flowers import console
from flowers.cli import to_plain
from flowers.config.export import ExportConfig
from flowers.errors import DataError, ModelError
from flowers.exports.photos import Photos, photos_for
from flowers.made import how_made
from flowers.models.bundle import Bundle, load_bundle, refuse_other_files, save_bundle
from flowers.models.heads import BATCH_NORM, Classifier
from flowers.models.weights import mean_of


def export_average(config: ExportConfig) -> int:
    """Average the models of ``--average``, measure them and the average on validation photos, and write it.

    Returns:
        0.

    Raises:
        ModelError: the models do not belong together, or their average is worse than each of them.
        OutputError: there is a folder of the output's name which is no bundle; it is left alone.
        FlowersError: a model or the photos cannot be read, the output cannot be written.
    """
    refuse_other_files(config.output)
    bundles = [load_bundle(path) for path in config.average]
    for path, bundle in zip(config.average[1:], bundles[1:], strict=True):
        check_alike(bundles[0], config.average[0], bundle, path)
    first = bundles[0]
    valid = photos_for(first, config.check_images, "valid", "--check-images").take(config.check_count).labelled()
    if not valid.paths:
        raise DataError(f"--check-images {valid.said}: no photos in folders of the model's classes")
    state = mean_of([bundle.state_dict for bundle in bundles])
    average = dataclasses.replace(first, state_dict=state, familiarity=None)  # which was fitted to the features of one
    classifier = average.build()
    names = [name for name in average.state_dict if name.endswith("running_var")]
    if any(not torch.equal(first.state_dict[name], bundle.state_dict[name]) for name in names for bundle in bundles):
        photos = photos_for(first, config.calibration_images, "train", "--calibration-images")
        estimate_batch_norm(classifier, first, photos.take(config.check_count))
    figures = [measure(bundle.build(), bundle, valid) for bundle in bundles]
    loss, top1 = measure(classifier, first, valid)
    names = [*map(console.plain, config.average), "average"]
    rows = [(name, f"{row[0]:.4f}", f"{row[1]:.4f}") for name, row in zip(names, [*figures, (loss, top1)], strict=True)]
    console.table(f"on {valid.said}", ("model", "loss", "top1"), rows)
    losses, shares = zip(*figures, strict=True)
    if top1 < min(shares) and loss > max(losses):  # top1 alone is chance where the photos are few
        raise ModelError(
            f"--average: the average has top1 {top1:.4f} and loss {loss:.4f}, worse than each of the {len(bundles)} "
            "models: nothing was written. Average models whose training began from the same weights, such as "
            "checkpoints of one run"
        )
    if top1 < max(shares):
        console.warn("one of the models alone is better than the average")
    made = how_made(to_plain(config))
    metrics = {"valid_loss": loss, "valid_top1": top1}
    state = {name: tensor.detach() for name, tensor in classifier.state_dict().items()}
    save_bundle(dataclasses.replace(average, state_dict=state, metrics=metrics, made=made), config.output)
    then = console.job_command("predict", "--checkpoint", config.output, "--input", "PHOTOS")
    console.done(f"averaged {len(bundles)} models", [("model", config.output)], [then])
    return 0


def check_alike(first: Bundle, first_path: Path, other: Bundle, path: Path) -> None:
    """Check that two models differ in nothing but their weights.

    Raises:
        ModelError: the first thing in which they differ, with both values.
    """
    for name in ("model", "head", "classes", "preprocessing"):
        left, right = getattr(first, name), getattr(other, name)
        if left != right:
            told = (f"{len(left)} classes", f"{len(right)}, or other names") if name == "classes" else (left, right)
            raise ModelError(
                f"--average {console.plain(path)}: its {name} is not that of {console.plain(first_path)}: "
                f"expected {told[0]}, got {told[1]}"
            )


@torch.inference_mode()
def estimate_batch_norm(classifier: Classifier, bundle: Bundle, photos: Photos) -> None:
    """Give batch norm the statistics that averaged weights have on the photos, each batch counted alike."""
    layers = [module for module in classifier.modules() if isinstance(module, BATCH_NORM)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    with console.progress("batch norm", len(photos.paths)) as meter:
        for views, _ in photos.views(bundle.preprocessing):
            classifier(bundle.preprocessing.normalize(torch.from_numpy(views)))
            meter.advance(len(views))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    classifier.eval()


@torch.inference_mode()
def measure(classifier: Classifier, bundle: Bundle, photos: Photos) -> tuple[float, float]:
    """Mean cross-entropy and top1 on photos that lie in class folders."""
    loss, hits, count = 0.0, 0, 0
    for views, targets in photos.views(bundle.preprocessing):
        targets = torch.from_numpy(targets)
        logits = classifier(bundle.preprocessing.normalize(torch.from_numpy(views)))
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        hits += int((logits.argmax(1) == targets).sum())
        count += len(targets)
    return loss / count, hits / count
