"""A stage of training, ready for its first batch: flags resolved, images checked, model built."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from flowers import console
from flowers.cli import to_plain
from flowers.config.train import TrainConfig
from flowers.data.augment import Augmentation
from flowers.data.folders import ImageFolders
from flowers.data.image_cache import ImageCache
from flowers.data.order import Order
from flowers.distributed import arithmetic, precision_of
from flowers.environment import staged
from flowers.flags import spelled
from flowers.made import how_made
from flowers.models.bundle import Bundle
from flowers.stopping import StopRequest
from flowers.training.model import Model


@dataclass(frozen=True)
class Stage:
    """The settings and parts of one stage; nothing here changes while it trains, but for the model's weights.

    Attributes:
        config: every flag resolved; what is still None is switched off.
        data: the splits, without images that cannot be read.
        order: of the training images.
        augmentation: how training views are drawn.
        cache: decoded training images, with ``--cache``.
        fingerprint: everything that must match for the stage to be resumed.
    """

    config: TrainConfig
    accelerator: Accelerator
    stop: StopRequest
    data: ImageFolders
    model: Model
    order: Order
    augmentation: Augmentation
    cache: ImageCache | None
    fingerprint: dict

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.config.output_dir

    @property
    def trained(self) -> nn.Module:
        """The network that gets gradients: the head alone on cached features, else the whole classifier."""
        classifier = self.model.classifier
        return classifier.head if self.config.uses_features else classifier

    @property
    def total_steps(self) -> int:
        """Updates in the whole stage, if patience does not end it."""
        return self.config.epochs * self.order.steps_per_epoch

    def bundle(self, metrics: dict[str, float]) -> Bundle:
        """The model with its present weights."""
        state = {name: tensor.detach().cpu() for name, tensor in self.model.classifier.state_dict().items()}
        about_data = {name: value for name, value in self.fingerprint.items() if name.endswith(("images", "classes"))}
        made, classes = {**how_made(to_plain(self.config)), "data": about_data}, self.data.classes
        made["arithmetic"] = arithmetic(self.accelerator)
        return Bundle(self.config.model, self.model.head, classes, self.model.preprocessing, metrics, made, state)

    def with_settings(self, **found: float | int | None) -> "Stage":
        """The same stage with settings that a search found, as if they had been given as flags."""
        names = {spelled(name): value for name, value in found.items()}
        return replace(self, config=replace(self.config, **found), fingerprint={**self.fingerprint, **names})

    def describe(self, searches_lr: bool) -> None:
        """Print what is trained on what, with the arithmetic of batches and steps.

        Args:
            searches_lr: the learning rate is still to be found.
        """
        config, data, order, classifier = self.config, self.data, self.order, self.model.classifier
        view = self.model.preprocessing
        trainable = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
        total = sum(p.numel() for p in classifier.parameters())
        test = f", {len(data.test)} test" if data.test else ""
        images = f"{len(data.train)} train, {len(data.valid)} valid{test} images, {len(data.classes)} classes"
        how = "head on cached features" if config.uses_features else config.finetune
        if config.fits_at_once:
            by, length = "fitted to all images at once", []
        else:
            by = f"{config.optimizer}, lr {'auto' if searches_lr else f'{config.lr:g}'}"
            batch = str(order.global_batch_size)
            if order.global_batch_size != order.batch_size or console.is_verbose():
                batch = f"{order.batch_arithmetic} = {batch}"
            an_epoch, epochs = console.counted(order.steps_per_epoch, "step"), console.counted(config.epochs, "epoch")
            length = [
                ("batch", f"{batch} images a step"),
                ("length", f"{an_epoch} x {epochs} = {console.counted(self.total_steps, 'step')}"),
            ]
        threads = (
            f", {console.counted(torch.get_num_threads(), 'thread')}" if self.accelerator.device.type == "cpu" else ""
        )
        start = f"weights {config.weights}" if config.continue_from is None else f"from {config.continue_from}"
        copy = staged(config.data_dir)
        read_from = f", read from {copy}" if copy != config.data_dir else ""
        rows = [
            ("data", f"{images} in {config.data_dir}{read_from}"),
            ("model", f"{config.model}, {start}, {view.crop} px"),
            ("normalisation", f"mean {_numbers(view.mean)}, std {_numbers(view.std)}, {view.interpolation} resizing"),
            ("color profiles", "converted to sRGB" if view.to_srgb else "ignored"),
            ("training", f"{how}: {trainable:,} of {total:,} parameters, {by}"),
            *length,
            ("device", f"{self.accelerator.device}, precision {precision_of(self.accelerator)}{threads}"),
            ("run folder", str(config.output_dir)),
        ]
        console.facts("flowers: train", rows)


def _numbers(values: tuple[float, ...]) -> str:
    """ "0.485 0.456 0.406", as the flags take it."""
    return " ".join(f"{value:.4g}" for value in values)
