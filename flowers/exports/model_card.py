"""``README.md`` of an exported model, as the Hugging Face hub shows it: data, figures, calibration, how to load it."""

from pathlib import Path

import yaml

from flowers.exports.compare import Agreement
from flowers.models.bundle import Bundle
from flowers.parsing import read_mapping
from flowers.reports.calibration import wilson_interval

MOST_CLASSES = 200


def model_card(bundle: Bundle, agreement: Agreement) -> str:
    """Write a model's card, in Markdown with the metadata of the hub on top.

    Args:
        agreement: how far the export agrees with the bundle.
    """
    metadata = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm"],
        "metrics": ["accuracy"],
    }
    made, view = bundle.made, bundle.preprocessing
    config = made.get("config") or {}
    data = Path(str(config["data_dir"])).name if config.get("data_dir") else None
    about = [
        f"Image classifier of {len(bundle.classes.folders)} classes: {bundle.model} with one linear layer, "
        f"{'fine-tuned on ' + data if data else 'fine-tuned'} with flowers.",
    ]
    temperature = made.get("temperature")
    calibrated = (
        f"The probabilities are calibrated: logits are divided by a temperature of {temperature:.4g}, which is part of "
        "the weights."
        if isinstance(temperature, int | float)
        else "The probabilities are not calibrated."
    )
    sections = {
        "Figures": _figures(bundle),
        "Calibration": calibrated,
        "Load": (
            '```python\nimport timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
            'names = model.pretrained_cfg["label_names"]\n```'
        ),
        "Input": (
            f"{'sRGB, to which other color profiles are converted' if view.to_srgb else 'RGB'}, short side "
            f"{view.resize} px ({view.interpolation}), the middle {view.crop} x {view.crop} px, pixels "
            f"from 0 to 1, minus {list(view.mean)}, divided by {list(view.std)}."
        ),
        "Check": (
            f"Loaded by timm, it gives the same class as the model that it was exported from on "
            f"{agreement.same_top1:.2%} of {agreement.images} photos; the largest difference of a probability is "
            f"{agreement.max_prob_difference:.1e}."
        ),
        "Classes": _classes(bundle),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    head = yaml.safe_dump(metadata, sort_keys=False)
    return f"---\n{head}---\n\n# {bundle.model}\n\n{' '.join(about)}\n\n{body}\n"


def _figures(bundle: Bundle) -> str:
    """A table of the figures in the run's metrics.json, or else in the bundle."""
    splits = _measured(bundle) or {"valid": {k.removeprefix("valid_"): v for k, v in bundle.metrics.items()}}
    rows = []
    for split, of in splits.items():
        numbers = {name: value for name, value in of.items() if isinstance(value, int | float)}  # a card needs no other
        top1, images, ece = map(numbers.get, ("top1", "images", "ece"))
        if top1 is None:
            continue
        between = "not known"
        if images:
            low, high = wilson_interval(round(top1 * images), images)
            between = f"{low:.2%} to {high:.2%}"
        error = "not known" if ece is None else f"{ece:.2%}"
        rows.append(f"| {split} | {images or 'not known'} | {top1:.2%} | {between} | {error} |")
    if not rows:
        return "It was not measured."
    head = "| split | images | top1 | 95% interval | calibration error |\n|-|-|-|-|-|"
    return "\n".join([head, *rows])


def _measured(bundle: Bundle) -> dict:
    """The splits in metrics.json of the run that the model lies in, if it is about this model."""
    found = read_mapping(bundle.folder.parent / "metrics.json")
    splits = {split: of for split, of in found.items() if isinstance(of, dict)}
    top1 = splits.get("valid", {}).get("top1")
    return splits if top1 is not None and top1 == bundle.metrics.get("valid_top1") else {}


def _classes(bundle: Bundle) -> str:
    labels = bundle.classes.labels
    more = f", and {len(labels) - MOST_CLASSES} more" if len(labels) > MOST_CLASSES else ""
    return ", ".join(" ".join(label.split()) for label in labels[:MOST_CLASSES]) + more + "."
