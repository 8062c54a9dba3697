"""ONNX Runtime for browsers: where npm has put it, and whether it is the version that was tested."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowers.data.paths import readable
from flowers.errors import UsageError, system_reason
from flowers.parsing import read_mapping

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
_NPM_TIMEOUT_S = 20


@dataclass(frozen=True)
class RuntimeFile:
    """A file of the npm package.

    Attributes:
        source: its name in the package's ``dist`` folder.
        target: its name in the site. It ends in .js, since many hosts send .mjs with a type that browsers refuse.
        sha256: hex, of ``VERSION``.
    """

    source: str
    target: str
    sha256: str


FILES = {
    "wasm": (
        RuntimeFile("ort.wasm.bundle.min.mjs", "ort-wasm.js",
                    "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
        RuntimeFile("ort-wasm-simd-threaded.wasm", "ort-wasm.wasm",
                    "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
    ),
    "webgpu": (
        RuntimeFile("ort.webgpu.bundle.min.mjs", "ort-webgpu.js",
                    "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2"),
        RuntimeFile("ort-wasm-simd-threaded.asyncify.wasm", "ort-webgpu.wasm",
                    "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"),
    ),
}  # fmt: skip
"""Backend: what it is made of. A device loads one backend only."""


def find_runtime(folder: Path | None) -> Path:
    """The folder with the files of the npm package.

    Args:
        folder: --runtime: the files themselves, the unpacked package, or a folder that npm has installed it in; None
            looks in node_modules here and above, in $NODE_PATH and in npm's global folder.

    Raises:
        UsageError: it is not there; says how to get it.
    """
    first = FILES["wasm"][0].source
    if folder is not None:
        below = ("", "dist", "package/dist", f"{PACKAGE}/dist", f"node_modules/{PACKAGE}/dist")
        places = (folder / name for name in below)
    else:
        places = (modules / PACKAGE / "dist" for modules in _module_folders())
    found = next((place for place in places if (place / first).is_file()), None)
    if found is None and folder is not None:
        raise UsageError(
            f"--runtime {readable(folder)}: no {first} in it, nor in its dist; expected {PACKAGE} {VERSION} "
            f"(npm pack {PACKAGE}@{VERSION}, then unpack the .tgz)"
        )
    if found is None:
        raise UsageError(
            f"--format web needs {PACKAGE} {VERSION}: npm install {PACKAGE}@{VERSION} here; without network or npm, "
            f"get its files with npm pack {PACKAGE}@{VERSION} elsewhere, unpack the .tgz and give --runtime DIR"
        )
    return found


def copy_runtime(source: Path, backends: tuple[str, ...], target: Path) -> None:
    """Copy the files that these backends need, once each is found to be the one that was tested.

    Args:
        source: as ``find_runtime`` gives it.
        target: a folder, made here.

    Raises:
        UsageError: a file is missing, or its content is another.
    """
    target.mkdir()
    for file in (file for backend in backends for file in FILES[backend]):
        try:
            data = (source / file.source).read_bytes()
        except OSError as error:
            reason = system_reason(error)
            raise UsageError(f"{readable(source / file.source)}: {reason}; {_reinstall()}") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != file.sha256:
            raise UsageError(
                f"{readable(source / file.source)}: SHA-256 {digest[:12]}..., expected {file.sha256[:12]}... of "
                f"{PACKAGE} {VERSION} (here is {_version_at(source)}); {_reinstall()}"
            )
        (target / file.target).write_bytes(data)


def _module_folders() -> Iterator[Path]:
    """The folders that node searches, then npm's global one."""
    here = Path.cwd()
    yield from (folder / "node_modules" for folder in (here, *here.parents))
    yield from (Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder)
    npm = shutil.which("npm")
    if npm is not None:
        try:
            said = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=_NPM_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return
        if said.returncode == 0:
            yield Path(said.stdout.strip())


def _version_at(source: Path) -> str:
    return str(read_mapping(source.parent / "package.json").get("version", "an unknown version"))


def _reinstall() -> str:
    return f"npm install {PACKAGE}@{VERSION}, or give --runtime DIR"
