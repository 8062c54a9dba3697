"""The text of ``--help``: what a job does, examples, and its flags in groups, from the config class's own strings."""

import ast
import inspect
import itertools
import textwrap
from pathlib import Path

from flowers.flags import Option, options

Section = tuple[str, str]
"""A heading, empty for none, and the text below it."""

_LEFT = 26  # columns of the flags' names
_EVERY_JOB = {
    "--config PATH": "YAML file with defaults for the flags, such as the config.yaml of a run. Given flags win.",
    "--log MODE": (
        "What the screen shows: rich (colours and progress bars), plain (lines without control characters), json (one "
        "JSON object per line on stdout), quiet (warnings and errors only). Default: auto, which is rich on a terminal "
        "and plain elsewhere. torchrun has flags that begin like this one: write `torchrun -- jobs/NAME.py ...`."
    ),
    "--verbose": "Also print details: batch arithmetic, shares of time, throughput ceilings.",
    "-h, --help": "Show this page.",
}


def job_page(config_type: type, start: str, examples: list[str], width: int) -> list[Section]:
    """The page of one job, or of one command of a job.

    Args:
        config_type: its flags; a class variable USAGE stands for "[flags]" where more follows.
        start: what starts it, as in "python jobs/train.py".
        examples: command lines.
        width: columns to fill.
    """
    known = options(config_type)
    needed = [_needed(option) for option in known if option.required]
    usage = " ".join(["usage:", start, *needed, getattr(config_type, "USAGE", "[flags]")])
    page = [("", usage), ("", _about(config_type, width))]
    page += [("examples", _indented(examples))] if examples else []
    groups = getattr(config_type, "GROUPS", {known[0].name: "flags"})
    texts = field_texts(config_type)
    rows: dict[str, list[str]] = {}
    for option in known:
        title = groups.get(option.name) or list(rows)[-1]
        text = texts.get(option.name, "")
        rows.setdefault(title, []).append(_row(_left(option), f"{text} {_default(option, text)}", width))
    rows["every job"] = [_row(left, text, width) for left, text in _EVERY_JOB.items()]
    return [*page, *((title, "\n".join(lines)) for title, lines in rows.items())]


def commands_page(commands: dict[str, type], start: str, examples: list[str], width: int) -> list[Section]:
    """The page of a job that has subcommands, each with a page of its own."""
    rows = [_row(name, inspect.getdoc(kind).split("\n\n")[0], width) for name, kind in commands.items()]
    usage = f"usage: {start} {'|'.join(commands)} [flags]\n       {start} {next(iter(commands))} --help"
    return [("", usage), ("examples", _indented(examples)), ("commands", "\n".join(rows))]


def field_texts(config_type: type) -> dict[str, str]:
    """The string below each field of a dataclass, and of those it inherits from; on one line."""
    found: dict[str, str] = {}
    for kind in reversed(config_type.__mro__[:-1]):
        tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def _about(config_type: type, width: int) -> str:
    paragraphs = inspect.getdoc(config_type).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), width) for paragraph in paragraphs)


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _needed(option: Option) -> str:
    return option.spelled if option.flag.positional else f"{option.spelled} {option.placeholder}"


def _left(option: Option) -> str:
    names = option.names
    if option.is_switch:
        names = [option.spelled] if not option.default else names
    return ", ".join(names) + ("" if option.flag.positional else f" {option.placeholder}".rstrip())


def _default(option: Option, text: str) -> str:
    """The default in words, where the flag's text does not name it."""
    value = option.default
    if option.required:
        return "Required."
    if value is None or value is False or value == () or "efault" in text:
        return ""
    if value is True:
        return "Default: on."
    values = value if isinstance(value, tuple) else (value,)
    return f"Default: {' '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in values)}."


def _row(left: str, text: str, width: int) -> str:
    """A name and what it means beside it, or below it where the name is long."""
    indent = " " * (_LEFT + 2)
    lines = textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)
    start = f"  {left}"
    if len(start) < len(indent) and lines:
        return "\n".join([start.ljust(len(indent)) + lines[0][len(indent) :], *lines[1:]])
    return "\n".join([start, *lines])
