"""Show the findings of ``prepare.py check`` as tables, and write all of them as JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from flowers import console
from flowers.data.choice import kinds_left_out
from flowers.data.classes import told_apart
from flowers.data.paths import encode_path, readable
from flowers.datasets.check import CheckedImage, Report
from flowers.files import write_atomically

ALL_CLASSES = 25
"""Up to so many classes are shown one by one; of more, those with the fewest and the most images."""

EXAMPLES = 3
IMBALANCE = 5.0
"""From here on a class is mentioned as much larger than another one."""


def show_report(report: Report) -> None:
    """Print counts, findings with a few examples each, and whether training would start."""
    splits = list(report.counts)
    console.table("Images", ["split", "classes", "images", "fewest a class", "most", "unreadable"], _splits(report))
    for title, classes in _classes(report):
        rows = [[_class(report, name), *(report.counts[split][name] for split in splits)] for name in classes]
        console.table(title, ["class", *splits], rows)
    found = findings(report)
    if found:
        console.table("Findings", ["what", "how many", "such as"], found)
    else:
        console.say("Nothing unusual found.")
    if report.trainable:
        console.say("[bold]Training would start.[/]")
        return
    reasons = [report.refusal] if report.refusal else []
    if report.unreadable:
        images = console.counted(len(report.unreadable), "image")
        reasons.append(f"{images} cannot be read (--on-bad-image skip leaves them out)")
    console.say(f"[bold]Training would fail:[/] {console.plain('; '.join(reasons))}")


def findings(report: Report) -> list[list[object]]:
    """Summarize the findings as rows: what, how many, a few examples."""
    rows: list[list[object]] = []

    def add(what: str, count: int, examples: Iterable[str]) -> None:
        if count:
            shown = [example for _, example in zip(range(EXAMPLES), examples, strict=False)]
            rows.append([what, count, "; ".join(shown) + ("; ..." if count > len(shown) else "")])

    if report.left_out:
        rows.append(["files left out", sum(report.left_out.values()), kinds_left_out(report.left_out)])
    add("classes that differ only in spelling", len(report.alike), map(told_apart, report.alike))
    bad = report.unreadable
    add("images that cannot be read", len(bad), (f"{readable(image.path)}: {image.reason}" for image in bad))
    damaged = report.damaged
    add("damaged images", len(damaged), (f"{readable(image.path)}: {image.damage}" for image in damaged))
    for split in report.counts:
        missing = report.missing(split)
        add(f"classes without an image in {split}", len(missing), map(readable, missing))
    for split in report.counts:
        if split != "train":
            leaked = report.leaked(split)
            add(f"images of {split} that are in train, too", len(leaked), (readable(image.path) for image in leaked))
    groups = report.contradictions
    add("same picture in two classes", len(groups), map(_group, groups))
    add("exact duplicates", len(report.duplicates), map(_group, report.duplicates))
    add("near-duplicates", len(report.near_duplicates), map(_group, report.near_duplicates))
    for what, images in (("tiny images", report.tiny), ("huge images", report.huge)):
        add(what, len(images), (f"{readable(image.path)}: {image.size[0]} x {image.size[1]}" for image in images))
    for mode, images in report.odd_modes.items():
        add(f"images in mode {mode}", len(images), (readable(image.path) for image in images))
    if report.imbalance >= IMBALANCE:
        counts = {name: count for name, count in report.counts["train"].items() if count}
        least, most = min(counts, key=counts.get), max(counts, key=counts.get)
        example = f"{readable(most)}: {counts[most]}, {readable(least)}: {counts[least]}; see --balance classes"
        rows.append(["largest class of train to smallest", f"{report.imbalance:.1f}", example])
    return rows


def save_report(report: Report, path: Path) -> None:
    """Write all findings as JSON.

    Raises:
        FlowersError: the place cannot be written.
    """
    content = {
        "format_version": 1,
        "data_dir": encode_path(str(report.data_dir)),
        "trainable": report.trainable,
        "refusal": report.refusal,
        "images": len(report.images),
        "counts": {split: {encode_path(k): v for k, v in of.items()} for split, of in report.counts.items()},
        "imbalance": round(report.imbalance, 3),
        "classes": {encode_path(name): encode_path(label) for name, label in report.classes.items()},
        "missing_classes": {split: [encode_path(name) for name in report.missing(split)] for split in report.counts},
        "left_out": dict(report.left_out),
        "classes_alike": [[encode_path(name) for name in group] for group in report.alike],
        "unreadable": [{"path": encode_path(image.path), "reason": image.reason} for image in report.unreadable],
        "damaged": [{"path": encode_path(image.path), "damage": image.damage} for image in report.damaged],
        "duplicates": [_paths(group) for group in report.duplicates],
        "near_duplicates": [_paths(group) for group in report.near_duplicates],
        "also_in_train": {split: _paths(report.leaked(split)) for split in report.counts if split != "train"},
        "same_picture_in_two_classes": [_paths(group) for group in report.contradictions],
        "tiny": [_sized(image) for image in report.tiny],
        "huge": [_sized(image) for image in report.huge],
        "odd_modes": {mode: _paths(images) for mode, images in report.odd_modes.items()},
    }
    with write_atomically(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
    console.say(f"All findings: {console.plain(path)}")


def _class(report: Report, name: str) -> str:
    label = report.classes[name]
    return readable(name) if label == name else f"{readable(name)} {readable(label)}"


def _classes(report: Report) -> list[tuple[str, list[str]]]:
    """Titles and class folders of the tables to show."""
    names = list(report.classes)
    if len(names) <= ALL_CLASSES:
        return [("Classes", names)]
    if report.imbalance == 1:
        return []
    names.sort(key=lambda name: sum(counts[name] for counts in report.counts.values()))
    return [("Classes with the fewest images", names[:5]), ("Classes with the most images", names[:-6:-1])]


def _splits(report: Report) -> list[list[object]]:
    rows = []
    for split, counts in report.counts.items():
        there = [count for count in counts.values() if count]
        bad = sum(image.split == split for image in report.unreadable)
        rows.append([split, len(there), sum(there), min(there), max(there), bad])
    return rows


def _group(group: list[CheckedImage]) -> str:
    return " = ".join(readable(image.path) for image in group[:3]) + (" = ..." if len(group) > 3 else "")


def _paths(images: Iterable[CheckedImage]) -> list[str]:
    return [encode_path(image.path) for image in images]


def _sized(image: CheckedImage) -> dict[str, object]:
    return {"path": encode_path(image.path), "width": image.size[0], "height": image.size[1]}
