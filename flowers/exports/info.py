"""Description of a bundle, a checkpoint or a run folder, for people and, as JSON, for programs.

The JSON object::

    {"path": what was asked about, "kind": "bundle", "checkpoint" or "run", "folder": where the model lies,
     "model": ..., "head": {...}, "parameters": n, "preprocessing": {...},
     "classes": [{"folder": ..., "label": ...}, ...], "metrics": {...}, "made": {...}, "bytes": n, "hash": SHA-256,
     "verified": true if it is as it was written, false if nothing stored tells,
     "unfamiliar": {"threshold": ..., "share": ..., "images": n} of a model that marks unfamiliar photos, else null,
     "state": {"step": ..., "epoch": ..., "finished": ...},         of a checkpoint, or a run's newest one
     "checkpoints": [name, ...], "final_metrics": {split: {...}}}   of a run

An exported file has the kind "onnx" or "openvino", "precision" and "input" in the place of head, parameters and
unfamiliar.
"""

import json
from pathlib import Path

from flowers import console
from flowers.config.info import InfoConfig
from flowers.data.folders import ClassIndex
from flowers.data.paths import readable, some
from flowers.engines.exported import SUFFIXES, ExportedModel, files_of, open_model
from flowers.flags import spelled
from flowers.models.bundle import DESCRIPTION_FILE, Bundle, load_bundle
from flowers.models.familiarity import Familiarity
from flowers.models.weights import WEIGHTS_FILE
from flowers.parsing import read_mapping

STATE_FILE = "state.json"
_STATE = ("step", "epoch", "finished")


def info(config: InfoConfig) -> int:
    """Tell.

    Returns:
        0.

    Raises:
        ModelError: there is no model, or none that loads; the reason is given.
    """
    facts = describe(config.path)
    if config.json:
        print(json.dumps(facts, indent=1, default=str))
    else:
        console.facts(f"{facts['kind']}: {readable(config.path)}", rows(facts))
    return 0


def describe(path: Path) -> dict:
    """Describe a model; see the head of this module. The network is built, so missing or odd tensors are found.

    Raises:
        ModelError: there is no model, or none that loads; the reason is given.
    """
    path = Path(path)
    if path.suffix.lower() in (*SUFFIXES, ".pt2") and not path.is_dir():
        return describe_export(open_model(path))
    checkpoints = sorted(folder for folder in path.glob("checkpoints/step-*") if folder.is_dir())
    is_run = bool(checkpoints) or (path / "history.jsonl").exists()
    has_model = any((path / name / DESCRIPTION_FILE).exists() for name in ("", "best", "last"))
    bundle = load_bundle(checkpoints[-1] if checkpoints and not has_model else path)
    kind = "run" if is_run else "checkpoint" if (bundle.folder / STATE_FILE).exists() else "bundle"
    facts = {"path": str(path), "kind": kind, **describe_bundle(bundle)}
    state = read_mapping((checkpoints[-1] if checkpoints else bundle.folder) / STATE_FILE).get("progress")
    if isinstance(state, dict):
        facts["state"] = {name: state[name] for name in _STATE if name in state}
    if is_run:
        facts["checkpoints"] = [folder.name for folder in checkpoints]
        measured = {split: of for split, of in read_mapping(path / "metrics.json").items() if isinstance(of, dict)}
        facts["final_metrics"] = {
            split: {name: value for name, value in of.items() if isinstance(value, int | float)}
            for split, of in measured.items()
        }
    return facts


def describe_bundle(bundle: Bundle) -> dict:
    """Describe a bundle: its own description, and counts.

    Raises:
        ModelError: its tensors are not those of the model that it names.
    """
    return {
        "folder": str(bundle.folder),
        "model": bundle.model,
        "head": bundle.head.to_dict(),
        "parameters": sum(parameter.numel() for parameter in bundle.build().parameters()),
        "preprocessing": bundle.preprocessing.to_dict(),
        "classes": _classes(bundle.classes),
        "metrics": bundle.metrics,
        "made": bundle.made,
        "unfamiliar": _unfamiliar(bundle.familiarity),
        "bytes": sum((bundle.folder / name).stat().st_size for name in (DESCRIPTION_FILE, WEIGHTS_FILE)),
        "hash": bundle.hash,
        "verified": "hash" in read_mapping(bundle.folder / DESCRIPTION_FILE).get("made", {}),
    }


