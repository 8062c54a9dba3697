"""Pre-trained weights from the net, each file once; without a connection the message says where to put it."""

import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flowers import console
from flowers.errors import ModelError
from flowers.files import make_folder, write_atomically
from flowers.locks import take_turns

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
        with contextlib.closing(_blocks(url, hint)) as blocks, write_atomically(target, "wb") as file:
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


def _blocks(url: str, hint: str) -> Iterator[bytes]:
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
