"""A folder for any static host: the page, the model, what runs it, and all that it needs without a network.

index.html page.css page.js photos.js rows.js    what is seen, and the table to save
classifier.js view.js                            the worker: photo, square, probabilities
model.onnx facts.json                            the network; classes, preprocessing, how it was checked
runtime/                                         ONNX Runtime: JavaScript and WebAssembly
examples/                                        a small photo of each class, by choice
service_worker.js manifest.webmanifest icon.*    offline use and the home screen
"""

import contextlib
import hashlib
import html
import importlib.resources
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flowers import console
from flowers.config.export import ExportConfig
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.paths import encode_path, readable
from flowers.engines.exported import load_exported
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import ImageError, UsageError
from flowers.exports.compare import Agreement, write_checked
from flowers.exports.photos import photos_in
from flowers.exports.web.runtime import VERSION, copy_runtime, find_runtime
from flowers.files import replace_folder
from flowers.models.bundle import Bundle, refuse_other_files
from flowers.parsing import read_mapping
from flowers.reports.photos import thumbnail

FORMAT = "flowers web"
EXAMPLE_SIDE = 96
SAME_BELOW = 0.05
"""Where the test pattern's probabilities differ by more, a browser or its GPU's driver computes something else."""
SHELL = (
    "index.html", "page.css", "page.js", "photos.js", "rows.js", "classifier.js", "view.js", "facts.json", "icon.svg",
    "icon.png", "manifest.webmanifest",
)  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'; "
    "img-src 'self' blob:; style-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""Nothing is sent anywhere but to the host itself, whatever a script tries."""


def export_site(config: ExportConfig, bundle: Bundle) -> None:
    """Write the folder; it is there only once the model in it answers as the bundle does.

    Raises:
        FlowersError: no runtime, a foreign folder in the way, too little agreement, a full disk, ...
    """
    _refuse_foreign(config.output)
    runtime = find_runtime(config.runtime)
    # int8 is for WebAssembly: GPUs in browsers have no instructions for it
    backends = ("wasm",) if config.precision == "int8" else ("webgpu", "wasm")
    with replace_folder(config.output) as folder:
        copy_runtime(runtime, backends, folder / "runtime")
        examples = None if config.class_examples is None else _write_examples(config.class_examples, bundle, folder)
        agreement, _ = write_checked(config, bundle, folder / "model.onnx")
        facts = _facts(config, bundle, folder / "model.onnx", agreement)
        facts |= {"backends": backends, "examples": examples}
        _write_page(config.title, facts, folder)
        sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
    _tell(sizes, backends)
    written = [("site", config.output)]
    console.done(
        f"exported, {sum(sizes.values()) / 1e6:.1f} MB", written,
        [["python", "-m", "http.server", "--directory", config.output, "8000"]],
    )  # fmt: skip


def _refuse_foreign(output: Path) -> None:
    """A folder that holds anything but an earlier site is not replaced: a clone of what a host publishes, say.

    Raises:
        UsageError: it is no earlier site, or a file.
        OutputError: it holds more than one.
    """
    if not output.exists() or (output.is_dir() and not os.listdir(output)):
        return
    if read_mapping(output / "facts.json").get("format") != FORMAT:
        raise UsageError(
            f"--output {readable(output)}: not empty and no earlier site; expected a new name for a folder"
        )
    refuse_other_files(output, (*SHELL, "model.onnx", "service_worker.js", "runtime", "examples"), "a site's")


def _facts(config: ExportConfig, bundle: Bundle, model: Path, agreement: Agreement) -> dict:
    """Facts for the page, for facts.json; no folder of this machine is named."""
    min_prob = bundle.made.get("min_prob", 0)
    return {
        "format": FORMAT,
        "version": 1,
        "runtime": VERSION,
        "model": bundle.model,
        "model_hash": bundle.hash,
        "model_bytes": model.stat().st_size,
        "precision": config.precision,
        "folders": [encode_path(name) for name in bundle.classes.folders],
        "labels": [encode_path(name) for name in bundle.classes.labels],
        "preprocessing": bundle.preprocessing.to_dict(),
        "min_prob": min_prob if isinstance(min_prob, int | float) and 0 <= min_prob <= 1 else 0,
        "extensions": sorted(IMAGE_EXTENSIONS),
        "agreement": {name: value for name, value in asdict(agreement).items() if name != "photos"},
        "check_probs": [round(float(prob), 6) for prob in _probs_of_pattern(model, bundle.preprocessing.crop)],
        "same_below": SAME_BELOW,
    }


