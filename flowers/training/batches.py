"""Where a run's batches come from, and which network they feed: images through all of it, or features to the head."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console
from flowers.config.evaluate import EvaluateConfig
from flowers.config.train import TrainConfig
from flowers.data.augment import Augmentation, Preprocessing
from flowers.data.folders import ImageFolders, Samples
from flowers.data.image_cache import ImageCache
from flowers.data.loader_processes import default_workers
from flowers.data.loaders import Batch, EvalLoader, TrainLoader, ViewLoader
from flowers.data.order import Order, class_balance
from flowers.data.scan import file_stamps
from flowers.engines.engine import build_engine
from flowers.models.heads import Classifier
from flowers.models.weights import add_tensors
from flowers.stopping import StopRequest
from flowers.training.extraction import extract_features
from flowers.training.features import EvalFeatures, FeatureBatches
from flowers.training.flags import images_digest, view_sizes
from flowers.training.state import TrainBatches

AUTOCAST = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ENGINE_PRECISION = {None: "auto", "no": "float32", "fp16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class Source:
    """What the loop is fed.

    Attributes:
        module: the network to train, not yet prepared.
        inputs: a batch on the device to what ``module`` takes.
        train: training batches.
        evaluation: a split to this rank's evaluation batches.
    """

    module: nn.Module
    inputs: Callable[[Batch], Tensor]
    train: TrainBatches
    evaluation: Callable[[str, Samples], Iterable[Batch]]


def build_order(config: TrainConfig, data: ImageFolders, world_size: int) -> Order:
    """The run's order of images, the same for features as for images."""
    balanced = config.balance == "classes"
    return Order(
        num_samples=len(data.train),
        seed=config.seed,
        batch_size=config.batch_size,
        world_size=world_size,
        grad_accum_steps=config.grad_accum_steps,
        sample_weights=class_balance(data.train.targets, len(data.classes.folders)) if balanced else None,
    )


def build_augmentation(config: TrainConfig, preprocessing: Preprocessing) -> Augmentation:
    """The training view that the flags describe."""
    return Augmentation(
        size=config.train_size,
        rotation=config.rotation,
        scale=config.scale,
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        random_erasing=config.random_erasing,
        trivial_augment=config.auto_augment == "trivial",
        interpolation=preprocessing.interpolation,
    )


def eval_loader(
    config: TrainConfig | EvaluateConfig, accelerator: Accelerator, samples: Samples, preprocessing: Preprocessing
) -> EvalLoader:
    """This rank's share of a split, in the plain view."""
    return EvalLoader(
        samples,
        preprocessing,
        config.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=default_workers(config.workers),
        pin_memory=accelerator.device.type == "cuda",
    )


def image_source(
    config: TrainConfig,
    accelerator: Accelerator,
    data: ImageFolders,
    order: Order,
    classifier: Classifier,
    preprocessing: Preprocessing,
    *,
    augmentation: Augmentation,
    cache: ImageCache | None,
) -> Source:
    """Images through the whole network, augmented anew each epoch."""
    mixes = config.mixup_alpha > 0 or config.cutmix_alpha > 0
    dtype = torch.float32 if mixes else AUTOCAST[accelerator.mixed_precision]
    train = TrainLoader(
        data.train,
        augmentation,
        order,
        rank=accelerator.process_index,
        workers=default_workers(config.workers),
        cache=cache,
        sizes=view_sizes(config, augmentation.size),
        pin_memory=accelerator.device.type == "cuda",
    )

    def evaluation(_: str, samples: Samples) -> EvalLoader:
        return eval_loader(config, accelerator, samples, preprocessing)

    return Source(classifier, lambda batch: preprocessing.normalize(batch.images, dtype), train, evaluation)


def feature_source(
    config: TrainConfig,
    accelerator: Accelerator,
    data: ImageFolders,
    order: Order,
    classifier: Classifier,
    preprocessing: Preprocessing,
    *,
    augmentation: Augmentation,
    folder: Path,
    stop: StopRequest,
) -> Source:
    """Features of the frozen backbone, computed once by the fastest engine at hand, to the head alone.

    Args:
        folder: where the feature files lie.

    Raises:
        StoppedError: a rank was asked to stop; the features that are done are kept.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    engine = build_engine(
        classifier.backbone,
        preprocessing,
        precision=ENGINE_PRECISION[config.mixed_precision],
        batch_size=config.batch_size,
        device=accelerator.device,
    )
    console.say(f"features by {engine.description}")
    # All that features depend on. The tensors themselves, not where they are from: a seed and a file may change. Of
    # the images their sizes too: one may have been replaced since an earlier start. (Not times: copies have their own.)
    backbone = hashlib.sha256(config.model.encode())
    add_tensors(backbone, classifier.backbone.state_dict())
    key = {"backbone": backbone.hexdigest(), "engine": engine.name, "precision": engine.precision}
    key["preprocessing"] = preprocessing.to_dict()

    def features_of(name: str, samples: Samples, views: int) -> np.ndarray:
        drawn = "plain" if views == 1 else f"{views} of {augmentation}, seed {config.seed}"
        own = {**key, "views": drawn, "images": images_digest(samples)}
        if accelerator.is_main_process:  # whose key counts
            sizes = file_stamps(samples.full_path, len(samples))[:, 0]
            own["bytes"] = hashlib.sha256(sizes.tobytes()).hexdigest()
        images = ViewLoader(samples, preprocessing, augmentation, config.seed, default_workers(config.workers))
        return extract_features(accelerator, engine, images, views, folder / f"{name}.npy", own, stop)

    def evaluation(name: str, samples: Samples) -> EvalFeatures:
        return EvalFeatures(features_of(name, samples, 1), samples.targets, config.batch_size, rank, world_size)

    train = FeatureBatches(features_of("train", data.train, config.views), data.train.targets, order, rank)
    return Source(classifier.head, lambda batch: batch.images, train, evaluation)
