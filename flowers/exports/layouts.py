"""The export to timm's and torchvision's own layouts: loaded as their users will, compared on photos, then kept."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flowers import console
from flowers.cli import to_plain
from flowers.config.export import ExportConfig
from flowers.errors import UsageError
from flowers.exports.compare import Agreement
from flowers.exports.model_card import model_card
from flowers.files import allow_as_usual, replace_folder, write_atomically
from flowers.made import how_made
from flowers.models.bundle import WEIGHTS_FILE, Bundle, refuse_other_files
from flowers.models.layouts import load_timm, timm_config, timm_layout, torchvision_layout

CHECKED_FILE = "flowers.json"
Infer = Callable[[np.ndarray], np.ndarray]


def export_layout(config: ExportConfig, bundle: Bundle, check: Callable[[Infer, int], Agreement]) -> None:
    """Write the folder for timm, or the file for torchvision; it is there only if it answers as the bundle does.

    Args:
        check: compares a function from pictures to probs with the bundle, and tells the size in bytes; raises where
            they differ.

    Raises:
        FlowersError: a network that the library does not have, a foreign folder in the way, a full disk, ...
    """
    if config.format == "torchvision":
        _export_torchvision(config, bundle, check)
        return
    _refuse_foreign(config.output)
    layout = timm_layout(bundle)
    with replace_folder(config.output) as folder:
        save_file(layout.tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        allow_as_usual(folder / WEIGHTS_FILE)
        (folder / "config.json").write_text(json.dumps(timm_config(bundle, layout), indent=2) + "\n", encoding="ascii")
        size_bytes = (folder / WEIGHTS_FILE).stat().st_size
        agreement = check(_runner(bundle, load_timm(folder)), size_bytes)
        (folder / CHECKED_FILE).write_text(json.dumps(_checked(config, bundle, agreement), indent=1), encoding="ascii")
        if config.model_card:
            (folder / "README.md").write_text(
                model_card(bundle, agreement), encoding="utf-8", errors="backslashreplace"
            )
    console.done(f"exported, {size_bytes / 1e6:.1f} MB", [("folder", config.output)])
    console.say(console.plain(f'load it: timm.create_model("local-dir:{config.output}", pretrained=True)'))


def _export_torchvision(config: ExportConfig, bundle: Bundle, check: Callable[[Infer, int], Agreement]) -> None:
    layout = torchvision_layout(bundle)
    content = io.BytesIO()
    torch.save(layout.tensors, content)
    content.seek(0)
    layout.network.load_state_dict(torch.load(content, weights_only=True))
    agreement = check(_runner(bundle, layout.network), content.getbuffer().nbytes)
    with write_atomically(config.output, "wb") as file:
        file.write(content.getbuffer())
    arguments = {"num_classes": bundle.head.num_classes, **layout.arguments}
    facts = {
        "network": layout.name, "arguments": arguments, "classes": list(bundle.classes.folders),
        "labels": list(bundle.classes.labels), "preprocessing": bundle.preprocessing.to_dict(),
        **_checked(config, bundle, agreement),
    }  # fmt: skip
    beside = config.output.with_name(f"{config.output.name}.json")
    with write_atomically(beside) as file:
        json.dump(facts, file, indent=1)
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


def _checked(config: ExportConfig, bundle: Bundle, agreement: Agreement) -> dict:
    return {
        "format": config.format, "model_hash": bundle.hash, "agreement": asdict(agreement),
        "min_agreement": config.threshold(), "made": how_made(to_plain(config)),
    }  # fmt: skip


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
