"""An example program that runs an exported ONNX file without this package."""

from flowers.engines.exported import KEY

_TEXT = """\
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
    return _TEXT.format(key=KEY, input_type=input_type, transpose=transpose)
