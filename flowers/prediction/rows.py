"""The predictions file's rows: columns, formatting, reading back. One row per input file, always.

All columns are ``path,status,label,class,prob,label_2,class_2,prob_2,...,error`` (RFC 4180: UTF-8, lines end in
CR LF, cells are quoted where needed). ``status`` is the first of these that applies: ``error`` (the reason stands in
``error``, the rest is empty), ``damaged`` (guesses all the same; what is wrong with the photo stands in ``error``),
``unfamiliar`` (guesses all the same, of a photo like none of the classes), ``unsure`` (best probability, as it is
written, under ``--min-prob``), ``ok``. ``.jsonl``, ``.parquet`` and ``.xlsx`` have the same columns. Parts have all of
them; a finished table may have some only, those of ``--columns``.

Names are valid UTF-8 whatever the disk says: see ``flowers.data.paths.encode_path``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowers.data.paths import encode_path

STATUSES = ("ok", "unsure", "unfamiliar", "damaged", "error")
DECIMALS = 6
_NEEDS_QUOTES = re.compile('[,"\r\n]')


def columns(topk: int) -> list[str]:
    """The header, for ``topk`` guesses a file."""
    names = ["path", "status", "label", "class", "prob"]
    for rank in range(2, topk + 1):
        names += [f"label_{rank}", f"class_{rank}", f"prob_{rank}"]
    return [*names, "error"]


def status_by_prob(prob: float, min_prob: float) -> str:
    """The status of a sound, familiar photo.

    Args:
        prob: the best probability, rounded as in the row: a finished table holds all that its statuses come from.
    """
    return "unsure" if prob < min_prob else "ok"


def line_of(row: Mapping[str, str], names: Sequence[str], kind: str) -> bytes:
    """The line of a row of texts.

    Args:
        row: as ``read_rows`` gives it, probabilities as ``prob_text`` writes them.
        names: its columns, in this order.
        kind: "csv" or "jsonl".
    """
    if kind == "csv":
        return csv_line([row[name] for name in names])
    return json_line({name: _json_value(name, row[name]) for name in names})


def _json_value(name: str, text: str) -> float | str | None:
    return float(text) if text and name.startswith("prob") else text or None


def prob_text(prob: float) -> str:
    """A probability as all tables have it."""
    return f"{prob:.{DECIMALS}f}"


def header(names: Sequence[str], kind: str) -> bytes:
    """The first bytes of a file of rows: the columns of a CSV, nothing for JSON lines."""
    return (",".join(names) + "\r\n").encode() if kind == "csv" else b""


def best_classes(probs: np.ndarray, topk: int) -> np.ndarray:
    """Class indices of the ``topk`` highest probabilities, best first; of equal ones the lower index first.

    Args:
        probs: [B, num_classes] float32.

    Returns:
        [B, topk] int64
    """
    if probs.shape[1] <= 4 * topk:
        return np.argsort(-probs, axis=1, kind="stable")[:, :topk]
    found = np.argpartition(-probs, topk - 1, axis=1)[:, :topk]
    found.sort(axis=1)
    chosen = np.take_along_axis(probs, found, axis=1)
    best = np.take_along_axis(found, np.argsort(-chosen, axis=1, kind="stable"), axis=1)
    tied = (probs >= chosen.min(axis=1, keepdims=True)).sum(axis=1) > topk  # the partition took any of the last ones
    best[tied] = np.argsort(-probs[tied], axis=1, kind="stable")[:, :topk]
    return best


class Guess(NamedTuple):
    """A class and its probability.

    Attributes:
        label: display name.
        class_name: name of the class folder.
        prob: from 0 to 1.
    """

    label: str
    class_name: str
    prob: float


class RowFormat:
    """Turns paths and probabilities into lines of a part file.

    Args:
        labels: display name of each class.
        folders: folder name of each class, in the same order.
        topk: guesses a row, at most the number of classes.
        min_prob: under this best probability a row is ``unsure``.
        kind: "csv" or "jsonl".
    """

    def __init__(self, labels: Sequence[str], folders: Sequence[str], topk: int, min_prob: float, kind: str):
        self.topk = topk
        self._min_prob, self._kind = min_prob, kind
        self._columns = columns(topk)
        self._names = [(encode_path(label), encode_path(folder)) for label, folder in zip(labels, folders, strict=True)]
        self._cells = [f"{_cell(label)},{_cell(folder)}," for label, folder in self._names]

    def failed(self, path: str, reason: str) -> bytes:
        """The line of a file that gave no picture."""
        row = dict.fromkeys(self._columns, "")
        row |= {"path": encode_path(path), "status": "error", "error": _one_line(reason)}
        return line_of(row, self._columns, self._kind)

    def guessed(
        self,
        path: str,
        classes: Sequence[int],
        probs: Sequence[float],
        damage: str | None = None,
        unfamiliar: bool = False,
    ) -> tuple[str, bytes]:
        """Status and line of a file that was classified.

        Args:
            classes: [topk] indices, best first.
            probs: [topk] their probabilities.
            damage: what is wrong with the file, although it decodes.
            unfamiliar: the photo is like none of the classes.
        """
        sure = status_by_prob(round(probs[0], DECIMALS), self._min_prob)
        status = "damaged" if damage else "unfamiliar" if unfamiliar else sure
        guesses = zip(classes, probs, strict=True)
        if self._kind == "csv":
            cells = ",".join([f"{self._cells[index]}{prob:.{DECIMALS}f}" for index, prob in guesses])
            damage = _cell(_one_line(damage)) if damage else ""
            return status, f"{_cell(encode_path(path))},{status},{cells},{damage}\r\n".encode()
        values: list[Any] = [encode_path(path), status]
        for index, prob in guesses:
            values += [*self._names[index], round(prob, DECIMALS)]
        return status, json_line(dict(zip(self._columns, [*values, damage and _one_line(damage)], strict=True)))


def _one_line(text: str) -> str:
    return encode_path(" ".join(text.replace("\0", " ").split()))


def _cell(text: str) -> str:
    """One CSV cell, quoted where RFC 4180 asks for it, and where spaces at an end could get lost."""
    if _NEEDS_QUOTES.search(text) or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def csv_line(cells: Sequence[str]) -> bytes:
    """One row of a CSV."""
    return (",".join(map(_cell, cells)) + "\r\n").encode()


def json_line(values: dict[str, Any]) -> bytes:
    """One row of JSON lines."""
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()
