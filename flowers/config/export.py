"""Flags of ``jobs/export.py``."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from flowers.errors import UsageError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
MIN_AGREEMENT = {"float32": 0.995, "fp16": 0.995, "int8": 0.98}
OF_AN_EXPORT = {
    "precision", "input_type", "layout", "check_images", "check_count", "min_agreement", "calibration_images",
    "calibration_count",
}  # fmt: skip


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as one file for ONNX Runtime, OpenVINO or torch.export, once it has shown on real photos
    that it answers as the model does.

    The file takes RGB pixels from 0 to 255 in any number of images and gives probabilities: normalisation and softmax
    are inside, as are class names and preprocessing.

    Or, the other way, make a model bundle of another trainer's weights (--from-state-dict).
    """

    output: Path
    """The file; how it was checked goes beside it into NAME.json. With --from-state-dict: the bundle's folder."""
    checkpoint: Path | None = None
    """Model bundle, or a run folder (its best model)."""
    format: Literal["onnx", "openvino", "torch-export"] | None = None
    """What to write: .onnx, .xml with .bin, or .pt2."""
    config: Path | None = None
    """YAML file of defaults for these flags."""

    precision: Literal["float32", "fp16", "int8"] = "float32"
    """fp16 halves the file; int8 quarters it and is calibrated on photos (not for torch-export)."""
    input_type: Literal["uint8", "float32"] = "uint8"
    """Type of the pixels; both from 0 to 255."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Order of the input's dimensions: images, height, width, channels as pictures are decoded, or channels first."""

    check_images: Path | None = None
    """Folder of photos to compare on, best in class folders; default: the valid split of the run."""
    check_count: int = 2000
    """Compare on so many of them at most, taken evenly."""
    min_agreement: float | None = None
    """Share of photos whose best class must stay; below it nothing is written. Default: 0.995, int8 0.98."""
    calibration_images: Path | None = None
    """int8: folder of photos that show the range of values; default: the train split of the run."""
    calibration_count: int = 300
    """int8: take so many of them at most, taken evenly."""

    from_state_dict: Path | None = None
    """Instead of --checkpoint and --format: a .pth or .safetensors file of tensors by torchvision's or timm's names."""
    model: str | None = None
    """--from-state-dict: the network, by a name that training takes; timm/NAME for timm's."""
    classes: Path | None = None
    """--from-state-dict: text file with a class a line in the order of the outputs, or JSON: [names], {name: index},
    {folder: display name}."""
    image_size: int | None = None
    """--from-state-dict: side of the images that it was trained on; default: the model's own."""

    def __post_init__(self) -> None:
        if self.from_state_dict is not None:
            self._check_import()
            return
        for flag, value in (("model", self.model), ("classes", self.classes), ("image-size", self.image_size)):
            if value is not None:
                raise UsageError(f"--{flag} belongs to --from-state-dict")
        for flag, value in (("checkpoint", self.checkpoint), ("format", self.format)):
            if value is None:
                raise UsageError(f"--{flag} is missing; expected --checkpoint C --format F, or --from-state-dict FILE")
        suffix = SUFFIXES[self.format]
        if self.output.suffix != suffix:
            raise UsageError(f"--output: got {self.output.name}, expected a name ending in {suffix}")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"--min-agreement: got {self.min_agreement}, expected a share from 0 to 1")
        for flag, value in (("check", self.check_count), ("calibration", self.calibration_count)):
            if value < 1:
                raise UsageError(f"--{flag}-count: got {value}, expected at least 1")
        if self.precision == "int8" and self.format == "torch-export":
            raise UsageError("--precision int8: not for torch-export; use --format openvino or onnx")
        if self.precision != "int8" and self.calibration_images is not None:
            raise UsageError("--calibration-images belongs to --precision int8")

    def _check_import(self) -> None:
        for flag, value in (("checkpoint", self.checkpoint), ("format", self.format)):
            if value is not None:
                raise UsageError(f"--{flag} does not go with --from-state-dict, which makes a bundle of a state dict")
        for field in fields(self):
            if field.name in OF_AN_EXPORT and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise UsageError(f"--{flag} is for an export; import with --from-state-dict first, then export that")
        for flag, value in (("model", self.model), ("classes", self.classes)):
            if value is None:
                raise UsageError(f"--{flag} is missing; expected --from-state-dict FILE --model NAME --classes FILE")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"--image-size: got {self.image_size}, expected at least 1")

    def threshold(self) -> float:
        """The share of photos whose best class must stay."""
        return MIN_AGREEMENT[self.precision] if self.min_agreement is None else self.min_agreement
