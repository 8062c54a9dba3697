"""The export under timm's and torchvision's own names, so that these libraries load a model without this package.

It is loaded as their users will, compared on photos, then kept.
"""

import io
import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowers import console
from flowers.config.export import ExportConfig
from flowers.errors import ModelError, UsageError
from flowers.exports.compare import Infer, check, how_checked, photos_to_compare
from flowers.exports.model_card import model_card
from flowers.exports.photos import Photos
from flowers.files import allow_as_usual, replace_folder, write_atomically, write_json
from flowers.models.backbones import last_linear, skip_random_init, split_variant, timm_network, torchvision_options
from flowers.models.bundle import WEIGHTS_FILE, Bundle, refuse_other_files
from flowers.models.pretrained import LITE_MODELS
from flowers.models.stages import split_name

CHECKED_FILE = "flowers.json"
SAME = 1e-3
"""Largest difference of logits, as a share of the largest logit, with which two networks are the same."""
LOADS_FOLDERS = "1.0.26"
"""Version of timm that is the first to load a local folder with safetensors."""
TWINS = {
    "mobilenet_v2": "mobilenetv2_100",
    "vit_b_16": "vit_base_patch16_224", "vit_b_32": "vit_base_patch32_224", "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    **{f"efficientnet_b{size}": f"efficientnet_b{size}" for size in range(8)},
    **{
        name: name
        for name in (
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
            "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "densenet121", "densenet161", "densenet169",
            "densenet201",
        )
    },
}  # fmt: skip
"""torchvision's networks to the same ones of timm; whether they are the same is seen from their logits each time."""


