"""``predictions.html``: how many of which class, a gallery with the least certain photos first, what failed and why."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowers.reports.page import write_page
from flowers.reports.photos import photos

MAX_ROWS = 100_000
"""Of more photos than this the page holds the least certain ones; the counts are of all."""
MAX_FAILED = 1_000
THUMBNAILS = 480
"""A third of them for the least certain photos, the rest spread over classes and certainties."""
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
    kept: list[tuple[float, int, _Photo]] = field(default_factory=list)  # a heap, the surest on top

    def add(self, row: Mapping[str, str]) -> None:
        self.statuses[row["status"]] += 1
        if row["status"] == "damaged" and len(self.damaged) < MAX_FAILED:
            self.damaged.append((row["path"], row["error"]))
        if row["status"] == "error":
            self.reasons[row["error"]] += 1
            if len(self.failed) < MAX_FAILED:
                self.failed.append((row["path"], row["error"]))
            return
        prob = float(row["prob"])
        own = self.classes.setdefault(row["class"], _Class(row["class"], row["label"]))
        own.count += 1
        own.unsure += row["status"] == "unsure"
        own.prob_sum += prob
        second = row.get("class_2") or ""
        if second:
            self.classes.setdefault(second, _Class(second, row.get("label_2") or second))
        self.bins[min(BINS - 1, int(prob * BINS))] += 1
        photo = _Photo(row["path"], row["class"], prob, second, float(row.get("prob_2") or 0), row["status"])
        item = (-prob, -sum(self.statuses.values()), photo)
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
) -> None:
    """Write the page.

    Args:
        rows: of a predictions file, as ``prediction.outputs.read_rows`` gives them.
        read: a row's path to where its photo lies, or the bytes of the file; None: it is not there any more.
        facts: names and what they are: model, engine, ...
        photo_base: address of the folder that paths start from, for links to the photos; None: no links.

    Raises:
        FlowersError: the file cannot be written.
    """
    found = _Found()
    for row in rows:
        found.add(row)
    shown = [photo for *_, photo in sorted(found.kept, reverse=True)]
    classes = sorted(found.classes.values(), key=lambda own: (-own.count, own.label))
    index = {own.folder: place for place, own in enumerate(classes)}
    data = {
        "classes": [own.label for own in classes],
        "paths": [photo.path for photo in shown],
        "answers": [index[photo.folder] for photo in shown],
        "probs": [round(photo.prob, 4) for photo in shown],
        "seconds": [index.get(photo.second, -1) for photo in shown],
        "second_probs": [round(photo.second_prob, 4) for photo in shown],
        **{
            status: [place for place, photo in enumerate(shown) if photo.status == status]
            for status in ("unsure", "unfamiliar", "damaged")
        },
        "thumbnails": _thumbnails(shown, read),
        "base": photo_base,
    }
    write_page(
        path,
        "predictions.html",
        title=f"{sum(found.statuses.values()):,} photos classified",
        statuses=found.statuses,
        classes=[own for own in classes if own.count],
        class_index=index,
        most=max((own.count for own in classes), default=1),
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


def choose(shown: Sequence[_Photo], most: int) -> list[int]:
    """Choose the photos that get a thumbnail: the first ones, and some of every class, spread over its probabilities.

    Args:
        shown: the least certain first.

    Returns:
        Places in ``shown``, in order, ``most`` or fewer.
    """
    if len(shown) <= most:
        return list(range(len(shown)))
    chosen = set(range(most // 3))
    by_class: dict[str, list[int]] = {}
    for place, photo in enumerate(shown):
        by_class.setdefault(photo.folder, []).append(place)
    share = max(1, (most - len(chosen)) // len(by_class))
    for places in by_class.values():
        if len(chosen) >= most:
            break
        chosen.update(places[(2 * step + 1) * len(places) // (2 * share)] for step in range(share))
    return sorted(chosen)[:most]


def _thumbnails(shown: Sequence[_Photo], read: Callable[[str], str | bytes | None]) -> dict[int, str | None]:
    """Sources of images by place; None for what cannot be read any more."""
    chosen = sorted(choose(shown, THUMBNAILS), key=lambda place: shown[place].path)  # an archive's one after the other
    found: dict[int, str | None] = {}
    for start in range(0, len(chosen), READ_AT_ONCE):  # whole files in memory, but only so many
        sources = {place: read(shown[place].path) for place in chosen[start : start + READ_AT_ONCE]}
        found.update(dict.fromkeys(place for place, source in sources.items() if source is None))
        found.update(photos({place: source for place, source in sources.items() if source is not None}))
    return found
