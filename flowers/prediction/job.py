"""A prediction job: its flags and its model, what they refuse before the work begins, and what decides the rows."""

import dataclasses
import os

from flowers import console
from flowers.config.predict import OUTPUT_KINDS, PredictConfig
from flowers.data.choice import Choice
from flowers.data.classes import names_digest, renamed
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.paths import readable
from flowers.data.tables import require_writer
from flowers.distributed import Place
from flowers.engines.exported import ExportedModel, open_model
from flowers.errors import UsageError
from flowers.models.bundle import Bundle
from flowers.models.familiarity import Familiarity
from flowers.prediction.embeddings import EmbeddingsFile
from flowers.prediction.finish import check_target
from flowers.prediction.inputs import input_root, lies_in_input
from flowers.prediction.rows import RowFormat, columns
from flowers.prediction.table import check_page, finished_facts
from flowers.prediction.work import Work
from flowers.stopping import StopRequest


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What all parts of a job need to know.

    Attributes:
        config: its flags; ``min_prob`` is a number.
        model: a bundle or an exported file.
        place: this process among those that were launched.
        stop: hears of signals.
    """

    config: PredictConfig
    model: Bundle | ExportedModel
    place: Place
    stop: StopRequest

    @property
    def root(self) -> bytes:
        """The folder that the paths of all files are relative to; raises DataError if there is none."""
        return os.fsencode(input_root(self.config.input))

    @property
    def topk(self) -> int:
        """Guesses a row."""
        return min(self.config.topk, len(self.model.classes.folders))

    @property
    def rows(self) -> RowFormat:
        """The format of the rows."""
        classes, kind = self.model.classes, OUTPUT_KINDS[self.config.suffix()]
        return RowFormat(classes.labels, classes.folders, self.topk, self.config.min_prob, kind)

    @property
    def familiarity(self) -> Familiarity | None:
        """The score that marks unfamiliar photos; None if they are not marked."""
        is_asked = self.config.unfamiliar == "mark" and isinstance(self.model, Bundle)
        return self.model.familiarity if is_asked else None

    def choice(self) -> Choice:
        """Which files are input."""
        return Choice(self._extensions(), self.config.exclude, self.config.by_content)

    def embeddings(self, work: Work) -> EmbeddingsFile | None:
        """The embeddings that are written, if any."""
        if self.config.embeddings is None:
            return None
        return EmbeddingsFile(self.config.embeddings, work, self.model.head.in_features)

    def finished(self) -> dict | None:
        """Facts about the output, if it is there and whole."""
        return finished_facts(self.config.output, self.config.embeddings)

    def settings(self) -> dict:
        """All that decides the rows but the files; flags that came later count only where they are not the default."""
        config, model = self.config, self.model
        later = {name: getattr(config, name) for name in ("on_damaged", "max_pixels", "excel", "thumbnails", "decode")}
        names = config.chosen_columns()
        chosen = {"columns": names} if names and names != columns(self.topk) else {}
        return {
            "model": model.hash,
            "kind": OUTPUT_KINDS[config.suffix()],
            "topk": self.topk,
            "min_prob": config.min_prob,
            "tta": config.tta,
            "engine": config.engine,
            "precision": config.precision,
            "batch_size": config.batch_size,
            "embeddings": config.embeddings and os.path.relpath(config.embeddings, config.output.parent),
            **{name: value for name, value in later.items() if value != getattr(PredictConfig, name)},
            **chosen,
            **({"unfamiliar": config.unfamiliar} if getattr(model, "familiarity", None) is not None else {}),
            **({"class_names": names_digest(model.classes.labels)} if config.class_names is not None else {}),
        }

    def check_flags(self) -> None:
        """Refuse before the work begins what would fail when all is done, or be input the next time.

        Raises:
            UsageError: an output is a folder, or lies in the input folder and ends like a photo; embeddings of an
                export, or a column that there is not.
            OutputError: the page would replace somebody else's file.
        """
        config = self.config
        if config.embeddings is not None and isinstance(self.model, ExportedModel):
            raise UsageError("--embeddings: an exported file gives probabilities only; use the bundle it was made of")
        every = columns(self.topk)
        if unknown := [name for name in config.chosen_columns() if name not in every]:
            raise UsageError(f"--columns: got {','.join(unknown)}, expected some of {','.join(every)}")
        for flag, path in (("--output", config.output), ("--embeddings", config.embeddings)):
            if path is None:
                continue
            if os.path.isdir(path):
                raise UsageError(f"{flag} {readable(path)}: this is a folder, a file name was expected")
            if path.name.lower().endswith(tuple(self._extensions())) and lies_in_input(config.input, path):
                raise UsageError(f"{flag} {readable(path)} lies in the input folder, and --ext makes it input")
        check_target(config)
        if config.report and not config.overwrite:
            check_page(config.output)
        num_classes = len(self.model.classes.folders)
        if config.topk > max(num_classes, PredictConfig.topk):  # fewer than the default surprise nobody
            console.warn(f"--topk {config.topk}: the model knows {num_classes} classes, all are given")

    def _extensions(self) -> frozenset[str]:
        given = self.config.extensions()
        return IMAGE_EXTENSIONS if given is None else given


def open_job(config: PredictConfig, place: Place, stop: StopRequest) -> Job:
    """Open the model, and see that the job can be done.

    Raises:
        UsageError, OutputError: see ``Job.check_flags``; a library is missing, the model stores no threshold.
        ModelError: there is no such model, or it is damaged.
    """
    require_writer(config.output)
    model = open_model(config.checkpoint)
    if config.class_names is not None:
        shown = dataclasses.replace(model, classes=renamed(model.classes, config.class_names))
        vars(shown)["hash"] = model.hash  # the cached value: that of the model as stored, whatever its classes' names
        model = shown
    if config.min_prob == "auto":
        config = dataclasses.replace(config, min_prob=stored_min_prob(model))
    job = Job(config, model, place, stop)
    job.check_flags()
    return job


def stored_min_prob(model: Bundle | ExportedModel) -> float:
    """The threshold that was fitted on validation images.

    Raises:
        UsageError: the model has none.
    """
    value = model.made.get("min_prob")
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(
            "--min-prob auto: the model stores no threshold; training does with enough validation images, so does "
            "evaluate --calibrate; or give a probability"
        )
    return value
