"""What follows a finished table: photos sorted by class, the page, and the lines that end the job."""

from collections.abc import Callable, Iterator

from flowers import console
from flowers.config.predict import PredictConfig
from flowers.data.choice import said_left_out
from flowers.data.paths import readable
from flowers.data.tables import sidecar_path
from flowers.prediction.rows import STATUSES
from flowers.prediction.sort_photos import sort_photos
from flowers.prediction.table import page_path

SHOWN_ON_SCREEN = 10
"""Rows: whoever asks about a few photos need not open the table."""


def finish(
    config: PredictConfig,
    rows: Callable[[], Iterator[dict[str, str]]],
    facts: dict,
    check_stop: Callable[[], None],
    *,
    wrote_table: bool = True,
) -> None:
    """Sort photos and write the report as the flags ask, then say what was done.

    Args:
        rows: gives the rows of the table, as ``read_rows`` does.
        facts: what the JSON beside the table says.
        check_stop: raises when the process was asked to stop.
        wrote_table: the table is new too, and is named.

    Raises:
        FlowersError: the disk is full, a place cannot be written, ...
    """
    counts = {status: facts["counts"].get(status, 0) for status in STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "ok")
    if config.copy_to or config.link_to:
        sort_photos(config, rows(), check_stop)
    if config.report:
        from flowers.prediction.report import write_report  # decodes photos, which takes torch

        write_report(config, rows(), facts)
    if wrote_table and facts["files"] <= SHOWN_ON_SCREEN:
        answers = [(row["path"], row["status"], row["label"] or row["error"], row["prob"]) for row in rows()]
        console.table("answers", ("photo", "status", "answer", "prob"), answers)
    places = {
        "predictions": config.output if wrote_table else None,
        "to look at": page_path(config.output) if config.report else None,
        "how they were made": sidecar_path(config.output) if wrote_table else None,
        "embeddings": config.embeddings,
        "photos by class": config.copy_to or config.link_to,
    }
    written = [(what, readable(place)) for what, place in places.items() if place is not None]
    if recovered := facts.get("recovered_reads"):
        console.say(f"{recovered} reads failed at first and worked when tried again")
    score = console.job_command("evaluate", "--predictions", config.output, "--labels", "TRUE_CLASSES.csv")
    left_out = said_left_out(facts.get("left_out") or {})
    console.done(f"{facts['files']} rows ({said})" + (f"; {left_out}" if left_out else ""), written, [score])
