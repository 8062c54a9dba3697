"""The arithmetic of a run, from the flags and the data: what is checked, counted and defaulted before any step."""

import dataclasses
import hashlib
import os
import re

import numpy as np

from flowers.config.presets import check_model
from flowers.config.train import TrainConfig
from flowers.data.folders import ImageFolders, Samples
from flowers.data.order import Order
from flowers.errors import UsageError
from flowers.training.state import Plan

# What a resume may change: flags that do not alter what is computed, and those that are checked by their effect.
FREE_FLAGS = {
    "data_dir", "output_dir", "config", "recipe", "weights", "batch_size", "grad_accum_steps", "class_names",
    "on_bad_image", "val_fraction", "cache", "workers", "eval_every", "save_every", "keep", "resume", "max_hours",
    "log_interval", "log_with", "report",
}  # fmt: skip
HEAD_DEFAULTS = {
    "epochs": 50, "optimizer": "adamw", "weight_decay": 0.1, "model_ema_decay": 0.0, "scale": (0.5, 1.0),
    "auto_augment": "none",
}  # fmt: skip
WHOLE_DEFAULTS = {
    "epochs": 20, "optimizer": "sgd", "weight_decay": 1e-4, "model_ema_decay": 0.995, "scale": (0.25, 1.0),
    "auto_augment": "trivial",
}  # fmt: skip
"""Chosen by measurement on 20 photos a class of Oxford 102; tests/bench/README.md says what each brought."""
EPOCHS_OF_A_HEAD_ON_IMAGES = 10
OF_DRAWN_VIEWS = {
    "color_jitter": (0.0,), "random_erasing": (0.0,), "auto_augment": (None, "none"),
    "rotation": (TrainConfig.rotation, 0.0), "hflip": (TrainConfig.hflip, 0.0),
    "scale": (None, HEAD_DEFAULTS["scale"], (1.0, 1.0)),
}  # fmt: skip
"""Flags about how a training view is drawn, and the values that ask for nothing where none is: defaults and "off"."""
PEAK_LR = {"head": {"adamw": 3e-3, "adam": 3e-3, "sgd": 0.03}, "whole": {"adamw": 3e-4, "adam": 3e-4, "sgd": 0.03}}


