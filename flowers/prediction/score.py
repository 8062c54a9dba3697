"""Score a predictions file against labels, without the model: any CSV with the same columns will do.

A file that failed has no right answer, so it counts as wrong; it is also told apart, as is what the rows are unsure of.
A label that is among nobody's guesses counts as wrong, too, and is named: it may be a class that the model never gives,
or one that somebody else spells differently.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flowers import console
from flowers.config.evaluate import EvaluateConfig
from flowers.config.predict import OUTPUT_KINDS
from flowers.data.classes import alike
from flowers.data.lists import read_labelled
from flowers.data.paths import decode_path, readable, some
from flowers.data.tables import read_rows
from flowers.errors import DataError
from flowers.files import write_json

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
        unfamiliar: of ``images``, rows called unfamiliar; they count by their guesses, too.
        sure_top1: share of right best guesses among the rows of status ok; None if there are none.
        unknown: labels that are among no row's guesses, and their images; these count as wrong.
        known_top1: share of right best guesses among the images of the other labels; None if there are none.
        spelled: those of ``unknown`` that are spelled almost like a class, and that class.
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
    unfamiliar: int
    sure_top1: float | None
    unknown: dict[str, int]
    known_top1: float | None
    spelled: dict[str, str]
    unlabelled: int
    missing: int
    classes: dict[str, dict[str, float]]
    confusions: list[tuple[str, str, int]]


def score(config: EvaluateConfig) -> int:
    """The job: score, tell, and keep it as JSON; returns the exit code."""
    found = score_predictions(config.predictions, config.labels, match_labels=config.match_labels)
    if found.spelled:
        pairs = [f"{readable(label)} is {readable(name)}" for label, name in found.spelled.items()]
        console.warn(
            f"labels that no row guesses are spelled almost like classes: {some(pairs)}?; --match-labels does so"
        )
    hardest = sorted(found.classes.items(), key=lambda item: (item[1]["top1"], item[0]))[:_SHOWN]
    columns = ("class", "images", "top1")
    console.table("hardest classes", columns, [(n, c["images"], f"{c['top1']:.1%}") for n, c in hardest])
    if found.confusions:
        console.table("most confused", ("class", "taken for", "times"), found.confusions[:_SHOWN])
    sure = "" if found.sure_top1 is None else f"; top1 of the others {found.sure_top1:.2%}"
    unlabelled, missing = console.counted(found.unlabelled, "row"), console.counted(found.missing, "label")
    console.facts(
        str(readable(config.predictions)),
        [
            ("top1", f"{found.top1:.2%} of {console.counted(found.images, 'image')}"),
            (f"top{found.k}", f"{found.topk:.2%}"),
            ("failed", f"{found.errors}, counted as wrong"),
            ("unsure", f"{found.unsure}{sure}"),
            *([("unfamiliar", found.unfamiliar)] if found.unfamiliar else []),
            *_about_unknown(found),
            ("not counted", f"{unlabelled} without a label, {missing} without a row"),
        ],
    )
    write_result(config.output or default_output(config.predictions, "score"), found)
    return 0


def _about_unknown(found: Score) -> list[tuple[str, str]]:
    if not found.unknown:
        return []
    labels = some([readable(label) for label in found.unknown])
    known = "" if found.known_top1 is None else f"; top1 of the others {found.known_top1:.2%}"
    return [("never guessed", f"{sum(found.unknown.values())}, of labels {labels}, counted as wrong{known}")]


def score_predictions(predictions: Path, labels: Path | None, *, match_labels: bool = False) -> Score:
    """Compare every row's guesses with the file's true class.

    Args:
        predictions: what ``jobs/predict.py`` wrote, of any kind.
        labels: CSV with the columns path and class (or label), with paths as in the predictions; the classes may be
            folder names or display names. None: the class of a file is the folder it lies in.
        match_labels: take a label that is spelled almost like a class (1 and 01, Rose and rose) for that class.

    Raises:
        DataError: a file cannot be read, a path has two rows, or no row fits a label.
    """
    truth = read_truth(labels)
    column, guessed, spelled = fit_labels(predictions, truth, match_labels=match_labels)
    tally = _Tally(guessed)
    seen: set[str] = set()
    for row in read_rows(predictions):
        path = decode_path(row["path"])
        if path in seen:
            raise two_rows(predictions, path)
        seen.add(path)
        true = true_class(path, truth)
        tally.add(row, spelled.get(true, true) if match_labels else true, column)
    if not tally.counts["images"]:
        where = "lies in a class folder" if truth is None else f"is in {readable(labels)}"
        raise DataError(f"{readable(predictions)}: none of its {len(seen)} paths {where}, so there is nothing to score")
    missing = 0 if truth is None else len(truth.keys() - set(map(os.path.normpath, seen)))
    return tally.score(missing, {} if match_labels else spelled)


def two_rows(predictions: Path, path: str) -> DataError:
    """The error for a table that has two rows for one file."""
    return DataError(f"{readable(predictions)}: two rows for {readable(path)}; expected one a file")


def read_truth(labels: Path | None) -> dict[str, str] | None:
    """The true class of every path of a file of labels; None without one, where the folders say it.

    Raises:
        DataError: the file cannot be read, or is no list of labels.
    """
    if labels is None:
        return None
    if labels.is_dir():
        raise DataError(
            f"--labels {readable(labels)} is a folder, expected a CSV of path,class; without --labels the class of a "
            "photo is the folder that it lies in"
        )
    return {os.path.normpath(image.path): image.folder for image in read_labelled(labels)}


def fit_labels(
    predictions: Path, truth: dict[str, str] | None, *, match_labels: bool
) -> tuple[str, set[str], dict[str, str]]:
    """See which of a table's columns the true classes are given in.

    Returns:
        "class" or "label"; all its guesses; and true classes that are no guess but spelled almost like one, with that.

    Raises:
        DataError: the table cannot be read, or none of the true classes is among its guesses.
    """
    column, guessed, wanted = _class_column(predictions, truth)
    by_likeness = {alike(name): name for name in sorted(guessed, reverse=True)}
    spelled = {label: by_likeness[alike(label)] for label in sorted(wanted - guessed) if alike(label) in by_likeness}
    if wanted and guessed and not wanted & guessed and not (match_labels and spelled):
        pairs = [f"{readable(label)} for {readable(name)}" for label, name in spelled.items()]
        way_out = (
            f"--match-labels takes {some(pairs)}"
            if spelled
            else "expected class folders' names or display names as the model has them"
        )
        unfit = f"no true class ({_some(wanted)}) is among the guesses ({_some(guessed)})"
        raise DataError(f"{readable(predictions)}: {unfit}; {way_out}")
    return column, guessed, spelled


def default_output(predictions: Path, ending: str) -> Path:
    """The JSON file of results beside a table: its name without .csv or the like, and the ending."""
    return predictions.with_name(f"{bare_name(predictions)}-{ending}.json")


def bare_name(predictions: Path) -> str:
    """A table's name without .csv, .csv.gz and the like."""
    name = predictions.name
    kind = next((kind for kind in OUTPUT_KINDS if name.lower().endswith(kind)), "")
    return name[: len(name) - len(kind)]