def export_layout(config: ExportConfig, bundle: Bundle) -> None:
    """Write the folder for timm, or the file for torchvision; it is there only if it answers as the bundle does.

    Raises:
        FlowersError: a network that the library does not have, a foreign folder in the way, a full disk, ...
    """
    photos = photos_to_compare(config, bundle)
    if config.format == "torchvision":
        _export_torchvision(config, bundle, photos)
        return
    _refuse_foreign(config.output)
    layout = timm_layout(bundle)
    with replace_folder(config.output) as folder:
        save_file(layout.tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        allow_as_usual(folder / WEIGHTS_FILE)
        (folder / "config.json").write_text(json.dumps(timm_config(bundle, layout), indent=2) + "\n", encoding="ascii")
        size_bytes = (folder / WEIGHTS_FILE).stat().st_size
        agreement = check(config, bundle, _runner(bundle, load_timm(folder)), photos, size_bytes)
        (folder / CHECKED_FILE).write_text(
            json.dumps(how_checked(config, bundle, agreement), indent=1), encoding="ascii"
        )
        if config.model_card:
            (folder / "README.md").write_text(
                model_card(bundle, agreement), encoding="utf-8", errors="backslashreplace"
            )
    console.done(f"exported, {size_bytes / 1e6:.1f} MB", [("folder", config.output)])
    console.say(console.plain(f'load it: timm.create_model("local-dir:{config.output}", pretrained=True)'))


def _export_torchvision(config: ExportConfig, bundle: Bundle, photos: Photos) -> None:
    layout = torchvision_layout(bundle)
    content = io.BytesIO()
    torch.save(layout.tensors, content)
    content.seek(0)
    layout.network.load_state_dict(torch.load(content, weights_only=True))
    agreement = check(config, bundle, _runner(bundle, layout.network), photos, content.getbuffer().nbytes)
    with write_atomically(config.output, "wb") as file:
        file.write(content.getbuffer())
    arguments = {"num_classes": bundle.head.num_classes, **layout.arguments}
    facts = {
        "network": layout.name, "arguments": arguments, "classes": list(bundle.classes.folders),
        "labels": list(bundle.classes.labels), "preprocessing": bundle.preprocessing.to_dict(),
        **how_checked(config, bundle, agreement),
    }  # fmt: skip
    beside = config.output.with_name(f"{config.output.name}.json")
    write_json(beside, facts)
    console.done("exported", [("state dict", config.output), ("classes and how it was checked", beside)])
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    console.say(console.plain(f'load it: torchvision.models.get_model("{layout.name}", {given}).load_state_dict(...)'))


def _runner(bundle: Bundle, network: nn.Module) -> Infer:
    """From pictures uint8 [B, S, S, 3] to probs by another library's network, with its own arithmetic of pixels."""
    network.eval()
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (bundle.preprocessing.mean, bundle.preprocessing.std)
    )

    def infer(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            return network((pixels - mean) / std).softmax(1).numpy()

    return infer


def _refuse_foreign(output: Path) -> None:
    """A folder that holds anything but an earlier export is not replaced: a clone of a hub's repository, say.

    Raises:
        UsageError: it is no earlier export.
        OutputError: it holds more than one.
    """
    if output.is_dir() and not os.listdir(output):
        return
    if output.exists() and not (output / CHECKED_FILE).is_file():
        raise UsageError(f"--output {output}: holds something else than an earlier --format timm; give another folder")
    refuse_other_files(output, (WEIGHTS_FILE, "config.json", CHECKED_FILE, "README.md"), "an export's")


class Layout(NamedTuple):
    """A model as another library has it.

    Attributes:
        name: of the network there.
        tensors: by that library's names.
        arguments: of the function that builds the network, beside the number of classes.
        network: that library's own, filled, in evaluation mode.
    """

    name: str
    tensors: dict[str, Tensor]
    arguments: dict
    network: nn.Module


def timm_layout(bundle: Bundle) -> Layout:
    """Give a model timm's names.

    Raises:
        ModelError: timm has no such network, or none with such a head.
    """
    from timm import is_model

    base = _plain_name(bundle, "timm")
    name = LITE_MODELS[base].timm_name if base in LITE_MODELS else TWINS.get(base)
    variant = ""
    if base.startswith("timm/"):
        name, variant = split_variant(base)
        name = name.partition(".")[0]
    if name is None or not is_model(name):
        raise ModelError(f"{base}: timm has no network of the same shape; use --format torchvision or onnx")
    with skip_random_init():
        network, arguments = timm_network(name, variant, bundle.head.num_classes, bundle.preprocessing.crop)
    head = network.pretrained_cfg.get("classifier")
    if not isinstance(head, str):
        raise ModelError(f"{base}: timm's network has {len(head or ())} classifiers, this model one; use --format onnx")
    return _filled(bundle, Layout(name, {}, arguments, network), head, "timm")


def torchvision_layout(bundle: Bundle) -> Layout:
    """Give a model torchvision's names.

    Raises:
        ModelError: torchvision has no such network, or none with such a head.
    """
    from torchvision import models

    base = _plain_name(bundle, "torchvision")
    if base in LITE_MODELS or base.startswith("timm/"):
        raise ModelError(f"{base}: torchvision has no such network; use --format timm or onnx")
    arguments = torchvision_options(base, bundle.preprocessing.crop)
    with skip_random_init():
        network = models.get_model(base, weights=None, num_classes=bundle.head.num_classes, **arguments)
    head = last_linear(network)
    if head is None or isinstance(network, models.VGG | models.AlexNet):
        raise ModelError(f"{base}: torchvision's head is another than this model's one linear layer; use --format onnx")
    return _filled(bundle, Layout(base, {}, arguments, network), head, "torchvision")


def load_timm(folder: Path) -> nn.Module:
    """Load a folder as timm's users do.

    Raises:
        ModelError: the installed timm is too old for that.
    """
    from packaging.version import parse
    from timm import __version__, create_model

    if parse(__version__) < parse(LOADS_FOLDERS):
        raise ModelError(f"timm {__version__} cannot load a folder: pip install 'timm>={LOADS_FOLDERS}'")
    return create_model(f"local-dir:{folder}", pretrained=True).eval()


def timm_config(bundle: Bundle, layout: Layout) -> dict:
    """Describe a model as timm's config.json does: architecture, classes and the view of a picture."""
    view, classes, config = bundle.preprocessing, bundle.classes, layout.network.pretrained_cfg
    share = view.crop / view.resize
    if math.floor(view.crop / share) != view.resize:  # rounding: timm cuts the quotient off
        share = view.crop / (view.resize + 1e-3)
    return {
        "architecture": layout.name,
        "num_classes": bundle.head.num_classes,
        "num_features": bundle.head.in_features,
        "label_names": list(classes.folders),
        "label_descriptions": dict(zip(classes.folders, classes.labels, strict=True)),
        **({"model_args": layout.arguments} if layout.arguments else {}),
        "pretrained_cfg": {
            "tag": "flowers",
            "custom_load": False,
            "num_classes": bundle.head.num_classes,
            "input_size": [3, view.crop, view.crop],
            "fixed_input_size": bool(config.get("fixed_input_size")),
            "mean": list(view.mean),
            "std": list(view.std),
            "interpolation": view.interpolation,
            "crop_pct": share,
            "crop_mode": "center",
            "pool_size": config.get("pool_size"),
            "first_conv": config.get("first_conv"),
            "classifier": config.get("classifier"),
        },
    }


def _plain_name(bundle: Bundle, library: str) -> str:
    base, stages = split_name(bundle.model)
    if stages:
        raise ModelError(f"{bundle.model}: {library} has no head on several stages (+{stages}); use --format onnx")
    if bundle.head.hidden is not None:
        raise ModelError(f"{bundle.model}: {library} has no head with a hidden layer; use --format onnx")
    return base


def _filled(bundle: Bundle, layout: Layout, head: str, library: str) -> Layout:
    """Put the model's tensors into the other library's network, and see that both give the same logits.

    Raises:
        ModelError: they do not.
    """
    refusal = f"{bundle.model}: {library}'s {layout.name} is another network than this model's; use --format onnx"
    state, wanted = bundle.state_dict, layout.network.state_dict()
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    own = {f"{head}.weight": state["head.output.weight"], f"{head}.bias": state["head.output.bias"]}
    tensors = _paired(backbone, {name: value for name, value in wanted.items() if name not in own})
    if tensors is None or any(name not in wanted or wanted[name].numel() != own[name].numel() for name in own):
        raise ModelError(refusal)
    tensors |= {name: value.reshape(wanted[name].shape) for name, value in own.items()}
    layout.network.load_state_dict(tensors)
    network = layout.network.eval()
    size = bundle.preprocessing.crop
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = bundle.build()(images), network(images)
    if got.shape != expected.shape or float((got - expected).abs().max()) > SAME * float(expected.abs().max()):
        raise ModelError(refusal)
    return layout._replace(tensors={name: value.contiguous().clone() for name, value in tensors.items()})


def _paired(source: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Give tensors the wanted names: their own, or by order among those of one shape; None where they do not fit."""
    if {name: value.shape for name, value in source.items()} == {name: value.shape for name, value in wanted.items()}:
        return dict(source)
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for value in source.values():
        by_shape[value.shape].append(value)
    queues = {shape: iter(values) for shape, values in by_shape.items()}
    tensors = {name: next(queues.get(value.shape, iter(())), None) for name, value in wanted.items()}
    fits = len(source) == len(wanted) and all(value is not None for value in tensors.values())
    return tensors if fits else None
