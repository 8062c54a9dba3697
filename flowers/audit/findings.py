"""Findings of an audit: labels to check, classes that overlap, photos that show the same, outliers, hard ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowers.audit.neighbours import Neighbours
from flowers.data.classes import ClassIndex
from flowers.data.corrections import Corrections
from flowers.data.grouping import groups
from flowers.data.paths import PathList, encode_path, readable
from flowers.reports.label_errors import Suspicion, Verdicts, find_suspicions

LISTED = 100
"""Most photos, pairs and groups of a kind in audit.json."""
FAR = 4.0
"""An outlier's closeness to its neighbours is this many (robust) standard deviations below the usual one."""
LEAST_OVERLAP = 2.0


@dataclass(frozen=True)
class Audited:
    """N photos of all splits.

    Attributes:
        root: folder that paths start from.
        split_names: by number.
        splits: [N] numbers.
        targets: [N] int64, the given classes, corrected.
        features: rows of float32 [N, D].
        corrections: those that the labels have already.
    """

    root: Path
    classes: ClassIndex
    paths: PathList
    split_names: tuple[str, ...]
    splits: np.ndarray
    targets: np.ndarray
    features: np.ndarray
    corrections: Corrections | None


def all_suspicions(audited: Audited, verdicts: Verdicts, pairs: np.ndarray) -> list[Suspicion]:
    """Labels that are probably wrong, the most suspicious first: by the other photos, or by one that shows the same."""
    labels = [readable(label) for label in audited.classes.labels]
    found = {item.index: item for item in find_suspicions(verdicts, audited.targets, audited.classes.labels)}
    for pair in pairs.tolist():
        one, other = sorted(pair, key=lambda index: verdicts.own[index])
        given, suggested = int(audited.targets[one]), int(audited.targets[other])
        if given != suggested and not {one, other} & found.keys():
            why = f"shows the same as {encode_path(audited.paths[other])}, labelled {labels[suggested]}"
            found[one] = Suspicion(one, given, suggested, float(verdicts.score[one]), why)
    return sorted(found.values(), key=lambda item: (float(verdicts.own[item.index]), item.index))


def facts_of(audited: Audited, verdicts: Verdicts, neighbours: Neighbours, suspicions: list[Suspicion]) -> dict:
    """All findings as plain values, for audit.json."""
    folders = [encode_path(folder) for folder in audited.classes.folders]
    right = np.flatnonzero(~verdicts.wrong)
    by_own = right[np.argsort(verdicts.own[right], kind="stable")]

    def photos(indices: np.ndarray) -> list[dict]:
        return [
            {
                "path": encode_path(audited.paths[index]),
                "class": folders[audited.targets[index]],
                "prob": round(float(verdicts.own[index]), 4),
            }
            for index in indices[:LISTED].tolist()
        ]

    return {
        "photos": len(audited.targets),
        "labels_to_check": len(suspicions),
        "estimated_wrong": round(float(verdicts.estimated_wrong.sum()), 1),
        "classes": _class_rows(audited, verdicts, suspicions),
        "overlapping_classes": _overlaps(folders, verdicts),
        "near_duplicates": _near_duplicates(audited, neighbours),
        "outliers": photos(_outliers(verdicts, neighbours)),
        "hard": photos(by_own),
        "easy": photos(by_own[::-1]),
    }


def _class_rows(audited: Audited, verdicts: Verdicts, suspicions: list[Suspicion]) -> list[dict]:
    names = zip(audited.classes.folders, audited.classes.labels, strict=True)
    photos = np.bincount(audited.targets, minlength=len(audited.classes)).tolist()
    to_check = np.bincount([item.given for item in suspicions], minlength=len(audited.classes)).tolist()
    estimated_wrong = verdicts.estimated_wrong
    return [
        {
            "class": encode_path(folder),
            "label": encode_path(label),
            "photos": photos[index],
            "estimated_wrong": round(float(estimated_wrong[index]), 1),
            "to_check": to_check[index],
        }
        for index, (folder, label) in enumerate(names)
    ]


def _overlaps(folders: list[str], verdicts: Verdicts) -> list[dict]:
    """Pairs of classes whose photos are taken for one another, those with the most first."""
    mixed = verdicts.joint + verdicts.joint.T
    pairs = [(mixed[i, j], i, j) for i, j in np.argwhere(np.tril(mixed, -1) >= LEAST_OVERLAP).tolist()]
    return [
        {"classes": [folders[j], folders[i]], "estimated_mixed": round(float(amount), 1)}
        for amount, i, j in sorted(pairs, reverse=True)[:LISTED]
    ]


def _near_duplicates(audited: Audited, neighbours: Neighbours) -> dict:
    """Groups of photos that show the same, those of several classes first, then those of several splits."""
    folders = audited.classes.folders
    same = [
        {
            "paths": [encode_path(audited.paths[index]) for index in group],
            "classes": sorted({encode_path(folders[audited.targets[index]]) for index in group}),
            "splits": sorted({audited.split_names[audited.splits[index]] for index in group}),
        }
        for group in groups(len(audited.targets), neighbours.pairs)
    ]
    same.sort(key=lambda group: (-len(group["classes"]), -len(group["splits"])))
    return {
        "groups": len(same),
        "across_classes": sum(len(group["classes"]) > 1 for group in same),
        "across_splits": sum(len(group["splits"]) > 1 for group in same),
        "listed": same[:LISTED],
    }


def _outliers(verdicts: Verdicts, neighbours: Neighbours) -> np.ndarray:
    """Indices of photos that are like no other and that no class is probable for, the furthest first."""
    closeness, probable = neighbours.closeness, np.maximum(verdicts.own, verdicts.other)
    middle = np.median(closeness)
    spread = 1.4826 * np.median(np.abs(closeness - middle)) + 1e-6
    found = np.flatnonzero((closeness < middle - FAR * spread) & (probable < 0.5))
    return found[np.argsort(closeness[found], kind="stable")]


def summary_rows(audited: Audited, facts: dict, suspicions: list[Suspicion]) -> list[list[object]]:
    """The findings in a table: what, how many, such as."""
    same, classes = facts["near_duplicates"], sorted(facts["classes"], key=lambda row: -row["estimated_wrong"])
    first = readable(audited.paths[suspicions[0].index]) + ": " + suspicions[0].why if suspicions else ""
    worst = f"{classes[0]['class']}: {classes[0]['estimated_wrong']} of {classes[0]['photos']}"
    overlaps = [" and ".join(pair["classes"]) for pair in facts["overlapping_classes"]]
    return [
        ["photos", facts["photos"], ""],
        ["labels to check", facts["labels_to_check"], first],
        ["estimated wrong labels", facts["estimated_wrong"], worst if classes[0]["estimated_wrong"] else ""],
        ["pairs of classes that overlap", len(overlaps), overlaps[0] if overlaps else ""],
        ["near-duplicates across classes", same["across_classes"], ""],
        ["near-duplicates across splits", same["across_splits"], ""],
        ["outliers", len(facts["outliers"]), facts["outliers"][0]["path"] if facts["outliers"] else ""],
    ]