def write_result(output: Path, result: object) -> None:
    """Write a dataclass of results as a JSON file, and say so.

    Raises:
        FlowersError: the disk is full or the place cannot be written.
    """
    write_json(output, asdict(result))
    console.say(f"written: {console.plain(readable(output))}")


class _Tally:
    """Counts over the rows of a table."""

    def __init__(self, guessed: set[str]) -> None:
        self._guessed = guessed
        self.counts: Counter[str] = Counter()
        self.k = 0
        self.unknown: Counter[str] = Counter()
        self.of_class: Counter[str] = Counter()
        self.right_of_class: Counter[str] = Counter()
        self.confusions: Counter[tuple[str, str]] = Counter()

    def add(self, row: dict[str, str], true: str | None, column: str) -> None:
        if true is None:
            self.counts["unlabelled"] += 1
            return
        status = row.get("status", "ok")
        failed = status == "error" or not row[column]  # a table of chosen columns may have no status
        guesses = [] if failed else [decode_path(value) for value in _guesses(row, column)]
        hit = bool(guesses) and guesses[0] == true
        sure = status == "ok" and not failed
        self.counts.update(
            images=1,
            top1=hit,
            topk=true in guesses,
            errors=failed,
            unsure=status == "unsure",
            unfamiliar=status == "unfamiliar",
            sure=sure,
            sure_top1=hit and sure,
        )
        self.k = max(self.k, len(guesses))
        self.unknown[true] += true not in self._guessed
        self.of_class[true] += 1
        self.right_of_class[true] += hit
        if guesses and not hit:
            self.confusions[true, guesses[0]] += 1

    def score(self, missing: int, spelled: dict[str, str]) -> Score:
        counts, images = self.counts, self.counts["images"]
        known = images - self.unknown.total()
        confusions = sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
        return Score(
            images=images,
            top1=counts["top1"] / images,
            topk=counts["topk"] / images,
            k=self.k,
            errors=counts["errors"],
            unsure=counts["unsure"],
            unfamiliar=counts["unfamiliar"],
            sure_top1=counts["sure_top1"] / counts["sure"] if counts["sure"] else None,
            unknown={label: count for label, count in sorted(self.unknown.items()) if count},
            known_top1=counts["top1"] / known if known else None,
            spelled=spelled,
            unlabelled=counts["unlabelled"],
            missing=missing,
            classes={
                name: {"images": count, "top1": self.right_of_class[name] / count}
                for name, count in sorted(self.of_class.items())
            },
            confusions=[(true, guess, times) for (true, guess), times in confusions],
        )


def true_class(path: str, truth: dict[str, str] | None) -> str | None:
    """The true class of a row: what the labels say, else the folder that the file lies in; None if neither does."""
    if truth is not None:
        return truth.get(os.path.normpath(path))
    return os.path.basename(os.path.dirname(path)) or None


def _guesses(row: dict[str, str], column: str) -> Iterator[str]:
    yield row[column]
    rank = 2
    while name := row.get(f"{column}_{rank}"):
        yield name
        rank += 1


def _class_column(predictions: Path, truth: dict[str, str] | None) -> tuple[str, set[str], set[str]]:
    """Tell if the true classes are folder names ("class") or display names ("label"), by which fits more of them.

    Returns:
        the column, all its guesses, and the true classes.
    """
    found: dict[str, set[str]] = {}
    wanted: set[str] = set()
    for row in read_rows(predictions):
        true = true_class(decode_path(row["path"]), truth)
        if true is not None:
            wanted.add(true)
        for column in ("class", "label"):
            if column in row:
                names = found.setdefault(column, set())
                if row.get("status") != "error" and row[column]:
                    names.update(map(decode_path, _guesses(row, column)))
    found = found or {"class": set()}
    alikes = {column: set(map(alike, names)) for column, names in found.items()}

    def fit(column: str) -> tuple[int, int, bool]:
        return len(wanted & found[column]), len(set(map(alike, wanted)) & alikes[column]), column == "class"

    column = max(found, key=fit)
    return column, found[column], wanted


def _some(names: set[str]) -> str:
    def parts(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    shown = sorted(names, key=parts)
    return ", ".join(map(readable, shown[:3])) + (", ..." if len(shown) > 3 else "")
