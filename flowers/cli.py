"""From a command line to a config, and from an outcome to an exit code: what every job's ``cli()`` shares."""

import atexit
import contextlib
import dataclasses
import glob
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from flowers import console, environment, flags, help_page, usage
from flowers.errors import EXIT_FAILED, FlowersError, PeerError, StoppedError, UsageError, explain, system_reason
from flowers.files import old_name
from flowers.parsing import read_yaml

Config = TypeVar("Config")
_ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_ALLOCATOR_SETTINGS = re.compile(r"\s*(\w+\s*:\s*(\[[^\]]*\]|[^,:\[\]]+)\s*(,\s*|$))*")


def run(
    main: Callable[[Config], int | None],
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    interactive: bool = False,
) -> NoReturn:
    """Parse the flags, run the job, exit: 0 done, 1 failed, 2 wrong flags, 3 strict, 75 stopped and saved.

    ``--log MODE`` and ``--verbose``, anywhere among the flags, are the screen's and no part of a job's config; see
    ``flowers.console``. A ``FlowersError`` ends as one line on stderr; anything else is our bug, with its traceback.

    Args:
        main: the job.
        config_type: its flags; for a union of classes the first word on the command line chooses one.
        argv: words in the place of ``sys.argv[1:]``.
        interactive: somebody reads the output or uses the job now, so it ends with its terminal and with the reader of
            its output. Any other job runs on when the terminal is closed and when nobody reads its output.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    console.open_streams(essential=interactive)
    with contextlib.nullcontext() if interactive else _hangup_ignored():
        code = _outcome(main, config_type, argv)
    if environment.are_several():
        leave(code)
    raise SystemExit(code)


def _outcome(main: Callable[[Config], int | None], config_type: type[Config], argv: list[str]) -> int:
    """The exit code of a job, after its one line on stderr where there is one."""
    try:
        _check_folder()
        environment.check_group()
        config = parse(config_type, choose_log(argv), sys.modules[main.__module__].__doc__ or "")
        _check_paths(config)
        _check_allocator()
        code = main(config) or 0
        sys.stdout.flush()
        return code
    except PeerError as error:
        return error.exit_code
    except StoppedError as stopped:
        console.warn(str(stopped))
        return stopped.exit_code
    except FlowersError as error:
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        console.error(reason)
        return EXIT_FAILED


@contextlib.contextmanager
def _hangup_ignored() -> Iterator[None]:
    """Run on when the terminal is closed, as under nohup."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if earlier is None else earlier)


def choose_log(argv: Sequence[str]) -> list[str]:
    """Show things as ``--log`` and ``--verbose`` say; they may stand anywhere on the command line.

    Returns:
        the other words.

    Raises:
        UsageError: no such mode, or two of them.
    """
    rest: list[str] = []
    modes, words = [], iter(argv)
    for word in words:
        if word == "--log":
            modes.append(next(words, "nothing"))
        elif word.startswith("--log="):
            modes.append(word.removeprefix("--log="))
        elif word != "--verbose":
            rest.append(word)
    known = [mode for mode in modes if mode in console.LOG_MODES]
    console.show_as(known[0] if known else "auto", verbose="--verbose" in argv)
    if modes != known:
        raise UsageError(f"--log: got {modes[0]}, expected {', '.join(console.LOG_MODES)}")
    if len(modes) > 1:
        raise UsageError("--log is given twice; give it once")
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


