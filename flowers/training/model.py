"""The classifier to train: built or loaded, with its head, its preprocessing and the sizes of its training views."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.augment import Preprocessing
from flowers.data.folders import ClassIndex
from flowers.errors import UsageError
from flowers.models.backbones import Backbone, build_backbone
from flowers.models.bundle import load_bundle
from flowers.models.grad_checkpointing import set_grad_checkpointing
from flowers.models.heads import Classifier, HeadSpec, build_head, freeze_backbone, freeze_batch_norm
from flowers.models.stochastic_depth import set_stochastic_depth
from flowers.training.checkpoint import Checkpoint
from flowers.training.continued import continue_model

HEAD_STAGE = "head"
"""Folder, inside the run folder, of the first stage of ``--finetune staged``: a run of its own."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier, the description of its head, and what its images go through at evaluation."""

    classifier: Classifier
    head: HeadSpec
    preprocessing: Preprocessing


def build_model(config: TrainConfig, classes: ClassIndex, resumed: Checkpoint | None) -> Model:
    """Build the classifier, with the weights of the checkpoint or of the earlier stage if there is one.

    Raises:
        ModelError: an unknown model, or weights that do not fit.
    """
    if resumed is not None or config.finetune == "staged":
        start = resumed.bundle if resumed is not None else load_bundle(config.output_dir / HEAD_STAGE)
        classifier, head, preprocessing = start.build(), start.head, start.preprocessing
    elif config.continue_from is not None:
        classifier, start = continue_model(config, classes)
        head, preprocessing = start.head, start.preprocessing
    else:
        torch.manual_seed(config.seed)  # --weights none
        backbone = build_backbone(config.model, config.weights, config.image_size)
        if Path(config.weights).is_dir():
            console.say(f"a new head is trained; --continue-from {console.plain(config.weights)} would keep its own")
        head, module = new_head(config, len(classes), backbone)
        classifier, preprocessing = Classifier(backbone.network, module), backbone.preprocessing
    if resumed is None and config.continue_from is None:
        preprocessing = dataclasses.replace(preprocessing, resize=evaluation_resize(config, preprocessing))
    if resumed is None:
        given = {name: getattr(config, name) for name in ("mean", "std", "interpolation")}
        preprocessing = dataclasses.replace(
            preprocessing, **{name: value for name, value in given.items() if value is not None}
        )
        is_new = config.finetune != "staged" and config.continue_from is None
        if is_new or config.color_profiles is not None:
            preprocessing = dataclasses.replace(preprocessing, to_srgb=config.color_profiles != "ignore")
    if config.finetune == "head":
        freeze_backbone(classifier)
    elif config.freeze_bn:
        freeze_batch_norm(classifier)
    if config.finetune != "head":
        set_stochastic_depth(classifier.backbone, config.drop_path)
    if config.grad_checkpointing:
        set_grad_checkpointing(classifier.backbone)
    return Model(classifier, head, preprocessing)


def new_head(config: TrainConfig, num_classes: int, backbone: Backbone) -> tuple[HeadSpec, nn.Module]:
    """The head that the flags describe, initialised from the seed.

    One that is fitted at once to the features of several stages sees each stage at length 1, so that none drowns
    another; tests/bench/README.md says what it brings.
    """
    torch.manual_seed(config.seed)
    stages = getattr(backbone.network, "widths", ()) if config.fits_at_once else ()
    spec = HeadSpec(num_classes, backbone.num_features, config.hidden, config.dropout, tuple(stages))
    return spec, build_head(spec)


def evaluation_resize(config: TrainConfig, preprocessing: Preprocessing) -> int:
    """Short side before the centre crop: --resize; else the model's own, for a whole network halfway to the crop.

    Training crops at random and so shows objects larger than evaluation does; a network trained on such views does
    better when evaluation shows them larger too. (Lite0 on Oxford 102: 0.944 at 240, 0.921 at its own 256.)

    Source: Touvron et al. 2019, "Fixing the train-test resolution discrepancy", arXiv:1906.06423.
    """
    if config.resize is not None:
        return max(config.resize, preprocessing.crop)
    if config.finetune == "head":
        return preprocessing.resize
    return (preprocessing.resize + preprocessing.crop) // 2


def train_sizes(config: TrainConfig, backbone: nn.Module, crop: int) -> tuple[int, int | None]:
    """Sides of the training views: a head sees the size of evaluation, a whole network smaller, growing views.

    ``--train-size`` alone is the size of all views. Networks of one fixed size (most transformers) get that size.

    Args:
        crop: side at evaluation.

    Returns:
        The final size; the size in the first epoch, None if it does not grow.

    Raises:
        UsageError: the network does not take the size given, views would shrink, or they are cached in another size.
    """
    asked = {size for size in (config.train_size, config.first_train_size) if size is not None}
    if config.uses_features and asked - {crop}:
        raise UsageError(
            f"--train-size, --first-train-size: got {max(asked - {crop})}, but cached features are all of views of "
            f"{crop} pixels: leave them out, give --image-size, or add --no-feature-cache"
        )
    for size in asked:
        if not _accepts(backbone, size):
            raise UsageError(f"{config.model} does not take images of {size} pixels, only of {crop}: see --train-size")
    if config.finetune == "head" or config.train_size is not None:
        first, last = None, config.train_size or crop
    else:
        first, last = (16 * max(2, round(share * crop / 16)) for share in (0.5, 0.8))
        if crop < 64 or not (_accepts(backbone, first) and _accepts(backbone, last)):
            first = last = crop
    first = config.first_train_size or first
    if first is not None and first > last:
        raise UsageError(f"--first-train-size: got {first}, expected at most --train-size, here {last}")
    return last, first


def _accepts(backbone: nn.Module, size: int) -> bool:
    """True if a network runs on images of a size."""
    was_training = backbone.training
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        backbone.train(was_training)
    return True
