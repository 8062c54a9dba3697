"""The export job: write a file beside its final place, compare it with the bundle, then give it its name."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from flowers import console
from flowers.config.export import LAYOUTS, ExportConfig
from flowers.engines.exported import KEY, files_of
from flowers.environment import are_several
from flowers.errors import UsageError
from flowers.exports import graph
from flowers.exports.compare import how_checked, write_checked
from flowers.files import (
    explain_os_error,
    file_digest,
    folder_beside,
    sync_file,
    sync_folder,
    write_atomically,
    write_json,
)  # fmt: skip
from flowers.models.bundle import load_bundle


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
        from flowers.exports.layouts import export_layout

        export_layout(config, load_bundle(config.checkpoint))
        return 0
    graph.require(config.file_format(), config.precision)
    bundle = load_bundle(config.checkpoint)
    if bundle.familiarity is not None:
        console.say("the export will not mark unfamiliar photos: its output is probabilities, the score needs features")
    if config.format == "web":
        from flowers.exports.web.site import export_site

        export_site(config, bundle)
        return 0
    with _beside(config.output) as path:
        agreement, calibrated_on = write_checked(config, bundle, path)
        size_bytes = sum(file.stat().st_size for file in files_of(path))
        report = {
            "precision": config.precision,
            "input": {"type": config.input_type, "layout": config.layout},
            "bytes": size_bytes,
            "files": {file.suffix: file_digest(file) for file in files_of(path)},
            "calibrated_on": calibrated_on,
            **how_checked(config, bundle, agreement),
        }
        report_path = _publish(path, config.output, report)
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


def _publish(path: Path, output: Path, report: dict) -> Path:
    """Give checked files their names, and write the report, which holds their digests, beside them.

    A kill at any moment leaves the earlier export or the new one, perhaps without its report, since that of other files
    would have them refused; or, between two renames, no .xml: it never stands beside another's weights, for runtimes
    that look at no digests.

    Returns:
        The report's path.
    """
    report_path = output.with_name(output.name + ".json")
    for file in files_of(path):
        sync_file(file)
    report_path.unlink(missing_ok=True)
    if path.suffix == ".xml":
        output.unlink(missing_ok=True)
    for file in files_of(path):
        os.replace(file, output.with_name(file.name))
    sync_folder(output.parent)
    write_json(report_path, report)
    return report_path


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