def _check_folder() -> None:
    """Refuse to start in a folder that is gone, in which a shell may still stand: loading torch would end the process.

    Raises:
        FlowersError: what to do.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise FlowersError(
            f"the current folder is gone ({system_reason(error)}): change to one that is there; if it was made anew, "
            'cd "$PWD" leads there'
        ) from None


def _check_paths(config: object) -> None:
    """Refuse a mistyped path at once: a job looks only after the seconds that importing torch takes.

    A config names fields of such paths as ``must_exist``. Standard input, patterns, addresses, and what a disk does not
    tell now are left to the job.

    Raises:
        FlowersError: one is not there, nor what a killed save has set aside for it.
    """
    for name in getattr(config, "must_exist", ()):
        value = getattr(config, name)
        for path in value if isinstance(value, tuple) else (value,) if value is not None else ():
            if str(path) == "-" or glob.has_magic(str(path)) or ":/" in str(path):
                continue
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                if not old_name(path).exists():
                    raise FlowersError(f"{flags.spelled(name)} {path}: no such file or folder") from None
            except (OSError, ValueError):
                continue


def _check_allocator() -> None:
    """Refuse settings of torch's allocator that are none: torch would abort with a stack while it is imported.

    Raises:
        UsageError: the variable, what it got, what is expected.
    """
    for name in _ALLOCATORS:
        value = os.environ.get(name, "")
        if not _ALLOCATOR_SETTINGS.fullmatch(value):
            raise UsageError(f"{name}: got {value!r}, expected settings such as expandable_segments:True, or unset it")


def parse(config_type: type[Config], argv: Sequence[str] | None = None, job: str = "") -> Config:
    """Build a job's config from flags, over the YAML file that ``--config`` names, over a recipe, over the defaults.

    A config class with a ``preset`` takes ``--recipe NAME``, from the flags or the file, for a set of defaults. For a
    union of classes the first word chooses one, by its ``COMMAND``.

    Args:
        config_type: the config class.
        argv: words in the place of ``sys.argv[1:]``.
        job: the head of the job's file, whose lines with "jobs/" are the examples of ``--help``.

    Raises:
        UsageError: one line, for a wrong flag, value, or config file.
        SystemExit: after ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        _show_help(job, config_type, argv)
        sys.stdout.flush()
        raise SystemExit(0)
    program = _program()
    if isinstance(config_type, types.UnionType):
        commands = _commands(config_type)
        if not argv or argv[0] not in commands:
            got = repr(argv[0]) if argv else "no command"
            raise UsageError(f"got {got}, expected {usage.either(list(commands))}; see {program} --help")
        config_type, argv = commands[argv[0]], argv[1:]
    if hasattr(config_type, "COMMAND"):
        program = f"{program} {config_type.COMMAND}"
    known = {option.name: option for option in (*flags.options(config_type), flags.CONFIG)}
    with _naming_help(program):
        words = flags.given(list(known.values()), argv)
        values = {name: known[name].read(value, known[name].spelled) for name, value in words.items()}
    if (file := values.pop("config", None)) is not None:
        values = _of_file(known, file) | values
    if values.get("recipe") is not None and hasattr(config_type, "preset"):
        preset = config_type.preset(values["recipe"])
        values = {name: known[name].read(value, known[name].spelled) for name, value in preset.items()} | values
    missing = [option for option in known.values() if option.required and option.name not in values]
    if missing:
        raise UsageError(f"{usage.missing(missing)}; see {program} --help")
    try:
        return config_type(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def _naming_help(program: str) -> Iterator[None]:
    """End the message about a wrong word with where the right ones are listed."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{error}{'' if str(error).endswith('?') else ';'} see {program} --help") from None


def _of_file(known: dict[str, flags.Option], path: Path) -> dict[str, object]:
    """The values of a YAML mapping of field names.

    Raises:
        UsageError: the file cannot be read, is no mapping, or names an unknown field.
    """
    try:
        values = read_yaml(path, as_words=True) or {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path}: {reason}; expected a readable YAML file of flag names and values") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: got a {type(values).__name__}, expected a mapping such as `epochs: 20`")
    names = {name: option for option in known.values() for name in option.names if not name.startswith("--no-")}
    found: dict[str, object] = {}
    for word, value in values.items():
        bare = str(word).lstrip("-").replace("_", "-")
        name = f"-{bare}" if len(bare) == 1 else f"--{bare}"
        if name not in names:
            raise UsageError(f"--config {path}: {usage.unknown_flag(name, names)}")
        option = names[name]
        if option.name in found:
            raise UsageError(f"--config {path}: {option.spelled} is given twice; give it once")
        found[option.name] = option.read(value, f"--config {path}: {option.spelled}")
    if found.pop("config", None) is not None:
        raise UsageError(f"--config {path}: names another file as its config; put all into one file")
    return found


def _show_help(job: str, config_type: type, argv: Sequence[str]) -> None:
    """Print the page of ``--help``."""
    program = _program()
    start = f"python jobs/{program}" if program.endswith(".py") else program
    examples = [re.sub(r"python jobs/\w+\.py", start, line) for line in job.splitlines() if "jobs/" in line]
    if isinstance(config_type, types.UnionType):
        commands = _commands(config_type)
        command = next((word for word in argv if word in commands), None)
        if command is None:
            return console.page(help_page.commands_page(commands, start, examples, console.width()))
        config_type = commands[command]
    if hasattr(config_type, "COMMAND"):
        start = f"{start} {config_type.COMMAND}"
        examples = [line for line in examples if start in line]
    return console.page(help_page.job_page(config_type, start, examples, console.width()))


def _commands(config_type: types.UnionType) -> dict[str, type]:
    return {kind.COMMAND: kind for kind in typing.get_args(config_type)}


def _program() -> str:
    """The job's file, "train.py", or its console command, "flowers-train"."""
    return Path(sys.argv[0]).name


def to_plain(config: object) -> dict:
    """A config as plain values, ready for YAML or JSON; ``parse`` reads them back to an equal config."""

    def convert(value: object) -> object:
        if isinstance(value, tuple):
            return [convert(item) for item in value]
        return str(value) if isinstance(value, os.PathLike) else value

    return {field.name: convert(getattr(config, field.name)) for field in dataclasses.fields(config)}
