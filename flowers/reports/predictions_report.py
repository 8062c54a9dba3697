"""``predictions.html``: how many of which class, photos to check and correct, a gallery, what failed and why."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from flowers import console
from flowers.data.corrections import written_class
from flowers.data.paths import decode_path
from flowers.reports.page import percent, write_page
from flowers.reports.photos import whole_photos

MAX_ROWS = 100_000
"""Of more photos than this the page holds those to check and the least certain ones; the counts are of all."""
MAX_FAILED = 1_000
PICTURES = 480
"""A third of them for the photos to check first, the rest spread over classes and certainties."""
PICTURE_SIDE = 320
TO_CHECK = ("unsure", "unfamiliar")
"""Photos of these statuses are checked first."""
EXAMPLES, EXAMPLE_PROB = 3, 0.9
"""Photos of a class that are shown as examples of it, and the least probability that makes one."""
READ_AT_ONCE = 32
BINS = 20


@dataclass(frozen=True)
class _Photo:
    path: str
    folder: str
    prob: float
    second: str
    second_prob: float
    status: str


@dataclass
class _Class:
    folder: str
    label: str
    count: int = 0
    unsure: int = 0
    prob_sum: float = 0.0


@dataclass
class _Found:
    """Statistics of one pass over the rows, in bounded memory."""

    statuses: Counter = field(default_factory=Counter)
    classes: dict[str, _Class] = field(default_factory=dict)
    bins: list[int] = field(default_factory=lambda: [0] * BINS)
    reasons: Counter = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[bool, float, int, _Photo]] = field(default_factory=list)  # a heap, the surest on top

    def add(self, row: Mapping[str, str]) -> None:
        self.statuses[row["status"]] += 1
        if row["status"] == "damaged" and len(self.damaged) < MAX_FAILED:
            self.damaged.append((row["path"], row["error"]))
        if row["status"] == "error":
            self.reasons[row["error"]] += 1
            if len(self.failed) < MAX_FAILED:
                self.failed.append((row["path"], row["error"]))
            return
        prob = float(row["prob"] or 0)  # empty in a row that somebody has added
        own = self.classes.setdefault(row["class"], _Class(row["class"], row["label"]))
        own.count += 1
        own.unsure += row["status"] == "unsure"
        own.prob_sum += prob
        second = row.get("class_2") or ""
        if second:
            self.classes.setdefault(second, _Class(second, row.get("label_2") or second))
        self.bins[min(BINS - 1, int(prob * BINS))] += 1
        photo = _Photo(row["path"], row["class"], prob, second, float(row.get("prob_2") or 0), row["status"])
        item = (row["status"] in TO_CHECK, -prob, -sum(self.statuses.values()), photo)
        if len(self.kept) < MAX_ROWS:
            heapq.heappush(self.kept, item)
        else:
            heapq.heappushpop(self.kept, item)


def write_predictions_report(
    path: Path,
    rows: Iterable[Mapping[str, str]],
    read: Callable[[str], str | bytes | None],
    *,
    facts: Sequence[tuple[str, object]],
    photo_base: str | None = None,
    classes: Mapping[str, str] = MappingProxyType({}),
    key: str = "",
) -> None:
    """Write the page.

    Args:
        rows: of a predictions file, all values as text.
        read: a row's path to where its photo lies, or the bytes of the file; None: it is not there any more.
        facts: names and what they are: model, engine, ...
        photo_base: address of the folder that paths start from, for links to the photos; None: no links.
        classes: folder and display name of the model's classes, as in rows; beside those in the rows, an answer may be
            corrected to these.
        key: by which the browser keeps the judgements of this table apart from those of others.

    Raises:
        FlowersError: the file cannot be written.
    """
    found = _Found()
    for row in rows:
        found.add(row)
    for folder, label in classes.items():
        found.classes.setdefault(folder, _Class(folder, label))
    shown = [photo for *_, photo in sorted(found.kept, key=lambda item: item[1:], reverse=True)]
    of_model = sorted(found.classes.values(), key=lambda own: (-own.count, own.label))
    index = {own.folder: place for place, own in enumerate(of_model)}
    pictures = _pictures(shown, read)
    data = {
        "key": f"flowers-predictions-{key[:16]}",
        "base": photo_base,
        "classes": [{"folder": written_class(decode_path(own.folder)), "label": own.label} for own in of_model],
        "pictures": pictures,
        **_gallery(shown, index),
        "photos": _to_judge(shown, pictures, found.classes, index),
        "examples": _examples(shown, pictures, index),
        "earlier": [],
        "confirms": True,
    }
    write_page(
        path,
        "predictions.html",
        title=f"{console.counted(sum(found.statuses.values()), 'photo')} classified",
        statuses=found.statuses,
        classes=[own for own in of_model if own.count],
        class_index=index,
        most=max((own.count for own in of_model), default=1),
        bins=[(place / BINS, count) for place, count in enumerate(found.bins)],
        fullest=max(found.bins) or 1,
        answered=sum(found.bins),
        kept=len(shown),
        reasons=found.reasons.most_common(),
        failed=found.failed,
        damaged=found.damaged,
        facts=facts,
        data=data,
    )


def _gallery(shown: Sequence[_Photo], index: Mapping[str, int]) -> dict[str, list]:
    """All photos for gallery.js, column by column, and the places of those that are not simply ok."""
    marked = ("unsure", "unfamiliar", "damaged")
    return {
        "paths": [photo.path for photo in shown],
        "answers": [index[photo.folder] for photo in shown],
        "probs": [round(photo.prob, 4) for photo in shown],
        "seconds": [index.get(photo.second, -1) for photo in shown],
        "second_probs": [round(photo.second_prob, 4) for photo in shown],
        **{status: [place for place, photo in enumerate(shown) if photo.status == status] for status in marked},
    }


def _to_judge(
    shown: Sequence[_Photo], pictures: Mapping[int, str | None], classes: Mapping[str, _Class], index: Mapping[str, int]
) -> list[dict]:
    """The photos with a picture for review.js, those to check first."""
    return [
        {
            "path": shown[place].path,
            "given": index[shown[place].folder],
            "suggested": index.get(shown[place].second),
            "why": _why(shown[place], classes),
            "picture": place,
        }
        for place in to_check_first(shown)
        if pictures.get(place) is not None
    ]


def choose(shown: Sequence[_Photo], most: int) -> list[int]:
    """Choose the photos that get a picture: the first to check, and some of every class, spread over its probabilities.

    Args:
        shown: the least certain first.

    Returns:
        Places in ``shown``, in order, ``most`` or fewer.
    """
    if len(shown) <= most:
        return list(range(len(shown)))
    chosen = set(to_check_first(shown)[: most // 3])
    by_class: dict[str, list[int]] = {}
    for place, photo in enumerate(shown):
        by_class.setdefault(photo.folder, []).append(place)
    share = max(1, (most - len(chosen)) // len(by_class))
    for places in by_class.values():
        if len(chosen) >= most:
            break
        chosen.update(places[(2 * step + 1) * len(places) // (2 * share)] for step in range(share))
    return sorted(chosen)[:most]


def to_check_first(shown: Sequence[_Photo]) -> list[int]:
    """All places in ``shown``, those of photos to check first, and of these and the others the least certain first."""
    return sorted(range(len(shown)), key=lambda place: shown[place].status not in TO_CHECK)


def _why(photo: _Photo, classes: Mapping[str, _Class]) -> str:
    """ "unsure: rose 40.1%, tulip 33.0%"."""
    guesses = [(photo.folder, photo.prob)] + ([(photo.second, photo.second_prob)] if photo.second else [])
    said = ", ".join(f"{classes[folder].label} {percent(prob)}" for folder, prob in guesses)
    return said if photo.status == "ok" else f"{photo.status}: {said}"


def _examples(
    shown: Sequence[_Photo], pictures: Mapping[int, str | None], index: Mapping[str, int]
) -> dict[int, list[int]]:
    """By class, the places of the surest photos of it, which serve as examples."""
    found: dict[int, list[int]] = {}
    for place in sorted(pictures, reverse=True):
        photo = shown[place]
        if photo.status == "ok" and photo.prob >= EXAMPLE_PROB and pictures[place] is not None:
            found.setdefault(index[photo.folder], []).append(place)
    return {own: places[:EXAMPLES] for own, places in found.items()}


def _pictures(shown: Sequence[_Photo], read: Callable[[str], str | bytes | None]) -> dict[int, str | None]:
    """Sources of images by place; None for what cannot be read any more."""
    chosen = sorted(choose(shown, PICTURES), key=lambda place: shown[place].path)  # an archive's one after the other
    found: dict[int, str | None] = {}
    for start in range(0, len(chosen), READ_AT_ONCE):  # whole files in memory, but only so many
        sources = {place: read(shown[place].path) for place in chosen[start : start + READ_AT_ONCE]}
        found.update(dict.fromkeys(place for place, source in sources.items() if source is None))
        found.update(
            whole_photos({place: source for place, source in sources.items() if source is not None}, PICTURE_SIDE)
        )
    return found
