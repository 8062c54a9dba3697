"""Trackers of experiments (``--log-with``): which ones a run has, under which name, from which step on."""

import uuid
from pathlib import Path

from accelerate import Accelerator

from flowers.config.train import TrainConfig
from flowers.distributed import from_main
from flowers.errors import UsageError
from flowers.files import write_atomically
from flowers.training.stage import Stage

ID_FILE = "tracker-id.txt"
_FOLDER = "flowers"
"""In the run folder: what TensorBoard reads."""


def check_trackers(config: TrainConfig) -> None:
    """Refuse a tracker that would log nothing, and names that no tracker can use.

    Raises:
        UsageError: Accelerate does not know the tracker, or its package is not installed; a name is empty or a path.
    """
    for flag, name in (("--project", config.project), ("--run-name", config.run_name)):
        if name is not None and (not name.strip() or name in (".", "..") or "/" in name or "\\" in name):
            raise UsageError(f"{flag}: got {name!r}, expected a name without slashes")
    if not config.trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in config.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UsageError(f"--log-with: got {name!r}, expected one or more of {known}")
        if name not in installed:
            raise UsageError(f"--log-with {name}: its package is not installed here; install it with pip")


def start_trackers(stage: Stage, step: int) -> None:
    """Start the trackers of a run, once, not in each trial; a resumed run continues its curves.

    Args:
        step: the steps done; TensorBoard forgets the points after it, which an interrupted start left.

    Raises:
        UsageError: a tracker does not start.
    """
    config, accelerator = stage.config, stage.accelerator
    if not config.trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    run_id = from_main(lambda: _run_id(stage.run_dir))
    run_name = config.run_name or stage.run_dir.resolve().name
    # TensorBoard knows runs by their folders, and the run folder has a name already.
    own = [config.project] if config.project != TrainConfig.project else []
    folder = Path(_FOLDER, *own, config.run_name or "")
    arguments = {
        "wandb": {"name": run_name, "id": run_id, "resume": "allow", "dir": str(stage.run_dir)},
        "trackio": {"name": run_name, "resume": "allow"},
        "mlflow": {"run_name": run_name},
        "swanlab": {"experiment_name": run_name},
        "clearml": {"task_name": run_name},
        "tensorboard": {"purge_step": step + 1},
    }
    trackers = []
    for name in config.trackers:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = [str(stage.run_dir)] if kind.requires_logging_directory else []
        title = str(folder) if name == "tensorboard" else config.project
        trackers.append(kind(title, *place, **arguments.get(name, {})))
    accelerator.log_with = trackers
    flags = vars(config).items()
    plain = {name: value if isinstance(value, (int, float)) else str(value) for name, value in flags}
    from_main(lambda: _start(accelerator, plain))
    accelerator.trackers = trackers  # on all ranks, who compute the figures together


def _start(accelerator: Accelerator, flags: dict) -> None:
    try:
        accelerator.init_trackers("", config=flags)
    except Exception as error:  # of any package: no key, no server, a name it does not take
        names = ", ".join(tracker.name for tracker in accelerator.log_with)
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--log-with {names}: cannot start: {why}") from error


def _run_id(run_dir: Path) -> str:
    """The run's id on a tracker's server: drawn at its first start, read at later ones."""
    path = run_dir / ID_FILE
    if not path.exists():
        with write_atomically(path) as file:
            file.write(uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
