"""Runs of several stages: the folder of each in the run's, and the flags that it is trained with.

``--finetune staged`` trains a head in ``head/``, then the whole network in the run's own folder. With ``--refit-head``
the network, staged or not, is a run of its own in ``network/``, and the run's folder holds the head fitted to the mean
of the network's weights before and after training.
"""

import dataclasses
from pathlib import Path

from safetensors.torch import save

from flowers import console
from flowers.config.train import TrainConfig
from flowers.files import write_atomically
from flowers.models.backbones import build_backbone
from flowers.models.bundle import load_bundle
from flowers.models.weights import mean_of

HEAD_STAGE = "head"
NETWORK_STAGE = "network"
AVERAGED = "averaged.safetensors"
"""In the folder of the network: the weights that a head is fitted to."""
REFIT_VIEWS = 4
OF_THE_NETWORK = {
    "epochs", "optimizer", "lr", "weight_decay", "schedule", "min_lr", "warmup_epochs", "max_grad_norm", "mixup_alpha",
    "cutmix_alpha", "mix_off_epochs", "model_ema_decay", "layer_decay", "drop_path", "freeze_bn", "patience",
    "grad_checkpointing", "train_size", "first_train_size", "eval_every", "scale", "auto_augment",
}  # fmt: skip
"""In a run of several stages these flags apply to the whole network; its heads are trained with the defaults."""


def folders(run_dir: Path) -> list[Path]:
    """Where the stages of a run may lie."""
    return [run_dir, run_dir / HEAD_STAGE, run_dir / NETWORK_STAGE, run_dir / NETWORK_STAGE / HEAD_STAGE]


def of_first_head(config: TrainConfig) -> TrainConfig:
    """The flags of the head that a staged run begins with."""
    own = _defaults() | {"finetune": "head", "log_with": None}
    if not config.tune_head:
        own["optimizer"] = "adamw"  # what the whole network's recipe was measured with
    return _inside(config, HEAD_STAGE, own)


def of_network(config: TrainConfig) -> TrainConfig:
    """The flags of the network that ``--refit-head`` fits a head to."""
    own = {"refit_head": False, "run_name": config.run_name or config.output_dir.name}
    return _inside(config, NETWORK_STAGE, own)


def of_refit_head(config: TrainConfig) -> TrainConfig:
    """The flags of the head that ``--refit-head`` fits to a trained network."""
    own = _defaults() | {
        "finetune": "head", "feature_cache": True, "views": REFIT_VIEWS, "optimizer": "lbfgs", "label_smoothing": None,
        "hidden": None, "dropout": 0.0, "weights": str(config.output_dir / NETWORK_STAGE / AVERAGED),
        "cache": "none", "compile": False, "mixed_precision": "no", "log_with": None, "refit_head": False,
        "tune_head": False,  # by cross-validation on images that the network has learnt by heart
    }  # fmt: skip
    return dataclasses.replace(config, **own)


def write_average(network: TrainConfig) -> None:
    """Write the mean of the network's weights before and after training; those after it where it began at random.

    Halfway back the network still knows what many more images taught it; tests/bench/README.md says what it brings.

    Args:
        network: the flags that it was trained with.

    Raises:
        ModelError: its model is gone.
        FlowersError: the file cannot be written.

    Source: Wortsman et al. 2021, "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
    """
    trained, prefix = load_bundle(network.output_dir), "backbone."
    tensors = trained.state_dict.items()
    state = {name.removeprefix(prefix): value for name, value in tensors if name.startswith(prefix)}
    if network.weights != "none":
        console.say("a new head is fitted to the mean of the weights before and after training")
        start = build_backbone(trained.model, network.weights, network.image_size).network
        state = mean_of([start.state_dict(), state])
    with write_atomically(network.output_dir / AVERAGED, "wb") as file:
        file.write(save(state))


def _defaults() -> dict[str, object]:
    fields = dataclasses.fields(TrainConfig)
    return {field.name: field.default for field in fields if field.name in OF_THE_NETWORK}


def _inside(config: TrainConfig, folder: str, own: dict[str, object]) -> TrainConfig:
    """The flags of a stage that another one follows."""
    shared = {"output_dir": config.output_dir / folder, "resume": "auto", "report": False, "calibrate": False}
    return dataclasses.replace(config, **shared, **own)
