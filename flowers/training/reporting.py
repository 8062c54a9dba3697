"""The report at the end of training. Nothing that goes wrong with it costs the run."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator

from flowers import console
from flowers.data.augment import Augmentation
from flowers.data.classes import ClassIndex
from flowers.data.folders import ImageFolders, Samples
from flowers.datasets.check import check_splits
from flowers.datasets.check_report import findings
from flowers.errors import FlowersError
from flowers.models.bundle import Bundle
from flowers.reports.answers import Answers
from flowers.reports.metrics import LogitTable
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.photos import training_views
from flowers.training.loop import evaluate
from flowers.training.state import Run

MAX_LOGITS = 250_000_000
"""A table of more logits than this, 1 GB, is not gathered."""
MAX_CHECKED = 10_000
"""Of more images than this the data set's check is left to ``prepare.py check``; these take about 15 s."""


def can_report(images: int, classes: int) -> bool:
    """Return False, and say why, where the table of logits would be too large for a report."""
    if images * classes <= MAX_LOGITS:
        return True
    console.warn(f"no report: {images:,} images of {classes:,} classes are too many for one page")
    return False


def device_name(accelerator: Accelerator) -> str:
    """What computed: the device, how many processes, which precision."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{accelerator.num_processes} x {name}, precision {accelerator.mixed_precision}"


def data_findings(classes: ClassIndex, splits: Mapping[str, Samples]) -> list[list[object]] | None:
    """What the check of the data set has to say; None where that would take too long for the end of another job."""
    if sum(map(len, splits.values())) > MAX_CHECKED:
        return None
    return findings(check_splits(classes, splits))


def report_training(
    run: Run,
    data: ImageFolders,
    best: Bundle,
    results: Mapping[str, Mapping[str, float]],
    augmentation: Augmentation,
    drawn: range,
    test_logits: LogitTable | None,
) -> None:
    """Write ``report.html`` of the best model into the run folder; all ranks call this.

    The details are about the test split where there is one, else about the validation split.

    Args:
        run: its network holds the best model's weights.
        results: figures by split, as in metrics.json.
        augmentation: how training images were varied,
        drawn: and in which epochs; with cached features a view stands for an epoch, and view 0 is plain.
        test_logits: of this rank's test images.
    """
    accelerator, classes, run_dir = run.accelerator, data.classes, best.folder.parent
    splits = data.splits

    def answers(split: str, table: LogitTable) -> Answers:
        return Answers(split, splits[split], classes, table.result(accelerator.reduce, accelerator.device))

    def gather() -> tuple[Answers, Answers]:
        table = LogitTable(len(data.valid), len(classes))
        evaluate(accelerator, run.network, run.inputs, run.valid, len(data.valid), logits=table)
        valid = answers("valid", table)
        return valid, valid if test_logits is None else answers("test", test_logits)

    def write(valid: Answers, shown: Answers) -> None:
        views = training_views(data.train, augmentation, run.plan.seed, drawn) if drawn else ()
        facts = [("device", device_name(accelerator)), ("data", data.train.root)]
        background = Background(results, run_dir, splits, data_findings(classes, splits), views, facts)
        write_model_report(run_dir / "report.html", best, shown, background, valid)

    # One of several processes cannot leave the others waiting; alone, nothing is worth failing for.
    with or_warn() if accelerator.num_processes == 1 else contextlib.nullcontext():
        valid, shown = gather()
        if accelerator.is_main_process:
            with or_warn():
                write(valid, shown)


@contextlib.contextmanager
def or_warn() -> Iterator[None]:
    """Whatever goes wrong inside the block is one line, and all that is lost is the report."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, FlowersError) else f"{type(error).__name__}: {error}"
        console.warn(f"no report: {' '.join(reason.split())}")
