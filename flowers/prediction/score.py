"""Score a predictions file against labels, without the model: any CSV with the same columns will do.

A file that failed has no right answer, so it counts as wrong; it is also told apart, as is what the rows are unsure of.
"""

import collections
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flowers import console
from flowers.config.evaluate import EvaluateConfig
from flowers.config.predict import OUTPUT_KINDS
from flowers.data.lists import read_labelled
from flowers.data.paths import decode_path, readable
from flowers.errors import DataError
from flowers.files import write_atomically
from flowers.prediction.table import read_rows

CONFUSIONS = 20
_SHOWN = 5


@dataclass(frozen=True)
class Score:
    """Accuracy of a predictions file.

    Attributes:
        images: rows with a label; the figures are shares of these.
        top1: share whose best guess is right.
        topk: share that is right within the ``k`` guesses of a row.
        k: guesses a row.
        errors: of ``images``, files that failed; they count as wrong.
        unsure: of ``images``, rows called unsure; they count by their guesses.
        sure_top1: share of right best guesses among the rows that are neither; None if there are none.
        unlabelled: rows that no label belongs to; not counted.
        missing: labels that no row belongs to; not counted.
        classes: per true class, its images and its top1.
        confusions: [true class, best guess, times], the most frequent first.
    """

    images: int
    top1: float
    topk: float
    k: int
    errors: int
    unsure: int
    sure_top1: float | None
    unlabelled: int
    missing: int
    classes: dict[str, dict[str, float]]
    confusions: list[tuple[str, str, int]]

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def score(config: EvaluateConfig) -> int:
    """The job: score, tell, and keep it as JSON; returns the exit code."""
    found = score_predictions(config.predictions, config.labels)
    hardest = sorted(found.classes.items(), key=lambda item: (item[1]["top1"], item[0]))[:_SHOWN]
    columns = ("class", "images", "top1")
    console.table("hardest classes", columns, [(n, c["images"], f"{c['top1']:.1%}") for n, c in hardest])
    if found.confusions:
        console.table("most confused", ("class", "taken for", "times"), found.confusions[:_SHOWN])
    sure = "" if found.sure_top1 is None else f"; top1 of the others {found.sure_top1:.2%}"
    console.facts(
        str(readable(config.predictions)),
        [
            ("top1", f"{found.top1:.2%} of {found.images} images"),
            (f"top{found.k}", f"{found.topk:.2%}"),
            ("failed", f"{found.errors}, counted as wrong"),
            ("unsure", f"{found.unsure}{sure}"),
            ("not counted", f"{found.unlabelled} rows without a label, {found.missing} labels without a row"),
        ],
    )
    name = config.predictions.name
    ending = next((ending for ending in OUTPUT_KINDS if name.lower().endswith(ending)), "")
    output = config.output or config.predictions.with_name(f"{name[: len(name) - len(ending)]}-score.json")
    with write_atomically(output) as file:
        json.dump(found.to_dict(), file, indent=1)
        file.write("\n")
    console.say(f"written: {console.plain(readable(output))}")
    return 0


def score_predictions(predictions: Path, labels: Path | None) -> Score:
    """Compare every row's guesses with the file's true class.

    Args:
        predictions: what ``jobs/predict.py`` wrote, of any kind.
        labels: CSV with the columns path and class (or label), with paths as in the predictions; the classes may be
            folder names or display names. None: the class of a file is the folder it lies in.

    Raises:
        DataError: a file cannot be read, a path has two rows, or no row fits a label.
    """
    truth = None if labels is None else {image.path: image.folder for image in read_labelled(labels)}
    column = _class_column(predictions, truth)
    tally = _Tally()
    seen: set[str] = set()
    for row in read_rows(predictions):
        path = decode_path(row["path"])
        if path in seen:
            raise DataError(f"{readable(predictions)}: two rows for {readable(path)}; expected one a file")
        seen.add(path)
        tally.add(row, _true_class(path, truth), column)
    if not tally.images:
        where = "lies in a class folder" if truth is None else f"is in {readable(labels)}"
        raise DataError(f"{readable(predictions)}: none of its {len(seen)} paths {where}, so there is nothing to score")
    return tally.score(missing=0 if truth is None else len(truth.keys() - seen))


class _Tally:
    def __init__(self) -> None:
        self.images = self.top1 = self.topk = self.k = 0
        self.errors = self.unsure = self.sure = self.sure_top1 = self.unlabelled = 0
        self.by_class: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        self.confusions: collections.Counter = collections.Counter()

    def add(self, row: dict[str, str], true: str | None, column: str) -> None:
        if true is None:
            self.unlabelled += 1
            return
        status = row.get("status", "ok")
        guesses = [decode_path(value) for value in _guesses(row, column)] if status != "error" else []
        hit = bool(guesses) and guesses[0] == true
        self.images += 1
        self.top1 += hit
        self.topk += true in guesses
        self.k = max(self.k, len(guesses))
        self.errors += status == "error"
        self.unsure += status == "unsure"
        self.sure += status == "ok"
        self.sure_top1 += hit and status == "ok"
        self.by_class[true][0] += 1
        self.by_class[true][1] += hit
        if guesses and not hit:
            self.confusions[true, guesses[0]] += 1

    def score(self, missing: int) -> Score:
        confusions = sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
        classes = {name: {"images": images, "top1": hits / images} for name, (images, hits) in self.by_class.items()}
        return Score(
            images=self.images,
            top1=self.top1 / self.images,
            topk=self.topk / self.images,
            k=self.k,
            errors=self.errors,
            unsure=self.unsure,
            sure_top1=self.sure_top1 / self.sure if self.sure else None,
            unlabelled=self.unlabelled,
            missing=missing,
            classes=dict(sorted(classes.items())),
            confusions=[(true, guess, times) for (true, guess), times in confusions],
        )


def _true_class(path: str, truth: dict[str, str] | None) -> str | None:
    if truth is not None:
        return truth.get(path)
    return os.path.basename(os.path.dirname(path)) or None


def _guesses(row: dict[str, str], column: str) -> Iterator[str]:
    yield row[column]
    rank = 2
    while name := row.get(f"{column}_{rank}"):
        yield name
        rank += 1


def _class_column(predictions: Path, truth: dict[str, str] | None) -> str:
    """Tell if the true classes are folder names ("class") or display names ("label"), by which fits more of them.

    Raises:
        DataError: neither fits any.
    """
    found: dict[str, set[str]] = {"class": set(), "label": set()}
    wanted: set[str] = set()
    for row in read_rows(predictions):
        true = _true_class(decode_path(row["path"]), truth)
        if true is not None:
            wanted.add(true)
        if row.get("status") != "error":
            for column, names in found.items():
                if column in row:
                    names.update(map(decode_path, _guesses(row, column)))
    fits = {column: len(wanted & names) for column, names in found.items()}
    if wanted and found["class"] and not any(fits.values()):
        raise DataError(
            f"{readable(predictions)}: no true class ({_some(wanted)}) is among the guesses ({_some(found['class'])}); "
            "expected class folders' names or display names as the model has them"
        )
    return max(fits, key=lambda column: (fits[column], column == "class"))


def _some(names: set[str]) -> str:
    def parts(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    shown = sorted(names, key=parts)
    return ", ".join(map(readable, shown[:3])) + (", ..." if len(shown) > 3 else "")
