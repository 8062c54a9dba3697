"""A new run from the network and head of a finished one: more epochs, more photos, more classes."""

import dataclasses

import torch
from torch import nn

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.folders import ClassIndex
from flowers.errors import UsageError
from flowers.models.bundle import Bundle, load_bundle
from flowers.models.heads import Classifier, build_head
from flowers.models.temperature import without_temperature


def continued(config: TrainConfig) -> TrainConfig:
    """The flags with the model and head of ``--continue-from``, if it is given.

    Raises:
        ModelError: there is no model in that folder.
        UsageError: a flag asks for another network or head, or the new run would be in the folder of the old one.
    """
    if config.continue_from is None:
        return config
    head, model = (bundle := load_bundle(config.continue_from)).head, bundle.model
    given = {
        "--model": (config.model, TrainConfig.model, model),
        "--weights": (config.weights, TrainConfig.weights, TrainConfig.weights),
        "--hidden": (config.hidden, TrainConfig.hidden, head.hidden),
    }
    for flag, (value, default, of_run) in given.items():
        if value not in (default, of_run):
            raise UsageError(
                f"{flag}: got {value}, but --continue-from takes network and head of {config.continue_from}, "
                f"{model}: leave {flag} out, or start from that network alone with --weights"
            )
    if config.tune_head:
        raise UsageError("--tune-head trains new heads, --continue-from goes on with one: leave one of them out")
    config = dataclasses.replace(config, model=model, hidden=head.hidden, dropout=config.dropout or head.dropout)
    own = (config.run_dir / name for name in ("best", "last", "."))
    if bundle.folder.resolve() in [folder.resolve() for folder in own]:
        raise UsageError(
            f"--continue-from {console.plain(config.continue_from)}: that is the run in --output-dir, "
            f"{console.plain(config.run_dir)}, itself: give another --output-dir; to resume the run, leave "
            "--continue-from out"
        )
    return config


def continue_model(config: TrainConfig, classes: ClassIndex) -> tuple[Classifier, Bundle]:
    """Build the classifier of ``--continue-from`` for the classes of the data.

    Returns:
        The classifier in evaluation mode; what it came from, with the head and the preprocessing as they are now.

    Raises:
        ModelError: there is no sound model in that folder.
        UsageError: the data has none of its classes.
    """
    bundle = without_temperature(load_bundle(config.continue_from))
    old = bundle.build()
    rows = bundle.classes.class_to_idx
    kept = [folder for folder in classes.folders if folder in rows]
    if not kept:
        raise UsageError(
            f"--continue-from {console.plain(config.continue_from)}: none of its {len(rows)} classes "
            f"({_few(bundle.classes.folders)}) is a class of the data ({_few(classes.folders)}): start from its "
            "network alone with --weights"
        )
    torch.manual_seed(config.seed)  # the rows of new classes
    spec = dataclasses.replace(bundle.head, num_classes=len(classes), dropout=config.dropout)
    head = build_head(spec)
    take_rows(head, old.head, [rows.get(folder) for folder in classes.folders])
    if new := [folder for folder in classes.folders if folder not in rows]:
        console.say(f"{len(new)} of {len(classes)} classes are new to the model: {_few(new)}")
    if gone := [folder for folder in bundle.classes.folders if folder not in classes.class_to_idx]:
        console.warn(
            f"{len(gone)} of the model's {len(rows)} classes are not in the data and are dropped: {_few(gone)}"
        )
    crop, preprocessing = config.image_size or bundle.preprocessing.crop, bundle.preprocessing
    if crop != preprocessing.crop:
        resize = round(preprocessing.resize * crop / preprocessing.crop)
        preprocessing = dataclasses.replace(preprocessing, crop=crop, resize=resize)
    if config.resize is not None:
        preprocessing = dataclasses.replace(preprocessing, resize=max(config.resize, crop))
    return Classifier(old.backbone, head), dataclasses.replace(bundle, head=spec, preprocessing=preprocessing)


def take_rows(head: nn.Sequential, old: nn.Sequential, rows: list[int | None]) -> None:
    """Copy a trained head, its last layer row by row.

    Args:
        rows: for each class of ``head``, its row in ``old``; None leaves the random row of a new class.
    """
    with torch.no_grad():
        if "hidden" in dict(old.named_children()):
            head.hidden.load_state_dict(old.hidden.state_dict())
        for index, row in enumerate(rows):
            if row is not None:
                head.output.weight[index] = old.output.weight[row]
                head.output.bias[index] = old.output.bias[row]


def _few(names: list[str] | tuple[str, ...]) -> str:
    """The first names of many."""
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