def describe_export(model: ExportedModel) -> dict:
    """Describe an exported file.

    Raises:
        ModelError: it cannot be read.
    """
    return {
        "path": str(model.path),
        "kind": model.format,
        "folder": str(model.path.parent),
        "model": model.model,
        "precision": model.precision,
        "input": {"type": model.input_type, "layout": model.layout},
        "preprocessing": model.preprocessing.to_dict(),
        "classes": _classes(model.classes),
        "metrics": model.metrics,
        "made": model.made,
        "bytes": sum(file.stat().st_size for file in files_of(model.path)),
        "hash": model.hash,
        "verified": model.is_verified,
    }


def _classes(classes: ClassIndex) -> list[dict[str, str]]:
    return [{"folder": folder, "label": label} for folder, label in zip(classes.folders, classes.labels, strict=True)]


def _unfamiliar(familiarity: Familiarity | None) -> dict | None:
    return familiarity and {name: getattr(familiarity, name) for name in ("threshold", "share", "images")}


def rows(facts: dict) -> list[tuple[str, object]]:
    """Return the description for people, as pairs of name and value."""
    view = facts["preprocessing"]
    if "head" in facts:
        hidden = facts["head"]["hidden"]
        layers = "linear head" if hidden is None else f"head with a hidden layer of {hidden}"
        network = f"{facts['model']}, {layers}, {facts['parameters']:,} parameters"
    else:
        network = f"{facts['model']}, {facts['precision']}, takes {facts['input']['type']} {facts['input']['layout']}"
    made, state = facts["made"], facts.get("state")
    training = calibrated = sure = familiar = damage = None
    if state is not None:
        step, epoch, finished = (state.get(name) for name in _STATE)
        counts = [(step, "step"), (epoch, "epoch")]
        said = [console.counted(count, noun) for count, noun in counts if isinstance(count, int | float)]
        training = f"{', '.join(said)}; {'finished' if finished else 'not finished'}"
    if isinstance(temperature := made.get("temperature"), float):
        calibrated = f"logits divided by a temperature of {temperature:.4g}"
    if isinstance(min_prob := made.get("min_prob"), int | float):
        sure = f"an answer below {min_prob:.4f} is unsure"
    if found := facts.get("unfamiliar"):
        kept = f"the threshold keeps {found['share']:.0%} of known photos"
        familiar = f"marked; {kept}, fitted on {found['images']} of them"
    if not facts["verified"]:
        damage = "would not be noticed: no SHA-256 was stored with it; an earlier version wrote it"
    labels = some([entry["label"] for entry in facts["classes"]])
    told = [
        ("folder", readable(facts["folder"])),
        ("training", training),
        ("model", network),
        ("images", f"short side to {view['resize']}, centre {view['crop']} x {view['crop']}, {view['interpolation']}"),
        ("color profiles", "converted to sRGB" if view.get("to_srgb") else "ignored"),
        ("classes", f"{len(facts['classes'])}: {labels}"),
        ("calibrated", calibrated),
        ("--min-prob auto", sure),
        ("accuracy", "; ".join(_accuracy(facts)) or "not known"),
        ("unfamiliar photos", familiar),
        ("made", _made(made)),
        ("with", _versions(made) or "not known"),
        ("size", f"{facts['bytes'] / 1e6:.1f} MB"),
        ("hash", facts["hash"]),
        ("damage", damage),
        ("checkpoints", some(facts["checkpoints"]) if facts.get("checkpoints") else None),
    ]
    return [(name, value) for name, value in told if value is not None]


def _accuracy(facts: dict) -> list[str]:
    """A phrase for each split; a run's final figures come before those that its best model had then."""
    splits = {}
    for name, value in facts["metrics"].items():
        split, _, figure = name.rpartition("_")
        splits.setdefault(split, {})[figure] = value
    splits |= facts.get("final_metrics", {})
    return [
        f"{split} top1 {figures['top1']:.2%}" + (f" of {figures['images']}" if "images" in figures else "")
        for split, figures in splits.items()
        if isinstance(figures.get("top1"), int | float) and 0 <= figures["top1"] <= 1
    ]


def _made(made: dict) -> str:
    """When and how; a bundle may say anything there."""
    config = made.get("config")
    config = config if isinstance(config, dict) else {}
    said = [
        f"{spelled(name)} {config[name]}"
        for name in ("data_dir", "weights", "finetune", "epochs", "optimizer", "lr", "seed")
        if config.get(name) is not None
    ]
    how = [str(made[name]) for name in ("date", "from") if name in made]
    return ", ".join([*how, " ".join(said)] if said else how) or "not known"


def _versions(made: dict) -> str:
    versions = made.get("versions")
    said = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    return ", ".join([*said, f"commit {made['git_commit']}"] if made.get("git_commit") else said)