def _probs_of_pattern(model: Path, crop: int) -> np.ndarray:
    """The exported model's answer to pixels that the page computes, too, to see that a browser's arithmetic is right.

    Returns:
        float32 [num_classes]
    """
    index = np.arange(crop * crop * 3)
    pattern = (index * 31 + (index >> 8) * 17).astype(np.uint8).reshape(1, crop, crop, 3)
    with contextlib.closing(build_exported_engine(load_exported(model), precision="auto", batch_size=1)) as engine:
        return engine.submit(pattern).result().probs[0]


def _write_examples(photos: Path, bundle: Bundle, folder: Path) -> list[str | None]:
    """A small photo of each class; None for a class without any."""
    found = photos_in(photos, bundle.classes, "--class-examples")
    (folder / "examples").mkdir()
    names: list[str | None] = [None] * len(bundle.classes)
    for path, target in zip(found.paths, found.targets, strict=True):
        if target >= 0 and names[target] is None:
            try:
                data = thumbnail(path, EXAMPLE_SIDE)
            except ImageError:
                continue
            names[target] = f"examples/{target}.jpg"
            (folder / names[target]).write_bytes(data)
    missing = names.count(None)
    if missing == len(names):
        raise UsageError(f"--class-examples {readable(photos)}: no photos in folders named as the model's classes")
    if missing:
        console.warn(f"--class-examples {readable(photos)}: no photo of {missing} of {len(names)} classes")
    return names


def _write_page(title: str, facts: dict, folder: Path) -> None:
    """Put everything else beside the model; the service worker, which lists all files and their hashes, comes last."""
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    templates = importlib.resources.files("flowers.exports.web") / "templates"
    for name in (name for name in SHELL if name not in ("facts.json", "manifest.webmanifest")):
        data = (templates / name).read_bytes()
        if name == "index.html":
            page = data.decode().replace("__POLICY__", POLICY).replace("__TITLE__", html.escape(title))
            data = page.encode(errors="backslashreplace")  # a title may hold bytes that are no UTF-8
        (folder / name).write_bytes(data)
    manifest = {
        "name": title, "short_name": title, "start_url": "./", "scope": "./", "display": "standalone",
        "background_color": "#f7f6f2", "theme_color": "#23523a",
        "icons": [
            {"src": "icon.svg", "sizes": "any", "type": "image/svg+xml", "purpose": "any"},
            {"src": "icon.png", "sizes": "512x512", "type": "image/png", "purpose": "any"},
            {"src": "icon.png", "sizes": "512x512", "type": "image/png", "purpose": "maskable"},
        ],
    }  # fmt: skip
    (folder / "manifest.webmanifest").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16] for name in _names(folder)}
    script = (templates / "service_worker.js").read_text(encoding="utf-8")
    for mark, value in (("__FILES__", json.dumps(hashes)), ("__SHELL__", json.dumps(SHELL)), ("__POLICY__", POLICY)):
        script = script.replace(mark, value)
    (folder / "service_worker.js").write_text(script, encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _tell(sizes: dict[str, int], backends: tuple[str, ...]) -> None:
    def total(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    runtimes = {name: total(f"runtime/ort-{name}.") for name in backends}
    page = sum(sizes.values()) - total("runtime/") - sizes["model.onnx"]
    rows = [("model.onnx", f"{sizes['model.onnx'] / 1e6:.1f} MB")]
    rows += [(f"runtime/ort-{name}.*", f"{size / 1e6:.1f} MB") for name, size in runtimes.items()]
    rows += [("page, icon, examples", f"{page / 1e6:.2f} MB")]
    first = [f"{(page + sizes['model.onnx'] + size) / 1e6:.1f} MB with {name}" for name, size in runtimes.items()]
    rows += [("first visit", "; ".join(first) + "; later ones load nothing")]
    console.facts(f"site, onnxruntime-web {VERSION}", rows)
