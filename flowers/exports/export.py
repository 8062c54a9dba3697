"""The export job: write a file beside its final place, compare it with the bundle, then give it its name."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flowers import console
from flowers.cli import to_plain
from flowers.config.export import LAYOUTS, ExportConfig
from flowers.engines import openvino_engine
from flowers.engines.exported import KEY, as_input, describe, files_of
from flowers.environment import are_several
from flowers.errors import ModelError, UsageError
from flowers.exports import graph, quantize
from flowers.exports.compare import Agreement, Infer, compare, running
from flowers.exports.photos import Photos, photos_for
from flowers.files import (
    explain_os_error,
    file_digest,
    folder_beside,
    sync_file,
    sync_folder,
    write_atomically,
    write_json,
)
from flowers.made import how_made
from flowers.models.bundle import Bundle, load_bundle


def export(config: ExportConfig) -> int:
    """Export, compare, tell; the file is there only if it answers as the bundle does.

    Returns:
        0.

    Raises:
        FlowersError: nothing to compare with, a network or format that does not go together, too little agreement, ...
    """
    if are_several():
        raise UsageError("export.py is one process: start it without a launcher")
    if config.format in LAYOUTS:
        _export_layout(config)
        return 0
    graph.require(config.file_format(), config.precision)
    bundle = load_bundle(config.checkpoint)
    if bundle.familiarity is not None:
        console.say("the export will not mark unfamiliar photos: its output is probabilities, the score needs features")
    if config.format == "web":
        from flowers.exports.web.site import export_site

        export_site(config, bundle, lambda path: _write_checked(config, bundle, path)[0])
        return 0
    with _beside(config.output) as path:
        agreement, calibrated_on = _write_checked(config, bundle, path)
        size_bytes = sum(file.stat().st_size for file in files_of(path))
        report = {
            "format": config.format,
            "precision": config.precision,
            "input": {"type": config.input_type, "layout": config.layout},
            "bytes": size_bytes,
            "files": {file.suffix: file_digest(file) for file in files_of(path)},
            "model_hash": bundle.hash,
            "agreement": asdict(agreement),
            "min_agreement": config.threshold(),
            "calibrated_on": calibrated_on,
            "made": how_made(to_plain(config)),
        }
        _publish(path, config.output)
    report_path = config.output.with_name(config.output.name + ".json")
    write_json(report_path, report)
    written, then = [("export", config.output), ("how it was checked", report_path)], []
    if config.format == "onnx":
        example = config.output.with_name(config.output.name + ".example.py")
        with write_atomically(example) as file:
            file.write(example_program(config.input_type, config.layout))
        written.append(("runs it with nothing of ours", example))
    if config.format != "torch-export":
        then = [console.job_command("predict", "--checkpoint", config.output, "--input", "PHOTOS")]
    console.done(f"exported, {size_bytes / 1e6:.1f} MB", written, then)
    return 0


def _export_layout(config: ExportConfig) -> None:
    """Export to another library's own layout."""
    from flowers.exports.layouts import export_layout

    bundle = load_bundle(config.checkpoint)

    def check(infer: Infer, size_bytes: int) -> Agreement:
        agreement = compare(bundle, infer, _photos_to_compare(bundle, config))
        _judge(config, bundle, agreement, None, size_bytes)
        return agreement

    export_layout(config, bundle, check)


def _write_checked(config: ExportConfig, bundle: Bundle, path: Path) -> tuple[Agreement, str | None]:
    """Write the export to a temporary place and compare it with the bundle.

    Returns:
        how far they agree; the photos that int8 was calibrated on, for the user.

    Raises:
        ModelError: they agree too little.
    """
    photos = _photos_to_compare(bundle, config)
    calibration, calibrated_on = None, None
    if config.precision == "int8":
        source = photos_for(bundle, config.calibration_images, "train", "--calibration-images")
        source = source.take(config.calibration_count)
        views = np.concatenate([images for images, _ in source.views(bundle.preprocessing)])
        calibration, calibrated_on = as_input(views, config.input_type, config.layout), source.said
    _write(config, bundle, calibration, path)
    with running(path, config.file_format()) as infer:
        agreement = compare(bundle, infer, photos)
    _judge(config, bundle, agreement, calibrated_on, sum(file.stat().st_size for file in files_of(path)))
    return agreement, calibrated_on


def _judge(
    config: ExportConfig, bundle: Bundle, agreement: Agreement, calibrated_on: str | None, size_bytes: int
) -> None:
    """Tell how far export and bundle agree.

    Raises:
        ModelError: too little.
    """
    _tell(config, bundle, agreement, calibrated_on, size_bytes)
    if agreement.same_top1 < config.threshold():
        raise ModelError(
            f"the export agrees with the bundle on {agreement.same_top1:.2%} of the photos, expected "
            f"{config.threshold():.2%}: nothing was written; "
            + ("calibrate on more photos, or use" if config.precision == "int8" else "use")
            + " another --precision or --format, or set --min-agreement"
        )


