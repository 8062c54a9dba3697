"""Count the product code: files, lines, modules with one importer, long parameter lists; trace two jobs on request.

python tests/count.py                   # flowers/ and jobs/ of this checkout
python tests/count.py --tree ../other   # of another one, whose jobs this interpreter can run
python tests/count.py --trace           # also: files of ours between a job's start and a gradient, or written rows
"""

import argparse
import ast
import inspect
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
STOPS = {"train": ("accelerate/accelerator.py", "backward"), "predict": ("flowers/prediction/parts.py", "write_part")}
"""Where each trace ends: the file and the function whose first call means that it has arrived."""


def code_lines(text: str, tree: ast.Module) -> int:
    """Lines that hold code: no blanks, comments, docstrings (of attributes neither), imports."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.arg]]]:
    """Every function's name and parameters, without self and cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            args = node.args
            given = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
            yield node.name, [arg for arg in given if arg is not None and arg.arg not in ("self", "cls")]


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Those of our modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & modules


def count(root: Path) -> dict[str, object]:
    """The figures of a tree."""
    texts = {path: path.read_text() for folder in ("flowers", "jobs") for path in sorted((root / folder).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in texts
        if path.name != "__init__.py" and path.parts[len(root.parts)] == "flowers"
    }
    importers = Counter(name for tree in trees.values() for name in imported(tree, set(modules)))
    parameters = {
        f"{path.relative_to(root)}:{name}": given for path, tree in trees.items() for name, given in functions(tree)
    }
    callables = {
        name: sum("Callable" in ast.unparse(arg.annotation) for arg in given if arg.annotation)
        for name, given in parameters.items()
    }
    longest = max(parameters, key=lambda name: len(parameters[name]))
    most = max(callables, key=callables.get)
    return {
        "files": len(texts),
        "code lines": sum(code_lines(texts[path], trees[path]) for path in texts),
        "modules with one importer": sum(importers[name] == 1 for name in modules),
        "longest parameter list": f"{len(parameters[longest])} ({longest})",
        "functions of more than 8 parameters": sum(len(given) > 8 for given in parameters.values()),
        "most callables in a parameter list": f"{callables[most]} ({most})",
        "functions of more than 2 callables": sum(number > 2 for number in callables.values()),
    }


def trace(root: Path) -> dict[str, str]:
    """Train one step and classify some photos, both tiny, and count the files of ours on the way."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}

        def job(name: str, *flags: object, wrapped: bool = True) -> list[int]:
            report = Path(folder, f"{name}.json")
            wrapper = [__file__, "--traced", str(report)] if wrapped else []
            command = [sys.executable, *wrapper, str(root / "jobs" / f"{name}.py"), *map(str, flags)]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            return json.loads(report.read_text()) if wrapped else []

        sizes = ("--species", 2, "--train", 4, "--valid", 2, "--test", 1, "--image-size", 64)
        job("prepare", "sample", "--output-dir", "data", *sizes, wrapped=False)
        model = ("--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "--finetune", "full")
        ways = {
            "jobs/train.py to backward()": job(
                "train", "--data-dir", "data", *model, "-j", 0, "-b", 4, "--epochs", 1, "--output-dir", "run"
            ),
            "jobs/predict.py to written rows": job(
                "predict", "--checkpoint", "run/best", "--input", "data/test", "--output", "out.csv"
            ),
        }
        return {
            name: "{} files imported, {} with a function called, {} on the stack there".format(*found)
            for name, found in ways.items()
        }


def run_traced(report: Path, command: list[str]) -> None:
    """Run a job in this process and write how many files of ours it needed to come to its stop."""
    root = Path(command[0]).resolve().parents[1]
    ours = (f"{root}/flowers/", f"{root}/jobs/")
    stop_file, stop_function = STOPS[Path(command[0]).stem]
    called: set[str] = set()
    arrived = threading.Event()

    def on_event(frame: object, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or arrived.is_set():
            return
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(ours):  # no module, no class body
            called.add(code.co_filename)
        if code.co_name == stop_function and code.co_filename.endswith(stop_file):
            arrived.set()
            stack: set[str] = set()
            while frame is not None:
                stack |= {frame.f_code.co_filename} if frame.f_code.co_filename.startswith(ours) else set()
                frame = frame.f_back
            files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
            report.write_text(json.dumps([sum(file.startswith(ours) for file in files), len(called), len(stack)]))

    sys.argv = command
    threading.setprofile(on_event)
    sys.setprofile(on_event)
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    """Print the figures, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="the checkout to count")
    parser.add_argument("--trace", action="store_true", help="run a tiny training and a tiny prediction, too")
    parser.add_argument("--traced", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # REPORT JOB FLAGS...
    flags = parser.parse_args()
    if flags.traced:
        run_traced(Path(flags.traced[0]), flags.traced[1:])
        return
    root = flags.tree.resolve()
    for name, value in {**count(root), **(trace(root) if flags.trace else {})}.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
