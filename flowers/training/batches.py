"""Batches for training and evaluation: where they come from, and their way to the device."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from flowers.config.evaluate import EvaluateConfig
from flowers.config.train import TrainConfig
from flowers.data.augment import Augmentation
from flowers.data.folders import ImageFolders, Samples
from flowers.data.image_cache import ImageCache, open_cache
from flowers.data.loader_processes import default_workers
from flowers.data.loaders import Batch, EvalLoader, TrainLoader
from flowers.data.order import Order, class_balance
from flowers.data.preprocessing import Preprocessing
from flowers.engines.engine import Engine
from flowers.training.schedule import view_sizes
from flowers.training.stage import Stage

AUTOCAST = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ENGINE_PRECISION = {None: "auto", "no": "float32", "fp16": "fp16", "bf16": "bf16"}
IN_FLIGHT = 3  # batches that wait in an engine while the next one is read


class Batches(Protocol):
    """This rank's batches of a stage: images or cached features."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[Batch]:
        """The micro-batches of a training epoch, from an update on."""

    def inputs(self, batch: Batch) -> Tensor:
        """The network's input from a batch on the device."""

    def evaluation(self, split: str) -> Iterable[Batch]:
        """The evaluation batches of a split; rows of weight 0 only pad the shape."""


class ImageBatches:
    """Images through the whole network, augmented anew each epoch."""

    def __init__(self, stage: Stage):
        config, accelerator = stage.config, stage.accelerator
        mixes = config.mixup_alpha > 0 or config.cutmix_alpha > 0
        self._dtype = torch.float32 if mixes else AUTOCAST[accelerator.mixed_precision]
        self._stage = stage
        self._train = TrainLoader(
            stage.data.train,
            stage.augmentation,
            stage.order,
            rank=accelerator.process_index,
            workers=default_workers(config.workers),
            cache=stage.cache,
            sizes=view_sizes(config),
            pin_memory=accelerator.device.type == "cuda",
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of a training epoch; ``images`` holds uint8 [B, H, W, 3]."""
        return self._train.epoch(epoch, start_step)

    def inputs(self, batch: Batch) -> Tensor:
        """Normalised images [B, 3, H, W]."""
        return self._stage.model.preprocessing.normalize(batch.images, self._dtype)

    def evaluation(self, split: str) -> EvalLoader:
        """The evaluation batches of a split."""
        stage = self._stage
        return eval_loader(stage.config, stage.accelerator, stage.data.splits[split], stage.model.preprocessing)


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


def build_order(config: TrainConfig, data: ImageFolders, world_size: int) -> Order:
    """The order of the training images, the same for features as for images; L-BFGS takes all of them in one step."""
    balanced, at_once = config.balance == "classes", config.fits_at_once
    return Order(
        num_samples=len(data.train),
        seed=config.seed,
        batch_size=len(data.train) if at_once else config.batch_size,
        world_size=1 if at_once else world_size,
        grad_accum_steps=1 if at_once else config.grad_accum_steps,
        sample_weights=class_balance(data.train.targets, len(data.classes)) if balanced else None,
    )


def build_augmentation(config: TrainConfig, preprocessing: Preprocessing) -> Augmentation:
    """The training view that the flags describe."""
    return Augmentation(
        size=config.train_size,
        rotation=config.rotation,
        scale=config.scale,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        random_erasing=config.random_erasing,
        auto_augment=config.auto_augment,
        interpolation=preprocessing.interpolation,
        to_srgb=preprocessing.to_srgb,
    )


def build_cache(config: TrainConfig, data: ImageFolders, augmentation: Augmentation) -> ImageCache | None:
    """Decode the training images for ``--cache``.

    Raises:
        DataError: they would not fit.
    """
    if config.cache == "none" or config.uses_features:  # those images are decoded once
        return None
    folder, threads = config.output_dir / "cache", default_workers(config.workers)
    short_side, to_srgb = augmentation.cache_short_side, augmentation.to_srgb
    return open_cache(data.train, config.cache, short_side, to_srgb=to_srgb, folder=folder, threads=threads)


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to the device; to a GPU, the next batch is copied while the current one is in use."""
    if device.type != "cuda":
        for batch in batches:
            yield Batch(*(tensor.to(device) for tensor in batch))
        return
    stream = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in moved:
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = moved
    if ahead is not None:
        yield ahead


def through_engine(batches: Iterable[Batch], engine: Engine) -> Iterator[Batch]:
    """The batches with features [B, D] in the place of their images; some are in the engine at a time."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append((batch, engine.submit(batch.images.numpy())))
        if len(waiting) > IN_FLIGHT:
            batch, handle = waiting.popleft()
            yield batch._replace(images=torch.from_numpy(handle.result().features))
    for batch, handle in waiting:
        yield batch._replace(images=torch.from_numpy(handle.result().features))


class Stopwatch:
    """Counts the seconds spent waiting for the next item of an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, items: Iterable[Batch]) -> Iterator[Batch]:
        """The same items, with the wait for each counted."""
        asked_s = time.monotonic()
        for item in items:
            self.seconds += time.monotonic() - asked_s
            yield item
            asked_s = time.monotonic()
