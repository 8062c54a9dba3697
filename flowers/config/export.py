"""Flags of ``jobs/export.py``."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from flowers.config.values import check_least, given
from flowers.errors import UsageError
from flowers.flags import spelled

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "torchvision": ".pth"}
LAYOUTS = ("timm", "torchvision")
"""Formats that are another library's own tensors and names, in float32."""
MIN_AGREEMENT = {"float32": 0.995, "fp16": 0.995, "int8": 0.98}
OF_AN_EXPORT = (
    "precision", "input_type", "layout", "check_images", "check_count", "min_agreement", "calibration_images",
    "calibration_count", "runtime", "class_examples", "title", "model_card",
)  # fmt: skip
OF_AN_IMPORT = ("model", "classes", "image_size", "mean", "std", "resize", "crop_pct", "interpolation")
ONLY_WITH = {"web": ("runtime", "class_examples", "title"), "timm": ("model_card",)}
"""Fields that one format alone asks for."""


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained model for ONNX Runtime, OpenVINO or torch.export, or as a static web site that classifies in the
    browser. The result is kept only if it gives the same answers as the model on real photos.

    The exported file takes a batch of RGB images with pixels from 0 to 255 and returns probabilities; it contains
    normalisation, softmax, class names and preprocessing.

    With --from-state-dict it does the reverse: it makes a model folder of another trainer's weights.
    """

    GROUPS: ClassVar = {
        "output": "export",
        "check_images": "check on photos",
        "runtime": "web site",
        "from_state_dict": "import instead",
        "average": "average instead",
    }
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("checkpoint",)
    """Fields of paths that are looked for before anything is imported."""

    output: Path
    """File to write; NAME.json beside it tells how it was checked. With --format web or timm: the folder; with
    --from-state-dict: the model folder to write."""
    checkpoint: Path | None = None
    """Model folder, or a run folder (its best model)."""
    format: Literal["onnx", "openvino", "torch-export", "web", "timm", "torchvision"] | None = None
    """onnx writes .onnx, openvino writes .xml and .bin, torch-export writes .pt2, web writes a folder for any static
    host. timm writes a folder that timm itself loads; torchvision writes a state dict, .pth. These two are for networks
    that the library has, with a linear head."""
    model_card: bool = False
    """timm: write README.md, a model card for the Hugging Face hub."""
    precision: Literal["float32", "fp16", "int8"] = "float32"
    """fp16 halves the file; int8 quarters it and is calibrated on photos (not for torch-export)."""
    input_type: Literal["uint8", "float32"] = "uint8"
    """Type of the input pixels; both range from 0 to 255."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Input dimensions: NHWC as images are decoded, or NCHW with channels first."""

    check_images: Path | None = None
    """Folder of photos to compare on, best in class folders. Default: the validation split of the run."""
    check_count: int = 2000
    """Largest number of photos to compare on, sampled evenly."""
    min_agreement: float | None = None
    """Share of photos that must keep their best class; below it nothing is written. Default: 0.995, for int8 0.98."""
    calibration_images: Path | None = None
    """int8: folder of photos to calibrate value ranges on. Default: the training split of the run."""
    calibration_count: int = 300
    """int8: largest number of photos to calibrate on, sampled evenly."""

    runtime: Path | None = None
    """web: folder with the files of npm's onnxruntime-web. Default: where npm has installed it (node_modules from here
    upwards, $NODE_PATH, npm's global folder)."""
    class_examples: Path | None = None
    """web: folder with one folder of photos per class; the first photo of each becomes a public thumbnail."""
    title: str = "Photo classifier"
    """web: heading of the page and its name on a home screen."""

    from_state_dict: Path | None = None
    """Instead of --checkpoint and --format: .pth or .safetensors file with tensors named as in torchvision or timm, the
    .index.json of a sharded one, or a folder with one of these."""
    model: str | None = None
    """With --from-state-dict: the network, by a name that jobs/train.py takes, such as resnet18 or timm/NAME."""
    classes: Path | None = None
    """With --from-state-dict: text file with one class per line in output order, or JSON: [names], {name: index},
    {folder: display name}, or a config.json with id2label or label_names."""
    image_size: int | None = None
    """With --from-state-dict: side of the images that it was trained on. Default for this and the following flags: the
    values in a config.json beside the weights (timm's or Hugging Face's), otherwise the model's own."""
    mean: tuple[float, float, float] | None = None
    """With --from-state-dict: mean of red, green and blue used in its training, for pixels from 0 to 1."""
    std: tuple[float, float, float] | None = None
    """With --from-state-dict: standard deviation of red, green and blue used in its training."""
    resize: int | None = None
    """With --from-state-dict: short side in pixels before the centre crop."""
    crop_pct: float | None = None
    """With --from-state-dict, instead of --resize: the crop as a share of the short side."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """With --from-state-dict: interpolation used for resizing."""

    average: tuple[Path, ...] = ()
    """Instead of --checkpoint and --format: two or more runs, models or checkpoints of one network, trained from the
    same start. Their weights are averaged into a model folder, --output. It is measured beside them on --check-images;
    batch norm takes its statistics from --calibration-images. Both default to the run's own splits."""

    def __post_init__(self) -> None:
        check_least(self, {"check_count": 1, "calibration_count": 1, "image_size": 1, "resize": 1})
        if self.from_state_dict is not None:
            self._check_import()
        elif of_import := given(self, OF_AN_IMPORT):
            raise UsageError(f"{of_import}: only with --from-state-dict")
        elif self.average:
            self._check_average()
        else:
            self._check_export()

    def _check_export(self) -> None:
        self._check_needed(("checkpoint", "format"), "--checkpoint C --format F, or --from-state-dict FILE")
        self._check_output()
        for format, names in ONLY_WITH.items():
            if self.format != format and (others := given(self, names)):
                raise UsageError(f"{others}: only with --format {format}")
        if self.format == "web" and (of_input := given(self, ("input_type", "layout"))):
            raise UsageError(f"{of_input}: the page of --format web gives uint8 and NHWC; leave it out")
        if self.format in LAYOUTS and (of_file := given(self, ("precision", "input_type", "layout"))):
            raise UsageError(f"{of_file}: not with --format {self.format}; leave it out")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"--min-agreement: got {self.min_agreement}, expected a share from 0 to 1")
        if self.precision == "int8" and self.format == "torch-export":
            raise UsageError("--precision int8: not for torch-export; use --format openvino or onnx")
        if self.precision != "int8" and self.calibration_images is not None:
            raise UsageError("--calibration-images: only with --precision int8")

    def _check_output(self) -> None:
        suffix = SUFFIXES.get(self.format)
        if suffix is not None and self.output.suffix != suffix:
            raise UsageError(f"--output: got {self.output.name}, expected a name ending in {suffix}")
        if suffix is None and self.output.suffix in (*SUFFIXES.values(), ".safetensors", ".bin"):
            raise UsageError(f"--output: got {self.output.name}, expected a folder's name with --format {self.format}")

    def _check_average(self) -> None:
        if len(self.average) < 2:
            raise UsageError("--average: got one model, expected at least two")
        used = ("output", "average", "check_images", "check_count", "calibration_images")
        if others := given(self, [field.name for field in fields(self) if field.name not in used]):
            raise UsageError(f"{others}: not with --average")

    def _check_import(self) -> None:
        if others := given(self, ("checkpoint", "format", "average")):
            raise UsageError(f"{others}: not with --from-state-dict, which makes a model folder of a state dict")
        if of_export := given(self, OF_AN_EXPORT):
            raise UsageError(f"{of_export}: for an export; import with --from-state-dict first, then export that")
        self._check_needed(("model", "classes"), "--from-state-dict FILE --model NAME --classes FILE")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UsageError(f"--crop-pct: got {self.crop_pct}, expected a share above 0, up to 1")
        if self.crop_pct is not None and self.resize is not None:
            raise UsageError("--resize and --crop-pct say the same; give one of them")

    def _check_needed(self, names: tuple[str, ...], expected: str) -> None:
        for name in names:
            if getattr(self, name) is None:
                raise UsageError(f"{spelled(name)} is missing; expected {expected}")

    def file_format(self) -> str:
        """The format of the model's file; a site holds an ONNX file."""
        return "onnx" if self.format == "web" else self.format

    def threshold(self) -> float:
        """The share of photos whose best class must stay."""
        return MIN_AGREEMENT[self.precision] if self.min_agreement is None else self.min_agreement
