"""From a command line to a config, and from an outcome to an exit code: what every job's ``cli()`` shares."""

import atexit
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import tyro
import yaml

from flowers import console
from flowers.errors import EXIT_FAILED, EXIT_USAGE, FlowersError, PeerError, StoppedError, UsageError

Config = TypeVar("Config")

LOG_HELP = """\
Every job also takes --log MODE: auto (rich on a terminal, else plain), rich, plain (lines without control characters),
json (one JSON object a line on stdout), quiet (warnings and errors only)."""


def run(main: Callable[[Config], int | None], config_type: type[Config], argv: Sequence[str] | None = None) -> NoReturn:
    """Parse the flags, run the job, exit: 0 done, 1 failed, 2 wrong flags, 3 strict, 75 stopped and saved.

    ``--log MODE``, anywhere among the flags, is the screen's and no part of a job's config; see ``flowers.console``.
    A ``FlowersError`` ends as one line on stderr; anything else is our bug and keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        argv = choose_log(argv)
        code = main(parse(config_type, argv))
    except PeerError as error:
        code = error.exit_code
    except StoppedError as stopped:
        console.warn(str(stopped))
        code = stopped.exit_code
    except FlowersError as error:
        console.error(str(error))
        code = error.exit_code
    except RuntimeError as error:
        reason = _explain(error)
        if reason is None:
            raise
        console.error(reason)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        console.error("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of our output went away, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        leave(code or 0)
    raise SystemExit(code or 0)


def choose_log(argv: Sequence[str]) -> list[str]:
    """Show things as the last ``--log`` says.

    Returns:
        the other words.

    Raises:
        UsageError: no such mode.
    """
    rest: list[str] = []
    mode, words = "auto", iter(argv)
    for word in words:
        if word == "--log":
            mode = next(words, "nothing")
        elif word.startswith("--log="):
            mode = word.removeprefix("--log=")
        else:
            rest.append(word)
    console.show_as(mode if mode in console.LOG_MODES else "auto")
    if mode not in console.LOG_MODES:
        raise UsageError(f"--log: got {mode}, expected {', '.join(console.LOG_MODES)}")
    return rest


def leave(code: int) -> NoReturn:
    """End one of several processes without taking the interpreter apart.

    gloo's threads may still run then, and in about one of ten short jobs on a busy machine they aborted a process
    whose work was done (torch 2.14). What was registered to run at the end still runs.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _explain(error: RuntimeError) -> str | None:
    """The line for an error of torch's that is not our bug."""
    if is_lost_peer(error):
        return "another process of this job is gone, see what it said; this one cannot go on alone"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; torch itself is not imported here
        return (
            "the GPU's memory is full: give a smaller --batch-size; in training --grad-accum-steps makes up for it "
            "(-b 16 --grad-accum-steps 2 in the place of -b 32)"
        )
    return None


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed since another process died; torch has a class of error for it on GPUs only."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo/transport" in str(error)


def parse(config_type: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Build a job's config from flags, over the YAML file that ``--config`` names, over a recipe, over the defaults.

    A config class with a ``preset`` takes ``--recipe NAME``, from the flags or the file, for a set of defaults.

    Raises:
        UsageError: one line, for a wrong flag, value, or config file.
        SystemExit: after ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_file = _value_of(argv, "--config")
    if config_file is not None and dataclasses.is_dataclass(config_type):
        argv = [*flags_from_yaml(config_type, Path(config_file)), *argv]
    recipe = _value_of(argv, "--recipe")
    if recipe not in (None, "None") and hasattr(config_type, "preset"):
        argv = [*_as_flags(config_type.preset(recipe)), *argv]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(config_type, args=argv)
    except SystemExit as exit_:
        if exit_.code != EXIT_USAGE:
            print(LOG_HELP)  # after --help
            raise
    except FlowersError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    raise UsageError(_one_line(shown.getvalue()))


def flags_from_yaml(config_type: type, path: Path) -> list[str]:
    """Write a YAML mapping of field names to values as the flags that mean the same.

    Raises:
        UsageError: the file cannot be read, is no mapping, or names an unknown field.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path}: {reason}; expected a readable YAML file of flag names and values") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: got a {type(values).__name__}, expected a mapping such as `epochs: 20`")
    known = {field.name for field in dataclasses.fields(config_type)} - {"config"}
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    values.pop("config", None)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--config {path}: unknown setting {name!r}{hint}")
    switches = {field.name for field in dataclasses.fields(config_type) if field.type in (bool, "bool")}
    # YAML takes a bare `no` for false; --mixed-precision has a value of that name.
    return _as_flags(
        {name: "no" if value is False and name not in switches else value for name, value in values.items()}
    )


def _as_flags(values: dict[str, object]) -> list[str]:
    """Field names and plain values, as on a command line."""
    flags: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={value}")
    return flags


def to_plain(config: object) -> dict:
    """A config as plain values, ready for YAML or JSON; ``parse`` reads them back to an equal config."""

    def convert(value: object) -> object:
        if isinstance(value, tuple):
            return [convert(item) for item in value]
        return str(value) if isinstance(value, os.PathLike) else value

    fields = dataclasses.fields(config)
    return {field.name: convert(getattr(config, field.name)) for field in fields if field.name != "config"}


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    """The last value given to ``flag``, as `flag value` or `flag=value`."""
    found = None
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            found = argv[index + 1]
        elif word.startswith(flag + "="):
            found = word[len(flag) + 1 :]
    return found


def _one_line(box: str) -> str:
    """Fold tyro's drawn error box into one line: the problem, then the nearest flag, then where help is."""
    sections: list[str] = [""]
    for line in box.splitlines():
        text = re.sub(r"[╭╮╰╯│]", " ", line).strip()
        if re.fullmatch(r"─+", text):
            sections.append("")
        elif "─" not in text:
            sections[-1] = f"{sections[-1]} {text}".strip()
    sections = [re.sub(r"\s+", " ", section) for section in sections if section]
    sections = [section for section in sections if not section.startswith(("Argument helptext", "For full helptext"))]
    return "; ".join([*sections, f"see {Path(sys.argv[0]).name} --help"])
