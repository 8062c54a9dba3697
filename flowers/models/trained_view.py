"""How another trainer's model saw its images: from flags, else from the config.json beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from flowers.data.paths import readable
from flowers.data.preprocessing import MAX_SIDE, Preprocessing
from flowers.errors import ModelError
from flowers.parsing import read_json

CONFIGS = ("config.json", "preprocessor_config.json")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # of Pillow, as Hugging Face writes it


@dataclass(frozen=True)
class TrainedView:
    """Size and scaling of the images that a model was trained on; None where nothing says so.

    Attributes:
        image_size: side of the square that the network takes, in pixels.
        mean, std: per channel, of pixels in 0 to 1.
        resize: short side before the crop, in pixels.
        crop_pct: image_size as a share of ``resize``; without effect where that is given.
        interpolation: "bilinear" or "bicubic".
    """

    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None

    def check(self) -> None:
        """Refuse sizes that no image has.

        Raises:
            ValueError: names the value.
        """
        for name in ("image_size", "resize"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIDE:
                raise ValueError(f"{name} is {value}, expected 1 to {MAX_SIDE}")
        if self.crop_pct is not None and not 0.01 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}, expected 0.01 to 1")

    def over(self, other: "TrainedView") -> "TrainedView":
        """Return this view, with the values of another where it has none."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.resize is None and self.crop_pct is not None:
            other = replace(other, resize=None)
        return replace(other, **{name: value for name, value in given.items() if value is not None})

    def preprocessing(self, default: Preprocessing) -> Preprocessing:
        """Return the preprocessing of this view.

        Args:
            default: the model's own, at the same image size.

        Raises:
            ModelError: values that no picture could be put through.
        """
        resize = self.resize or (int(default.crop / self.crop_pct) if self.crop_pct else default.resize)
        return replace(
            default, resize=resize, mean=tuple(self.mean or default.mean), std=tuple(self.std or default.std),
            interpolation=self.interpolation or default.interpolation,
        )  # fmt: skip


def read_view(weights: Path) -> TrainedView:
    """Read the config.json of timm, or the two of Hugging Face, beside a weights file or in its folder.

    Raises:
        ModelError: one of them is broken.
    """
    folder = weights if weights.is_dir() else weights.parent
    view = TrainedView()
    for name in CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            values = read_json(path)
            if isinstance(values, dict):
                view = _view(values).over(view)
                view.check()
        except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{readable(path)}: cannot be read as a model's config: {reason}") from None
    return view


def _view(values: Mapping) -> TrainedView:
    """Read either kind of file."""
    if isinstance(values.get("pretrained_cfg"), dict) or ("crop_pct" in values and "input_size" in values):
        timm = values.get("pretrained_cfg", values)
        interpolation = timm.get("interpolation")
        return TrainedView(
            image_size=int(timm["input_size"][-1]) if timm.get("input_size") else None,
            mean=_three(timm.get("mean")),
            std=_three(timm.get("std")),
            crop_pct=timm.get("crop_pct") and float(timm["crop_pct"]),
            interpolation=interpolation if interpolation in _RESAMPLE.values() else None,
        )
    size, crop = _side(values.get("size")), _side(values.get("crop_size")) if values.get("do_center_crop") else None
    image_size = crop or size or _side(values.get("image_size"))
    crop_pct = values.get("crop_pct") and float(values["crop_pct"])
    return TrainedView(
        image_size=image_size,
        mean=_three(values.get("image_mean")),
        std=_three(values.get("image_std")),
        resize=size if size and not crop_pct else None,
        crop_pct=crop_pct or None,
        interpolation=_RESAMPLE.get(values.get("resample")),
    )


def _side(size: object) -> int | None:
    """A size of Hugging Face: a number, or a mapping with the short side, or height and width."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _three(values: object) -> tuple[float, float, float] | None:
    if values is None:
        return None
    red, green, blue = map(float, values)
    return red, green, blue
