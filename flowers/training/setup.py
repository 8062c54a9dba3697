"""What a run starts from: its data settled, its model built."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.augment import Preprocessing
from flowers.data.folders import ClassIndex, ImageFolders, Samples
from flowers.data.image_cache import ImageCache, open_cache
from flowers.data.loader_processes import default_workers
from flowers.data.loaders import find_bad_images
from flowers.data.paths import readable, some
from flowers.errors import DataError, UsageError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import load_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head, freeze_backbone, freeze_batch_norm
from flowers.models.stochastic_depth import set_stochastic_depth
from flowers.training.checkpoint import Checkpoint
from flowers.training.flags import uses_features

SHOWN_BAD_IMAGES = 20
HEAD_STAGE = "head"
"""Folder, inside the run's, of the first stage of ``--finetune staged``: a run of its own."""


def settle_splits(data: ImageFolders) -> ImageFolders:
    """Make sure that there is something to validate on.

    Raises:
        DataError: no valid/ and none could be drawn.
    """
    if data.valid is None or len(data.valid) == 0:
        raise DataError("there are no validation images: add valid/, or let --val-fraction draw some of train/")
    return data


def build_cache(config: TrainConfig, data: ImageFolders, short_side: int) -> ImageCache | None:
    """The decoded training images that ``--cache`` asks for; features are a cache of their own.

    Raises:
        DataError: they would not fit.
    """
    if config.cache == "none" or uses_features(config):
        return None
    return open_cache(
        data.train,
        config.cache,
        short_side,
        folder=config.output_dir / "cache",
        threads=default_workers(config.workers),
    )


def settle_bad_images(
    config: TrainConfig, accelerator: Accelerator, data: ImageFolders, cache: ImageCache | None
) -> ImageFolders:
    """Look at every image before the first step, each rank at its share; list those that cannot be read, or leave out.

    With cached features every image is read once before the first step anyway, so only leaving out needs a look; with
    a cache of images the training images have been decoded already.

    Raises:
        DataError: there are some, and ``--on-bad-image`` is fail; or a class of train/, valid/ or test/ has no others.
    """
    if config.on_bad_image == "fail" and uses_features(config):
        return data
    splits = data.splits
    bad = {
        name: cache.bad if cache is not None and name == "train" else _find_bad(config, accelerator, split)
        for name, split in splits.items()
    }
    if not any(bad.values()):
        return data
    if config.on_bad_image == "fail":
        raise _refusal(bad)
    count = sum(map(len, bad.values()))
    console.warn(f"leaving out {count} images that cannot be read: {_listed(bad)}")
    kept = {name: _without(splits[name], found) for name, found in bad.items()}
    gone = [f"{name}/" for name, split in kept.items() if not len(split) and name != "train"]
    counts = np.bincount(kept["train"].targets, minlength=len(data.classes))
    gone += [f"train/ of class {readable(data.classes.folders[index])}" for index in np.flatnonzero(counts == 0)]
    if gone:
        raise DataError(f"no image that can be read is left in {some(gone)}; mend some, or remove the class or split")
    return dataclasses.replace(data, **kept)


@contextlib.contextmanager
def listing_bad_images(config: TrainConfig, data: ImageFolders) -> Iterator[None]:
    """Where the block stops at the first image that cannot be read, look at the others too, and list them all.

    Raises:
        DataError: all of them.
    """
    try:
        yield
    except DataError:
        workers = default_workers(config.workers)
        bad = {name: find_bad_images(split, workers) for name, split in data.splits.items()}
        if any(bad.values()):
            raise _refusal(bad) from None
        raise


def _listed(bad: dict[str, list[tuple[str, str]]]) -> str:
    lines = [f"{split}: {readable(path)}: {reason}" for split, found in bad.items() for path, reason in found]
    more = f" and {len(lines) - SHOWN_BAD_IMAGES} more" if len(lines) > SHOWN_BAD_IMAGES else ""
    return "; ".join(lines[:SHOWN_BAD_IMAGES]) + more


