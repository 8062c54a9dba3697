"""From other trainers: a plain state dict and a list of classes become a bundle.

The state dict is a .safetensors or .pth file of tensors by the names that torchvision or timm give them, or a
checkpoint that has one under ``state_dict``, ``model`` or the like. Its head may be one linear layer, or two: those
are taken to have a ReLU between them, since tensors do not say.

The classes, in the order of the network's outputs, are a text file with one a line (a tab and a display name may
follow), or JSON: a list of names, or ``{"name": index}``, or ``{"folder": "display name"}`` sorted by folder, as
torchvision's ImageFolder does.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowers import console
from flowers.data.classes import ClassIndex
from flowers.data.paths import readable, some
from flowers.errors import DataError, ModelError, OutputError
from flowers.models.backbones import build_backbone, skip_random_init
from flowers.models.bundle import DESCRIPTION_FILE, Bundle, how_made, save_bundle
from flowers.models.heads import HeadSpec
from flowers.models.weights import WEIGHTS_FILE, fit_weights, read_state_dict

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # of inception_v3 and googlenet; they only served the training


def import_state_dict(
    file: Path, model: str, classes: Path, output: Path, image_size: int | None = None, config: Mapping | None = None
) -> int:
    """The job: make a bundle of a state dict, write it, say what it is.

    Returns:
        0.

    Raises:
        OutputError: there is a folder of that name which is no bundle; it is left alone.
        FlowersError: as ``bundle_from_state_dict``, and a place that cannot be written.
    """
    if output.is_dir() and not {path.name for path in output.iterdir()} <= {DESCRIPTION_FILE, WEIGHTS_FILE}:
        raise OutputError(f"--output {readable(output)}: holds other files than a bundle's; give a new folder")
    bundle = bundle_from_state_dict(file, model, classes, image_size, config)
    save_bundle(bundle, output)
    view = bundle.preprocessing
    console.facts(
        f"{model}: {readable(file)}",
        [
            ("head", "linear" if bundle.head.hidden is None else f"hidden layer of {bundle.head.hidden}"),
            ("classes", f"{len(bundle.classes)}: {some(list(bundle.classes.labels))}"),
            ("images", f"short side to {view.resize}, centre {view.crop} x {view.crop}, {view.interpolation}; mean "
             f"{', '.join(f'{value:.3f}' for value in view.mean)}: was it trained so?"),
        ],
    )  # fmt: skip
    data = ("--data-dir", "DATA", "--split", "valid")
    console.done("imported", [("model", output)], [console.job_command("evaluate", "--checkpoint", output, *data)])
    return 0


def bundle_from_state_dict(
    file: Path, model: str, classes: Path, image_size: int | None = None, config: Mapping | None = None
) -> Bundle:
    """Make a bundle of a state dict; nothing of the file is run.

    Args:
        file: the state dict.
        model: the network's name, as ``--model`` of training takes it.
        classes: what its outputs mean; see the head of this module.
        image_size: side of the square that it was trained on; default: that of the model's ImageNet weights, whose
            mean and deviation of pixels are taken in any case.
        config: kept in the bundle as how it was made.

    Raises:
        ModelError: an unknown model; tensors that are missing, too many, of another shape or not finite; a head of
            another kind or for another number of classes.
        DataError: the file of classes cannot be read or is no list of different names.
    """
    index = read_class_list(classes)
    where = readable(file)
    with skip_random_init():
        network, num_features, preprocessing = build_backbone(model, "none", image_size)
    state = read_state_dict(file)
    names = network.state_dict().keys()
    if any(name.startswith("backbone.") for name in state) and not any(name.startswith("backbone.") for name in names):
        state = {name.removeprefix("backbone."): value for name, value in state.items()}
    odd = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise ModelError(f"{where}: holds numbers that are not finite, in {some(odd)}")
    own = {name: value for name, value in state.items() if name in names}
    rest = {name: value for name, value in state.items() if name not in names and not name.startswith(AUXILIARY)}
    layers = find_head(rest, num_features)
    is_whole = all(name in own or name.endswith("num_batches_tracked") for name in names)
    fit_weights(network, own if is_whole or layers else {**own, **rest}, where)
    if layers is None:
        raise ModelError(f"{where}: {_why_no_head(rest, num_features, model)}")
    num_classes = len(layers[-1][0])
    if num_classes != len(index):
        raise ModelError(f"{where}: its head gives {num_classes} classes, {readable(classes)} names {len(index)}")
    hidden = len(layers[0][0]) if len(layers) == 2 else None
    if hidden is not None:
        console.warn(f"the head has two layers, {num_features} to {hidden} to {num_classes}: ReLU is taken in between")
    tensors = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    for name, (weight, bias) in zip(("head.hidden", "head.output")[-len(layers) :], layers, strict=True):
        tensors |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    made = {**how_made(config), "from": f"state dict {file.name}"}
    head = HeadSpec(num_classes, num_features, hidden)
    return Bundle(model, head, index, preprocessing, {}, made, tensors)


def find_head(rest: Mapping[str, Tensor], num_features: int) -> list[tuple[Tensor, Tensor]] | None:
    """The linear layers among tensors that are not the backbone's, first to last.

    Returns:
        weight [out, in] and bias [out] of one or two layers; None if the tensors are no such head.
    """
    weights = {name.removesuffix("weight"): value for name, value in rest.items() if name.endswith("weight")}
    biases = {name.removesuffix("bias"): value for name, value in rest.items() if name.endswith("bias")}
    if len(weights) + len(biases) != len(rest) or not biases.keys() <= weights.keys() or not 1 <= len(weights) <= 2:
        return None
    if any(value.ndim != 2 or not value.is_floating_point() for value in weights.values()):
        return None
    for order in (list(weights), list(weights)[::-1]):
        width, layers = num_features, []
        for prefix in order:
            weight = weights[prefix]
            bias = biases.get(prefix, torch.zeros(len(weight)))
            if weight.shape[1] != width or bias.shape != weight.shape[:1] or not len(weight):
                break
            layers.append((weight, bias))
            width = len(weight)
        else:
            return layers
    return None


def _why_no_head(rest: Mapping[str, Tensor], num_features: int, model: str) -> str:
    if not rest:
        return f"has no head: expected a last layer from {num_features} features to the classes beside {model}'s own"
    shapes = some([f"{name} {list(value.shape)}" for name, value in rest.items()])
    return (
        f"the head is of another kind: got {shapes}; expected weight and bias of one linear layer, or of two, from "
        f"the {num_features} features of {model}"
    )


def read_class_list(path: Path) -> ClassIndex:
    """What a network's outputs mean; see the head of this module.

    Raises:
        DataError: the file cannot be read, or is no list of different names.
    """
    where = readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix.lower() == ".json" else None
    except OSError as error:
        raise DataError(f"--classes {where}: cannot be read: {(error.strerror or '').lower()}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--classes {where}: {' '.join(str(error).split())}") from None
    if values is None:
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        pairs = [(line[0].strip(), line[-1].strip() or line[0].strip()) for line in lines]
    else:
        pairs = _pairs(values, where)
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not pairs or twice:
        raise DataError(f"--classes {where}: " + (f"{some(twice)} stands there twice" if twice else "names no class"))
    for name in names:
        if not name or name in (".", "..") or any(character in name for character in {"/", "\0", os.sep}):
            raise DataError(f"--classes {where}: class {name!r} cannot be the name of a folder")
    return ClassIndex(tuple(names), tuple(label for _, label in pairs))


def _pairs(values: object, where: str) -> list[tuple[str, str]]:
    """Class and display name in index order, from JSON.

    Raises:
        DataError: it is none of the forms that are known, or its order is not clear.
    """
    if isinstance(values, list) and all(isinstance(name, str) for name in values):
        return [(name, name) for name in values]
    if isinstance(values, dict) and all(type(index) is int for index in values.values()):
        if sorted(values.values()) == list(range(len(values))):
            return [(name, name) for name in sorted(values, key=values.get)]
        raise DataError(f"--classes {where}: the indices are not 0 to {len(values) - 1}, each once")
    if isinstance(values, dict) and all(isinstance(label, str) and label for label in values.values()):
        by_number = sorted(values, key=lambda name: (len(name), name))
        if set(values) == {str(index) for index in range(len(values))} and by_number != sorted(values):
            raise DataError(
                f"--classes {where}: are 0 to {len(values) - 1} indices, or folders in the order of their names (0, 1, "
                "10, ...)? Write a list of the names in index order instead"
            )
        return [(name, values[name]) for name in sorted(values)]
    raise DataError(f'--classes {where}: expected a list of names, {{"name": index}} or {{"folder": "display name"}}')
