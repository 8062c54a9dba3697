"""Run the measurements, and write the table of tests/bench/README.md.

    python tests/bench/run.py --table TABLE.md                  # all of them; about an hour on two cores
    python tests/bench/run.py --table TABLE.md predict decode   # some; the rows of others stay as they are
    python tests/bench/run.py --list
    python tests/bench/run.py --quick                           # does each still run? figures that mean nothing

Every measurement is a script of its own beside this one (`bench_NAME.py`, with flags of its own) and runs in a process
of its own, with its default flags. It compares ours with the plain way in one run, and gives rows with their spread.
The table stands between two marks in FILE, together with the machine and the versions; a file without marks gets them
at its end. Rows of two machines never stand in one table.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from measuring import Row, machine

HERE = Path(__file__).parent
BEGIN, END = "<!-- measurements: begin -->", "<!-- measurements: end -->"
NAMES = (
    "startup", "decode", "augment", "engines", "predict", "predict_overhead", "scan", "features", "train_step",
    "training_overhead", "cache_memory", "saving", "scaling", "exports", "labels", "unfamiliar",
)  # fmt: skip
HEADER = ("what", "figure", "against, in the same run", "script")
QUICK = {
    "startup": "--jobs info --rounds 1",
    "decode": "--size 400 300 --rounds 1",
    "augment": "--images 4 --rounds 1",
    "engines": "--images 8 --batch-size 4 --rounds 1",
    "predict": "--files 600 --seconds 0.1 --engines torch --rounds 1",
    "predict_overhead": "--files 2000 --seconds 0.1",
    "scan": "--files 200 --rounds 1",
    "features": "--per-class 2 --rounds 1 --model timm/test_resnet --weights none",
    "train_step": "--sizes 64 --batch-size 4 --steps 1 --rounds 1 --no-compile",
    "training_overhead": "--batches 4 --rounds 1",
    "cache_memory": "--processes 2 --megabytes 5",
    "saving": "--saves 1",
    "scaling": "--files 600 --per-class 2 --rounds 1",
    "exports": "--images 8 --rounds 1",
    "labels": "--seeds 0 --folds 2 --share 0.1 --model timm/test_resnet+2 --weights none",
    "unfamiliar": "--seeds 0 --pictures 2 --left-out 1 --model timm/test_resnet+2 --weights none",
}
"""Flags with which each script does a little of everything it does."""


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for; 1 if a measurement failed, with the others' rows written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"{', '.join(NAMES)}; default: all"
    )
    parser.add_argument("--table", type=Path, help="Markdown file to write the table into; default: only print it")
    parser.add_argument("--quick", action="store_true", help="only see that they run; not for a table")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args(argv)
    if options.list:
        for name in NAMES:
            print(f"{name:18} {first_line(script(name))}")
        return 0
    if options.quick and options.table is not None:
        parser.error("--quick gives figures that mean nothing: it does not go with --table")
    where = machine()
    text = options.table.read_text(encoding="utf-8") if options.table and options.table.exists() else ""
    names = options.names or list(NAMES)
    kept = kept_rows(text, where, names)
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        rows = measure(name, QUICK[name].split() if options.quick else [])
        if rows is None:
            failed.append(name)
        else:
            kept[script(name).name] = rows
        table = markdown(where, kept)
        if options.table is not None:
            now = options.table.read_text(encoding="utf-8") if options.table.exists() else ""  # edited since, perhaps
            options.table.write_text(insert(now, table), encoding="utf-8")
    print(table)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def script(name: str) -> Path:
    """Where a measurement is."""
    return HERE / f"bench_{name}.py"


def first_line(path: Path) -> str:
    """What a script says of itself."""
    return path.read_text(encoding="utf-8").partition('"""')[2].partition("\n")[0].removesuffix('"""')


def measure(name: str, flags: Sequence[str] = ()) -> list[Row] | None:
    """Rows of one measurement, whose own output is shown; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "rows.json")
        code = subprocess.run([sys.executable, script(name), *flags, "--json", found]).returncode
        return None if code else [Row(*row) for row in json.loads(found.read_text())]


def kept_rows(text: str, where: str, names: list[str]) -> dict[str, list[Row]]:
    """Rows of an earlier table, by script, but for those that are measured again.

    Ends the program where they are of another machine or other versions.
    """
    old = text.partition(BEGIN)[2].partition(END)[0]
    kept: dict[str, list[Row]] = {}
    for line in old.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(HEADER) and cells[-1].startswith("`"):
            name = Path(cells[-1].strip("`")).name
            if name not in [script(again).name for again in names]:
                kept.setdefault(name, []).append(Row(*cells[:3]))
    if kept and without_date(where) not in " ".join(old.split()):
        raise SystemExit(
            f"the table holds rows of another machine or other versions ({', '.join(kept)}): measure all, or give "
            "another --table"
        )
    return kept


def without_date(where: str) -> str:
    """What must be equal between two runs of one table."""
    return where.rpartition(";")[0]


def markdown(where: str, rows: dict[str, list[Row]]) -> str:
    """The table, with where it was measured above it."""
    lines = textwrap.wrap(
        f"Measured on {where}. In brackets: from the lowest round to the highest; a ratio is of two in one round.",
        width=120,
        break_on_hyphens=False,
    )
    lines += [
        "",
        f"| {' | '.join(HEADER)} |",
        "|-|-|-|-|",
    ]
    order = [script(name).name for name in NAMES]
    for name in sorted(rows, key=order.index):
        lines += [f"| {row.what} | {row.figure} | {row.against} | `tests/bench/{name}` |" for row in rows[name]]
    return "\n".join(lines)


def insert(text: str, table: str) -> str:
    """The text with the table between its marks."""
    block = f"{BEGIN}\n{table}\n{END}"
    if BEGIN in text and END in text:
        return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    return f"{text.rstrip()}\n\n{block}\n".lstrip()


if __name__ == "__main__":
    raise SystemExit(main())