def _refusal(bad: dict[str, list[tuple[str, str]]]) -> DataError:
    count = sum(map(len, bad.values()))
    return DataError(f"{count} images cannot be read: {_listed(bad)}; mend or remove them, or --on-bad-image skip")


def build_model(
    config: TrainConfig, classes: ClassIndex, resumed: Checkpoint | None
) -> tuple[Classifier, HeadSpec, Preprocessing]:
    """The classifier to train, with the weights of the checkpoint or of the stage before where there is one.

    Raises:
        ModelError: an unknown model, or weights that do not fit.
    """
    if resumed is not None or config.finetune == "staged":
        start = resumed.bundle if resumed is not None else load_bundle(config.output_dir / HEAD_STAGE)
        classifier, head, preprocessing = start.build(), start.head, start.preprocessing
    else:
        torch.manual_seed(config.seed)  # --weights none
        backbone = build_backbone(config.model, config.weights, config.image_size)
        head, module = new_head(config, len(classes.folders), backbone.num_features)
        classifier = Classifier(backbone.network, module)
        preprocessing = backbone.preprocessing
    if resumed is None:
        preprocessing = dataclasses.replace(preprocessing, resize=evaluation_resize(config, preprocessing))
    if config.finetune == "head":
        freeze_backbone(classifier)
    elif config.freeze_bn:
        freeze_batch_norm(classifier)
    if config.finetune != "head":
        set_stochastic_depth(classifier.backbone, config.drop_path)
    return classifier, head, preprocessing


def new_head(config: TrainConfig, num_classes: int, in_features: int) -> tuple[HeadSpec, nn.Module]:
    """The head that the flags describe, with the random start that the seed gives."""
    torch.manual_seed(config.seed)
    spec = HeadSpec(num_classes, in_features, config.hidden, config.dropout)
    return spec, build_head(spec)


def evaluation_resize(config: TrainConfig, preprocessing: Preprocessing) -> int:
    """Short side before the centre crop: the flag's; else the model's own, for a whole network halfway to the crop.

    Training crops at random and so shows things larger than evaluation does; a network that learns from such views
    does better when evaluation shows them larger too. (Lite0 on Oxford 102: 0.944 at 240, 0.921 at its own 256.)

    Source: Touvron et al. 2019, "Fixing the train-test resolution discrepancy", arXiv:1906.06423.
    """
    if config.resize is not None:
        return max(config.resize, preprocessing.crop)
    if config.finetune == "head":
        return preprocessing.resize
    return (preprocessing.resize + preprocessing.crop) // 2


def with_train_sizes(config: TrainConfig, backbone: nn.Module, crop: int) -> TrainConfig:
    """Fill in the sides of the training views: a head sees what evaluation sees, a whole network smaller, growing ones.

    ``--train-size`` alone is the size of all of them. Networks of one fixed size (most transformers) get that one.

    Args:
        crop: side at evaluation.

    Raises:
        UsageError: the network does not take a size that a flag asks for, views would shrink, or they are cached, all
            of one size.
    """
    asked = {size for size in (config.train_size, config.first_train_size) if size is not None}
    if uses_features(config) and asked - {crop}:
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
    return dataclasses.replace(config, train_size=last, first_train_size=first)


def _accepts(backbone: nn.Module, size: int) -> bool:
    """Whether a network runs on images of a size."""
    was_training = backbone.training
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        backbone.train(was_training)
    return True


def _find_bad(config: TrainConfig, accelerator: Accelerator, samples: Samples) -> list[tuple[str, str]]:
    share = samples.take(range(accelerator.process_index, len(samples), accelerator.num_processes))
    return sorted(gather_object(find_bad_images(share, default_workers(config.workers))))


def _without(samples: Samples, bad: list[tuple[str, str]]) -> Samples:
    paths = {path for path, _ in bad}
    return samples.take(index for index, path in enumerate(samples.paths) if path not in paths)
