"""``audit.html``: a self-contained page for reviewing suspicious labels with the keyboard or by touch."""

from pathlib import Path

import numpy as np

from flowers import console
from flowers.audit.findings import Audited
from flowers.data.corrections import written_class
from flowers.data.paths import encode_path
from flowers.reports.label_errors import Suspicion, Verdicts
from flowers.reports.page import write_page
from flowers.reports.photos import photos, whole_photos

EXAMPLES = 3
EXAMPLE_SIDE = 176
PHOTO_SIDE = 560


def write_audit_page(
    path: Path, audited: Audited, verdicts: Verdicts, suspicions: list[Suspicion], facts: dict, key: str
) -> None:
    """Write the page.

    Args:
        suspicions: what to judge, the most suspicious first.
        facts: findings for the tables, as in audit.json.
        key: by which the browser keeps the judgements of this audit apart from those of others.

    Raises:
        FlowersError: the file cannot be written.
    """
    wanted = sorted({index for item in suspicions for index in (item.given, item.suggested)})
    examples = {index: good_examples(audited.targets, verdicts, index) for index in wanted}
    full = {image: str(audited.root / audited.paths[image]) for images in examples.values() for image in images}
    small = photos(full, EXAMPLE_SIDE)
    large = whole_photos({item.index: str(audited.root / audited.paths[item.index]) for item in suspicions}, PHOTO_SIDE)
    corrections = audited.corrections
    data = {
        "key": f"flowers-audit-{key[:16]}",
        "classes": [
            {"folder": written_class(folder), "label": label}
            for folder, label in zip(audited.classes.folders, audited.classes.labels, strict=True)
        ],
        "photos": [
            {
                "path": encode_path(audited.paths[item.index]),
                "given": item.given,
                "suggested": item.suggested,
                "why": item.why,
                "picture": item.index,
            }
            for item in suspicions
        ],
        "pictures": {
            **{str(image): picture for image, picture in large.items()},
            **{f"example {image}": picture for image, picture in small.items()},
        },
        "examples": {
            index: [f"example {image}" for image in images if small[image]] for index, images in examples.items()
        },
        "confirms": False,
        "earlier": [] if corrections is None else corrections.rows(),
    }
    title = f"{console.counted(facts['labels_to_check'], 'label')} to check of {facts['photos']:,}"
    write_page(path, "audit.html", title=title, facts=facts, data=data, shown=len(suspicions))


def good_examples(targets: np.ndarray, verdicts: Verdicts, index: int) -> list[int]:
    """The photos of a class that look most like it; none that is suspicious itself."""
    own = np.flatnonzero((targets == index) & ~verdicts.wrong)
    return own[np.argsort(-verdicts.own[own], kind="stable")][:EXAMPLES].tolist()