def check_flags(config: TrainConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    at_least = {
        "epochs": 1, "batch_size": 1, "grad_accum_steps": 1, "hidden": 1, "image_size": 1, "resize": 1, "views": 1,
        "eval_every": 1, "log_interval": 1, "keep": 2, "workers": 0, "seed": 0, "warmup_epochs": 0, "weight_decay": 0,
        "rotation": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "color_jitter": 0, "mix_off_epochs": 0, "patience": 1,
        "train_size": 1, "first_train_size": 1,
    }  # fmt: skip
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected at least {least}")
        if value == float("inf"):
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected a finite number")
    if config.seed >= 2**64:
        raise UsageError(f"--seed: got {config.seed}, expected less than 2**64")
    for name in ("lr", "max_grad_norm", "max_hours"):
        value = getattr(config, name)
        if value not in (None, "auto") and not 0 < value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected a number above 0")
    shares = ("dropout", "label_smoothing", "val_fraction", "hflip", "random_erasing", "model_ema_decay", "drop_path")
    for name in shares:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= (1 if name in ("hflip", "random_erasing") else 0.99999):
            most = "1" if name in ("hflip", "random_erasing") else "below 1"
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected a share from 0 to {most}")
    if not 0 < config.layer_decay <= 1:
        raise UsageError(f"--layer-decay: got {config.layer_decay}, expected a share above 0, at most 1")
    if config.finetune == "head" and (config.layer_decay < 1 or config.drop_path > 0 or config.freeze_bn):
        raise UsageError(
            "--layer-decay, --drop-path and --freeze-bn are about training the backbone: add --finetune full or staged"
        )
    if config.scale is not None and not 0 < config.scale[0] <= config.scale[1] <= 1:
        raise UsageError(f"--scale: got {config.scale}, expected two shares of the area, such as 0.5 1.0")
    if config.image_size and config.resize and config.resize < config.image_size:
        raise UsageError(f"--resize: got {config.resize}, expected at least --image-size {config.image_size}")
    if uses_features(config) and (config.mixup_alpha > 0 or config.cutmix_alpha > 0):
        raise UsageError("--mixup-alpha and --cutmix-alpha mix images, features are cached: add --no-feature-cache")
    if uses_features(config) and config.cache != "none":
        raise UsageError(
            f"--cache {config.cache} keeps decoded images, but with cached features each is decoded once: leave it "
            "out, or add --no-feature-cache"
        )
    if config.views > 1 and not uses_features(config):
        raise UsageError(f"--views {config.views} is for cached features; without them every epoch draws a new view")
    if config.tune_head and not (uses_features(config) or config.finetune == "staged"):
        raise UsageError("--tune-head tries heads on cached features: use it with --finetune head or staged")
    if config.tune_head and config.lr == "auto" and config.finetune == "head":
        raise UsageError("--tune-head looks for the learning rate too: leave --lr auto out")
    if uses_features(config) and config.views == 1:
        given = [name for name, plain in OF_DRAWN_VIEWS.items() if getattr(config, name) not in plain]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{flags}: of one plain view the features are cached: add --views K or --no-feature-cache")
    sizes = (config.first_train_size, config.train_size)
    if None not in sizes and sizes[0] > sizes[1]:
        raise UsageError(f"--first-train-size: got {sizes[0]}, expected at most --train-size {sizes[1]}")
    parse_save_every(config.save_every, 1)
    check_model(config.recipe, config.model)


def uses_features(config: TrainConfig) -> bool:
    """Whether the frozen backbone runs once and the head trains on its features."""
    return config.finetune == "head" and config.feature_cache


def with_defaults(config: TrainConfig) -> TrainConfig:
    """Fill in the flags whose defaults depend on what is trained: a head, or a whole network."""
    defaults = HEAD_DEFAULTS if config.finetune == "head" else WHOLE_DEFAULTS
    if config.finetune == "head" and not config.feature_cache:
        defaults = {**defaults, "epochs": EPOCHS_OF_A_HEAD_ON_IMAGES}
    return dataclasses.replace(
        config, **{name: value for name, value in defaults.items() if getattr(config, name) is None}
    )


def with_default_lr(config: TrainConfig, global_batch_size: int) -> TrainConfig:
    """Fill in the learning rate, for a config that has its other defaults.

    The default grows with the square root of the global batch, as suits Adam (Granziol et al. 2022,
    arXiv:2006.09092); one that the user gives is taken as it is. In the place of ``auto`` stands the default, about
    which it will be searched.
    """
    if isinstance(config.lr, float | int):
        return config
    peak = PEAK_LR["head" if config.finetune == "head" else "whole"][config.optimizer]
    return dataclasses.replace(config, lr=float(f"{peak * (global_batch_size / 32) ** 0.5:.3g}"))


def build_plan(config: TrainConfig, order: Order, num_classes: int) -> Plan:
    """Steps, warm-up and learning rates of a run, from a config whose defaults are resolved."""
    steps_per_epoch = order.steps_per_epoch
    return Plan(
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=min(round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch // 2),
        peak_lr=config.lr,
        schedule=config.schedule,
        num_classes=num_classes,
        grad_accum_steps=config.grad_accum_steps,
        label_smoothing=config.label_smoothing,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        mix_epochs=config.epochs - config.mix_off_epochs,
        patience=config.patience,
        max_grad_norm=config.max_grad_norm,
        eval_every=config.eval_every,
        log_interval=config.log_interval,
        seed=config.seed,
    )


def view_sizes(config: TrainConfig, size: int) -> list[int]:
    """Side of the training views, epoch by epoch, in steps of 16 pixels; ``size`` is that of the last ones.

    Small views are a fast and strong augmentation to begin with; the last quarter of the epochs, or the last of a few,
    sees the full size.

    Source: Tan and Le 2021, EfficientNetV2, arXiv:2104.00298, section 4.
    """
    first = config.first_train_size or size
    growing = max(1, min(round(0.75 * config.epochs), config.epochs - 1))
    share = [min(1.0, epoch / growing) for epoch in range(config.epochs)]
    steps = [max(first, 16 * round((first + (size - first) * done) / 16)) for done in share]
    return [size if done == 1 else min(size, step) for done, step in zip(share, steps, strict=True)]


def parse_save_every(text: str, steps_per_epoch: int) -> tuple[int | None, float | None]:
    """Read ``--save-every``: "epoch", a number of steps ("200"), or minutes ("10m").

    Returns:
        Steps between checkpoints, or seconds between them; the other is None.

    Raises:
        UsageError: it is none of these.
    """
    if text == "epoch":
        return steps_per_epoch, None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text)
    if match and match[2] and float(match[1]) > 0:
        return None, float(match[1]) * 60
    if match and not match[2] and match[1].isdigit() and int(match[1]) > 0:
        return int(match[1]), None
    raise UsageError(f"--save-every: got {text!r}, expected epoch, a number of steps (200) or of minutes (10m)")


def fingerprint(config: TrainConfig, data: ImageFolders, global_batch_size: int, precision: str) -> dict:
    """All that must be the same for a run to be gone on with, by the name that a refusal shows.

    Args:
        precision: what is computed in; where no flag says, the machine and its launcher settle it.
    """
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {"--" + name.replace("_", "-"): value for name, value in flags.items() if name not in FREE_FLAGS}
    return {
        "global_batch_size": global_batch_size,
        "classes": _digest(list(data.classes.folders), None),
        "train images": images_digest(data.train),
        "valid images": images_digest(data.valid),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()},
        "--mixed-precision": precision,
    }


def images_digest(samples: Samples) -> str:
    """How many images, and a short hash of their names and classes."""
    return _digest(samples.paths, samples)


def _digest(names, samples: Samples | None) -> str:
    """How many, and a short hash of the names (and classes): equal only for the same images in the same order."""
    found = hashlib.sha256()
    for name in names:
        found.update(os.fsencode(name) + b"\0")
    if samples is not None:
        found.update(np.ascontiguousarray(samples.targets, dtype=np.int64).tobytes())
    return f"{len(names)} ({found.hexdigest()[:12]})"
