"""Compare two predictions files of the same images: the rows that differ, and a paired test of their accuracy."""

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flowers import console
from flowers.config.evaluate import EvaluateConfig
from flowers.data.paths import decode_path, readable
from flowers.data.tables import read_rows
from flowers.errors import DataError
from flowers.prediction.score import (
    bare_name,
    default_output,
    fit_labels,
    read_truth,
    true_class,
    two_rows,
    write_result,
)

_LISTED = 10
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PairedTest:
    """The right and wrong answers of two files on the same labelled images.

    Attributes:
        images: rows of both files that have a true class; the shares are of these. A file that failed counts as wrong.
        top1: share of right best guesses in the first file.
        against_top1: the same of the second.
        only_first: images that only the first file has right.
        only_second: images that only the second file has right.
        p_value: of McNemar's exact test, two-sided: how often two equally good models would differ at least so much.
    """

    images: int
    top1: float
    against_top1: float
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """The differences between two predictions files, matched by path.

    Attributes:
        rows: paths that are in both.
        changed: of ``rows``, those whose best guess differs.
        first_changed: the first ten of them in the first file's order: path, class there, class in the second file.
        failed_in_one: of ``rows``, files that failed in one of the two only; they are not among ``changed``.
        only_first: paths in the first file only.
        only_second: paths in the second file only.
        test: None if no true class is known.
    """

    rows: int
    changed: int
    first_changed: list[dict[str, str]]
    failed_in_one: int
    only_first: int
    only_second: int
    test: PairedTest | None


def compare(config: EvaluateConfig) -> int:
    """The job: compare, tell, and keep it as JSON; returns the exit code.

    Raises:
        DataError: a file cannot be read, or the two have no path or no column of guesses in common.
    """
    first, second = config.predictions, config.against
    found = compare_predictions(first, second, config.labels, match_labels=config.match_labels)
    if found.first_changed:
        title = "changed" if found.changed <= _LISTED else f"changed, the first {_LISTED}"
        columns = ("path", str(readable(first)), str(readable(second)))
        console.table(title, columns, [tuple(row.values()) for row in found.first_changed])
    console.facts(
        f"{readable(first)} against {readable(second)}",
        [
            ("changed", f"{found.changed} of {found.rows} rows ({found.changed / found.rows:.2%})"),
            ("failed in one", str(found.failed_in_one)),
            (
                "in one file only",
                f"{console.counted(found.only_first, 'row')} of the first, {found.only_second:,} of the second",
            ),
            *_about_test(found.test),
        ],
    )
    write_result(config.output or default_output(first, f"against-{bare_name(second)}"), found)
    return 0


def _about_test(test: PairedTest | None) -> list[tuple[str, str]]:
    if test is None:
        return [("true classes", "not known; --labels gives them")]
    sure = "more than chance explains" if test.p_value < _SIGNIFICANT else "no more than chance may explain"
    return [
        ("top1", f"{test.top1:.2%} against {test.against_top1:.2%}, of {test.images} images"),
        ("right in one only", f"{test.only_first} against {test.only_second}"),
        ("McNemar, exact", f"p = {test.p_value:.2g}: {sure}"),
    ]


def compare_predictions(
    first: Path, second: Path, labels: Path | None = None, *, match_labels: bool = False
) -> Difference:
    """Compare two predictions files row by row.

    Args:
        first: what ``jobs/predict.py`` wrote, of any kind.
        second: another one, whose rows may have another order.
        labels: CSV with the columns path and class (or label). None: the class of a file is the folder it lies in,
            if any of the folders is a class.
        match_labels: take a label that is spelled almost like a class for that class.

    Raises:
        DataError: a file cannot be read or has two rows for a path, the two have no path or no column of guesses in
            common, or no label fits.
    """
    truth = read_truth(labels)
    ours, theirs = _by_path(first), _by_path(second)
    judges = [_Judge(table, truth, match_labels) for table in (first, second)] if _is_known(ours, truth) else None
    shared = [column for column in ("class", "label") if all(column in _columns(rows) for rows in (ours, theirs))]
    if not shared:
        raise DataError(f"{readable(first)} and {readable(second)}: neither class nor label is a column of both")
    both = [path for path in ours if path in theirs]
    if not both:
        raise DataError(f"{readable(first)} and {readable(second)}: no path is in both; expected the same images")
    changed: list[dict[str, str]] = []
    failed_in_one = 0
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for path in both:
        row, other = ours[path], theirs[path]
        now, then = _guess(row, shared[0]), _guess(other, shared[0])
        failed_in_one += (now is None) != (then is None)
        if now is not None and then is not None and now != then:
            changed.append({"path": row["path"], "class": now, "against": then})
        if judges and (true := true_class(path, truth)) is not None:
            outcomes[judges[0].is_right(row, true), judges[1].is_right(other, true)] += 1
    return Difference(
        rows=len(both),
        changed=len(changed),
        first_changed=changed[:_LISTED],
        failed_in_one=failed_in_one,
        only_first=len(ours) - len(both),
        only_second=len(theirs) - len(both),
        test=_test(outcomes) if outcomes else None,
    )


class _Judge:
    """Tells which rows of a table are right."""

    def __init__(self, table: Path, truth: dict[str, str] | None, match_labels: bool) -> None:
        self._column, _, spelled = fit_labels(table, truth, match_labels=match_labels)
        self._spelled = spelled if match_labels else {}

    def is_right(self, row: dict[str, str], true: str) -> bool:
        guess = _guess(row, self._column)
        return guess is not None and decode_path(guess) == self._spelled.get(true, true)


def _is_known(rows: dict[str, dict[str, str]], truth: dict[str, str] | None) -> bool:
    """True if true classes are given, by labels or by folders named like a class that was guessed."""
    if truth is not None:
        return True
    guesses = {decode_path(row[column]) for row in rows.values() for column in ("class", "label") if row.get(column)}
    return any(true_class(path, None) in guesses for path in rows)


def _columns(rows: dict[str, dict[str, str]]) -> Iterable[str]:
    return next(iter(rows.values()), {})


def _by_path(table: Path) -> dict[str, dict[str, str]]:
    """The columns that a comparison needs of every row, keyed by normalised path."""
    found: dict[str, dict[str, str]] = {}
    for row in read_rows(table):
        path = os.path.normpath(decode_path(row["path"]))
        if path in found:
            raise two_rows(table, path)
        found[path] = {name: row[name] for name in ("path", "status", "class", "label") if name in row}
    return found


def _guess(row: dict[str, str], column: str) -> str | None:
    """The best guess as the table has it; None of a file that failed."""
    return (row[column] or None) if row.get("status") != "error" else None


def _test(outcomes: Counter[tuple[bool, bool]]) -> PairedTest:
    images = outcomes.total()
    both, only_first, only_second = outcomes[True, True], outcomes[True, False], outcomes[False, True]
    return PairedTest(
        images=images,
        top1=(both + only_first) / images,
        against_top1=(both + only_second) / images,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: a binomial one, of the images that one of two models has right."""
    total = only_first + only_second
    log_all = math.lgamma(total + 1) - total * math.log(2)
    tail = math.fsum(
        math.exp(log_all - math.lgamma(count + 1) - math.lgamma(total - count + 1))
        for count in range(min(only_first, only_second) + 1)
    )
    return min(1.0, 2 * tail)
