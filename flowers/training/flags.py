"""The flags of a run: which values are refused, and how the others are resolved."""

import dataclasses
import re

from flowers.config.presets import check_model
from flowers.config.train import DEFAULT_MODEL, DEFAULT_OF_A_HEAD, OF_STEPS, TrainConfig
from flowers.config.values import check_least, check_sizes, given
from flowers.errors import UsageError
from flowers.flags import spelled
from flowers.training.checkpoint import Checkpoint
from flowers.training.model import Model, train_sizes

TUNED = ("lr", "label_smoothing", "weight_decay", "hidden")
"""Settings that ``--tune-head`` finds, or found in earlier versions."""
FOUND_WIDE = ("model", "image_size", "views")
"""Settings that ``--tune-head wide`` finds, too."""
HEAD_DEFAULTS = {
    "epochs": 50, "optimizer": "adamw", "weight_decay": 0.1, "label_smoothing": 0.1, "model_ema_decay": 0.0,
    "scale": (0.5, 1.0), "auto_augment": "none",
}  # fmt: skip
FIT_DEFAULTS = HEAD_DEFAULTS | {
    "epochs": 1, "optimizer": "lbfgs", "lr": 1.0, "weight_decay": 0.001, "label_smoothing": 0.05,
}  # fmt: skip
WHOLE_DEFAULTS = {
    "epochs": 20, "optimizer": "sgd", "weight_decay": 1e-4, "label_smoothing": 0.1, "model_ema_decay": 0.995,
    "scale": (0.25, 1.0), "auto_augment": "trivial",
}  # fmt: skip
"""Chosen by measurement on 20 photos a class of Oxford 102; tests/bench/README.md says what each brought."""
EPOCHS_OF_A_HEAD_ON_IMAGES = 10
OF_DRAWN_VIEWS = {
    "color_jitter": (), "random_erasing": (), "auto_augment": ("none",), "rotation": (0.0,), "hflip": (0.0,),
    "vflip": (), "scale": (HEAD_DEFAULTS["scale"], (1.0, 1.0)),
}  # fmt: skip
"""Flags about how a training view is drawn, and the values beside the defaults that ask for nothing where none is."""
PEAK_LR = {"head": {"adamw": 3e-3, "adam": 3e-3, "sgd": 0.03}, "whole": {"adamw": 3e-4, "adam": 3e-4, "sgd": 0.03}}

MAX_COUNT = 1_000_000
"""Of epochs and the like: a list of more would fill the memory before anything is said."""