def _write(config: ExportConfig, bundle: Bundle, calibration: np.ndarray | None, path: Path) -> None:
    """Write the export itself."""
    size = bundle.preprocessing.crop
    # OpenVINO's fp16 is how weights are kept; the device settles how to compute
    computed = "float32" if config.format == "openvino" else config.precision
    network = graph.ProbsNetwork(bundle, computed, config.layout).eval()
    images = graph.example(size, config.input_type, config.layout)
    made = {**how_made(), **{name: bundle.made[name] for name in ("temperature", "min_prob") if name in bundle.made}}
    text = describe(bundle, config.precision, config.input_type, config.layout, made)
    if config.format == "torch-export":
        graph.write_torch_export(network, images, text, path)
        return
    floating = path.with_name("float.onnx")
    graph.write_onnx(network, images, floating)
    if config.format == "openvino":
        model = openvino_engine.read_model(floating)
        if calibration is not None:
            model = quantize.quantize_openvino(model, calibration)
        graph.write_openvino(model, config.precision, text, path)
    elif calibration is not None:
        quantize.quantize_onnx(floating, path, calibration)
        floating.unlink()
        graph.write_onnx_text(path, text)
    else:
        os.replace(floating, path)
        graph.write_onnx_text(path, text)


def _photos_to_compare(bundle: Bundle, config: ExportConfig) -> Photos:
    return photos_for(bundle, config.check_images, "valid", "--check-images").take(config.check_count)


def _tell(
    config: ExportConfig, bundle: Bundle, agreement: Agreement, calibrated_on: str | None, size_bytes: int
) -> None:
    side = bundle.preprocessing.crop
    shape = f"batch, {side}, {side}, 3" if config.layout == "NHWC" else f"batch, 3, {side}, {side}"
    rows = [
        ("input", f"images: {config.input_type} [{shape}], RGB, 0 to 255"),
        ("output", f"probs: float32 [batch, {len(bundle.classes)}]"),
    ] if config.format not in LAYOUTS else [
        ("input", f"images: float32 [batch, 3, {side}, {side}], RGB, normalised"),
        ("output", f"logits: float32 [batch, {len(bundle.classes)}]"),
    ]  # fmt: skip
    rows += [
        ("size", f"{size_bytes / 1e6:.1f} MB"),
        ("compared on", f"{agreement.images} photos, {agreement.photos}"
                        + (f"; {agreement.unreadable} are unreadable" if agreement.unreadable else "")),
        ("same top1", f"{agreement.same_top1:.2%}, largest difference of a probability "
                      f"{agreement.max_prob_difference:.1e}"),
    ]  # fmt: skip
    if calibrated_on is not None:
        rows.insert(3, ("calibrated on", calibrated_on))
    if agreement.labelled:
        rows.append(("top1", f"{agreement.export_top1:.2%} of {agreement.labelled} photos in class folders, "
                             f"the bundle {agreement.bundle_top1:.2%}"))  # fmt: skip
    console.facts(f"{bundle.model}: {config.format} {config.precision}", rows)


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A name for the file in a folder of its own beside its final place, which goes away in the end."""
    try:
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder", output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(output) as folder:
            yield folder / output.name
    except OSError as error:
        raise explain_os_error(error, output) from error


def _publish(path: Path, output: Path) -> None:
    """Give checked files their names, the one that names the model last: it never stands beside another's weights."""
    for file in files_of(path):
        sync_file(file)
    if path.suffix == ".xml":
        output.unlink(missing_ok=True)
    for file in files_of(path):
        os.replace(file, output.with_name(file.name))
    sync_folder(output.parent)


_EXAMPLE_PROGRAM = """\
# Classifies photos with an exported model; needs onnxruntime, pillow and numpy only.
import io, json, pathlib, sys, numpy, onnxruntime
from PIL import Image, ImageCms, ImageOps

if len(sys.argv) != 3 or not all(pathlib.Path(name).exists() for name in sys.argv[1:]):
    sys.exit(f"usage: python {{sys.argv[0]}} MODEL.onnx PHOTO_OR_FOLDER, of files that exist")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
model = json.loads(session.get_modelmeta().custom_metadata_map["{key}"])
view, given = model["preprocessing"], pathlib.Path(sys.argv[2])
for path in sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]:
    try:
        photo = ImageOps.exif_transpose(Image.open(path))
        photo = photo if photo.mode in ("L", "CMYK") else photo.convert("RGB")
        if view.get("to_srgb") and (profile := photo.info.get("icc_profile")):
            try:
                srgb = ImageCms.createProfile("sRGB")
                photo = ImageCms.profileToProfile(photo, io.BytesIO(profile), srgb, outputMode="RGB")
            except (ImageCms.PyCMSError, ValueError):
                pass  # not a profile of such a photo
        photo = photo.convert("RGB")
    except OSError as error:
        print(f"{{path}}: {{error}}", file=sys.stderr)
        continue
    size = [view["resize"] * side // min(photo.size) for side in photo.size]
    left, top = (round((side - view["crop"]) / 2) for side in size)
    pixels = numpy.asarray(photo.resize(size, Image.Resampling[view["interpolation"].upper()]), "{input_type}")
    images = pixels[None, top : top + view["crop"], left : left + view["crop"]]{transpose}
    probs = session.run(["probs"], {{"images": images}})[0][0]
    if given.is_dir():
        print(path)
    for index in probs.argsort()[::-1][:5]:
        print(f"{{probs[index]:.4f}}  {{model['classes'][index]}}  {{model['labels'][index]}}")
"""


def example_program(input_type: str, layout: str) -> str:
    """Return the program for files with this input."""
    transpose = ".transpose(0, 3, 1, 2)" if layout == "NCHW" else ""
    return _EXAMPLE_PROGRAM.format(key=KEY, input_type=input_type, transpose=transpose)
