"""The flags of a prediction job: which are refused before the work begins, and which decide its rows."""

import os

from flowers import console
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.classes import names_digest
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.paths import readable
from flowers.engines.exported import ExportedModel
from flowers.errors import UsageError
from flowers.models.bundle import Bundle
from flowers.prediction.inputs import lies_in_input
from flowers.prediction.rows import columns
from flowers.prediction.sort_photos import check_target
from flowers.prediction.table import check_page


def check_flags(config: PredictConfig, bundle: Bundle | ExportedModel) -> None:
    """Refuse before the work begins what would fail when all is done, or be input the next time.

    Raises:
        UsageError: an output is a folder, or lies in the input folder and ends like a photo; embeddings of an export,
            or a column that there is not.
    """
    if config.embeddings is not None and isinstance(bundle, ExportedModel):
        raise UsageError("--embeddings: an exported file gives probabilities only; use the bundle it was made of")
    every = columns(_topk(config, bundle))
    if unknown := [name for name in config.chosen_columns() if name not in every]:
        raise UsageError(f"--columns: got {','.join(unknown)}, expected some of {','.join(every)}")
    for flag, path in (("--output", config.output), ("--embeddings", config.embeddings)):
        if path is None:
            continue
        if os.path.isdir(path):
            raise UsageError(f"{flag} {readable(path)}: this is a folder, a file name was expected")
        inside = lies_in_input(config.input, path)
        if inside and path.name.lower().endswith(tuple(extensions_of(config))):
            raise UsageError(f"{flag} {readable(path)} lies in the input folder, and --ext makes it input")
    check_target(config)
    if config.report and not config.overwrite:
        check_page(config.output)
    if config.topk > max(len(bundle.classes.folders), PredictConfig.topk):  # fewer than the default surprise nobody
        console.warn(f"--topk {config.topk}: the model knows {len(bundle.classes.folders)} classes, all are given")


def stored_min_prob(bundle: Bundle | ExportedModel) -> float:
    """The threshold that was fitted on validation images.

    Raises:
        UsageError: the model has none.
    """
    value = bundle.made.get("min_prob")
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(
            "--min-prob auto: the model stores no threshold; training does with enough validation images, so does "
            "evaluate --calibrate; or give a probability"
        )
    return value


def settings_of(config: PredictConfig, bundle: Bundle | ExportedModel) -> dict:
    """All that decides the rows, but for the files; flags that came later count only where they are not the default."""
    later = {name: getattr(config, name) for name in ("on_damaged", "max_pixels", "excel", "thumbnails")}
    names = config.chosen_columns()
    chosen = {"columns": names} if names and names != columns(_topk(config, bundle)) else {}
    return {
        "model": bundle.hash,
        "kind": OUTPUT_KINDS[config.suffix()],
        "topk": _topk(config, bundle),
        "min_prob": config.min_prob,
        "tta": config.tta,
        "engine": config.engine,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "embeddings": config.embeddings and os.path.relpath(config.embeddings, config.output.parent),
        **{name: value for name, value in later.items() if value != getattr(PredictConfig, name)},
        **chosen,
        **({"unfamiliar": config.unfamiliar} if getattr(bundle, "familiarity", None) is not None else {}),
        **({"class_names": names_digest(bundle.classes.labels)} if config.class_names is not None else {}),
    }


def _topk(config: PredictConfig, bundle: Bundle | ExportedModel) -> int:
    return min(config.topk, len(bundle.classes.folders))


def extensions_of(config: PredictConfig) -> frozenset[str]:
    """The endings of the files that are input."""
    given = config.extensions()
    return IMAGE_EXTENSIONS if given is None else given