def check_flags(config: TrainConfig) -> None:
    """Refuse values that no run can have, and flags that have no effect together.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    check_values(config)
    if config.min_lr > 0 and config.schedule == "constant":
        raise UsageError("--min-lr: no effect with --schedule constant, which stays at --lr; leave it out")
    if config.finetune == "head" and (config.layer_decay < 1 or config.drop_path > 0 or config.freeze_bn):
        raise UsageError(
            "--layer-decay, --drop-path and --freeze-bn are about training the backbone: add --finetune full or staged"
        )
    if config.refit_head and config.finetune == "head":
        raise UsageError(
            "--refit-head fits a head to a network that was trained: add --finetune full or staged, or --no-refit-head"
        )
    if config.refit_head and (config.hidden is not None or config.dropout > 0):
        raise UsageError("--refit-head fits a linear head: leave out --hidden and --dropout, or add --no-refit-head")
    if config.refit_head and config.continue_from is not None:
        raise UsageError("--refit-head fits a new head, --continue-from goes on with one: add --no-refit-head")
    if config.grad_checkpointing and (config.finetune == "head" or config.compile):
        other = "--compile decides itself what is kept" if config.compile else "a frozen backbone keeps no activations"
        raise UsageError(f"--grad-checkpointing: no effect, as {other}; leave it out")
    if config.uses_features and (config.mixup_alpha > 0 or config.cutmix_alpha > 0):
        raise UsageError("--mixup-alpha and --cutmix-alpha mix images, features are cached: add --no-feature-cache")
    if config.uses_features and config.cache != "none":
        raise UsageError(
            f"--cache {config.cache} keeps decoded images, but with cached features each is decoded once: leave it "
            "out, or add --no-feature-cache"
        )
    if config.views > 1 and not config.uses_features:
        raise UsageError(f"--views {config.views} is for cached features; without them every epoch draws a new view")
    if config.tune_head and not (config.uses_features or config.finetune == "staged"):
        raise UsageError("--tune-head tries heads on cached features: use it with --finetune head or staged")
    if config.tune_head == "wide" and config.finetune != "head":
        raise UsageError("--tune-head wide chooses what a head sees: use it with --finetune head")
    if config.tune_head and config.lr == "auto" and config.finetune == "head":
        raise UsageError("--tune-head looks for the learning rate too: leave --lr auto out")
    if config.uses_features and config.views == 1 and (others := given(config, OF_DRAWN_VIEWS, OF_DRAWN_VIEWS)):
        raise UsageError(
            f"{others}: no effect, as features are cached from a single unaugmented view; add --views K or "
            "--no-feature-cache"
        )
    if config.optimizer == "lbfgs":
        if not config.uses_features:
            raise UsageError("--optimizer lbfgs fits a head to cached features: use it with --finetune head")
        if others := given(config, OF_STEPS, {name: (value,) for name, value in FIT_DEFAULTS.items()}):
            raise UsageError(
                f"{others}: no effect with --optimizer lbfgs, which fits a linear head at once; leave it out"
            )
    check_model(config.recipe, config.model)


def check_values(config: TrainConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    at_least = {
        "epochs": 1, "batch_size": 1, "grad_accum_steps": 1, "hidden": 1, "image_size": 1, "resize": 1, "views": 1,
        "eval_every": 1, "log_interval": 1, "keep": 2, "workers": 0, "seed": 0, "warmup_epochs": 0, "weight_decay": 0,
        "rotation": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "color_jitter": 0, "mix_off_epochs": 0, "patience": 1,
        "train_size": 1, "first_train_size": 1, "max_pixels": 1, "min_lr": 0, "max_images": 1, "max_train_images": 1,
    }  # fmt: skip
    check_least(config, at_least)
    for name in at_least:
        if (value := getattr(config, name)) == float("inf"):
            raise UsageError(f"{spelled(name)}: got {value}, expected a finite number")
    at_most = dict.fromkeys(("epochs", "grad_accum_steps", "views", "warmup_epochs"), MAX_COUNT)
    for name, most in {**at_most, "rotation": 180, "color_jitter": 1}.items():
        if (value := getattr(config, name)) is not None and value > most:
            raise UsageError(f"{spelled(name)}: got {value}, expected at most {most}")
    check_sizes(config.batch_size, config.workers)
    if config.seed >= 2**64:
        raise UsageError(f"--seed: got {config.seed}, expected less than 2**64")
    for name in ("lr", "max_grad_norm", "max_hours"):
        value = getattr(config, name)
        if value not in (None, "auto") and not 0 < value < float("inf"):
            raise UsageError(f"{spelled(name)}: got {value}, expected a number above 0")
    whole_shares = ("hflip", "vflip", "random_erasing")
    for name in (*whole_shares, "dropout", "label_smoothing", "val_fraction", "model_ema_decay", "drop_path"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= (1 if name in whole_shares else 0.99999):
            most = "1" if name in whole_shares else "below 1"
            raise UsageError(f"{spelled(name)}: got {value}, expected a share from 0 to {most}")
    if not 0 < config.layer_decay <= 1:
        raise UsageError(f"--layer-decay: got {config.layer_decay}, expected a share above 0, at most 1")
    if config.scale is not None and not 0 < config.scale[0] <= config.scale[1] <= 1:
        raise UsageError(f"--scale: got {config.scale}, expected two shares of the area, such as 0.5 1.0")
    for name, least in (("mean", 0.0), ("std", 1e-6)):
        values = getattr(config, name) or ()
        if not all(least <= value <= 1 for value in values):
            got = " ".join(f"{value:g}" for value in values)
            raise UsageError(
                f"--{name}: got {got}, expected three numbers from {least:g} to 1, for pixels from 0 to 1; divide "
                "those for pixels from 0 to 255 by 255"
            )
    if config.image_size and config.resize and config.resize < config.image_size:
        raise UsageError(f"--resize: got {config.resize}, expected at least --image-size {config.image_size}")
    sizes = (config.first_train_size, config.train_size)
    if None not in sizes and sizes[0] > sizes[1]:
        raise UsageError(f"--first-train-size: got {sizes[0]}, expected at most --train-size {sizes[1]}")
    parse_save_every(config.save_every, 1)


def with_default_model(config: TrainConfig, resumed: Checkpoint | None) -> TrainConfig:
    """The flags with the network that is the default where none is given; a resumed run keeps its own.

    So it does with what ``--tune-head wide`` found.
    """
    if resumed is not None and config.tune_head == "wide":
        found = {name: resumed.fingerprint[spelled(name)] for name in FOUND_WIDE}
        return dataclasses.replace(config, **found)
    if config.model is not None:
        return config
    name = DEFAULT_OF_A_HEAD if config.uses_features else DEFAULT_MODEL
    begun = resumed and resumed.fingerprint["--model"]
    return dataclasses.replace(config, model=begun if begun in (DEFAULT_MODEL, DEFAULT_OF_A_HEAD) else name)


def fits_at_once(config: TrainConfig, resumed: Checkpoint | None) -> bool:
    """True if a linear head is fitted by L-BFGS; a run that an earlier version began with small steps goes on so."""
    if config.optimizer is None and resumed is not None and resumed.fingerprint["--optimizer"] != "lbfgs":
        return False
    return config.fits_at_once


def resolve(config: TrainConfig, model: Model, world_size: int, resumed: Checkpoint | None) -> TrainConfig:
    """Fill in every default that depends on the stage, the model or the global batch.

    The default learning rate grows with the square root of the global batch, as suits Adam (Granziol et al. 2022,
    arXiv:2006.09092). It also replaces ``auto``, as the centre of the search. A resumed run gets the settings that were
    searched for when it began.

    Raises:
        UsageError: sizes of training views that the network does not take, or that shrink.
    """
    whole = config.finetune != "head"
    fits = fits_at_once(config, resumed)
    if config.tune_head and config.uses_features and resumed is None and not fits:
        flags = ", ".join(map(spelled, (*OF_STEPS, "weight_decay", "label_smoothing")))
        raise UsageError(
            f"--tune-head fits linear heads at once (lbfgs) and finds their weight decay: leave out {flags}"
        )
    defaults = dict(WHOLE_DEFAULTS if whole else FIT_DEFAULTS if fits else HEAD_DEFAULTS)
    if not (whole or config.feature_cache):
        defaults["epochs"] = EPOCHS_OF_A_HEAD_ON_IMAGES
    found = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    optimizer = found.get("optimizer", config.optimizer)
    last, first = train_sizes(config, model.classifier.backbone, model.preprocessing.crop)
    found |= {"train_size": last, "first_train_size": first}
    if not isinstance(config.lr, float | int) and not fits:
        global_batch_size = config.batch_size * world_size * config.grad_accum_steps
        peak = PEAK_LR["whole" if whole else "head"][optimizer]
        found["lr"] = float(f"{peak * (global_batch_size / 32) ** 0.5:.3g}")
    lr = found.get("lr", config.lr)
    if config.lr != "auto" and config.min_lr > lr:
        raise UsageError(
            f"--min-lr: got {config.min_lr:g}, expected at most the peak learning rate, here {lr:g}: see --lr"
        )
    if resumed is not None:
        searched = TUNED if config.tune_head and config.uses_features else ("lr",) if config.lr == "auto" else ()
        found |= {name: resumed.fingerprint[spelled(name)] for name in searched}
        if config.label_smoothing is None:  # earlier versions had another default for a head fitted at once
            found["label_smoothing"] = resumed.fingerprint["--label-smoothing"]
    return dataclasses.replace(config, **found)


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
