"""Imports point one way, and each heavy library stays in its own corner."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {
    "errors", "retries", "files", "parsing", "console", "streams", "machine", "distributed", "stopping", "locks",
    "launch", "launch_check", "made", "environment",
    "cli", "flags", "usage", "help_page", "config",
}  # fmt: skip
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "data": BASE,
    "datasets": BASE | {"data"},
    "models": BASE | {"data"},
    "engines": BASE | {"data", "models"},
    "reports": BASE | {"data", "models"},
    "training": BASE | {"data", "datasets", "models", "engines", "reports"},
    "prediction": BASE | {"data", "models", "engines", "reports"},
    "audit": BASE | {"data", "datasets", "models", "engines", "reports", "training"},
    "exports": BASE | {"data", "models", "engines", "reports"},
    "demo": BASE | {"data", "models", "engines", "reports", "prediction"},
    "api": BASE | {"data", "models", "engines", "training", "prediction"},
}
HOMES = {
    "PIL": {"data", "datasets", "reports"},
    "accelerate": {"distributed", "training", "prediction", "api"},
    "rich": {"console"},
    "matplotlib": {"reports"},
    "timm": {"models", "exports"},
    "openvino": {"engines", "exports"},
    "onnx": {"exports"},
    "onnxruntime": {"engines", "exports"},
    "nncf": {"exports"},
    "gradio": {"demo"},
    "xlsxwriter": {"data"},
    "openpyxl": {"data"},
    "pillow_heif": {"data"},
    "torchcodec": {"data"},
    "fsspec": {"data"},
}
LAZY = {
    "timm",
    "openvino",
    "onnx",
    "onnxruntime",
    "nncf",
    "matplotlib",
    "scipy",
    "pyarrow",
    "xlsxwriter",
    "openpyxl",
    "jinja2",
    "gradio",
    "pillow_heif",
    "torchcodec",
    "fsspec",
}
FILES = sorted((ROOT / "flowers").rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "flowers").with_suffix("").parts[0]


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported below a node."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level_imports(tree: ast.Module) -> set[str]:
    """As ``imports``, but only what runs when the module is imported."""
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return set().union(*(imports(node) for node in outside))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "flowers" and len(parts) > 1:
            allowed = MAY_IMPORT[layer] | {layer}
            assert parts[1] in allowed, f"{layer} must not import {name}"
        assert parts[0] != "jobs", "the library does not know its jobs"
        home = HOMES.get(parts[0])
        assert home is None or layer in home, f"{parts[0]} belongs in {home}, not in {layer}"


def test_prediction_and_training_do_not_know_each_other() -> None:
    assert "prediction" not in MAY_IMPORT["training"]
    assert "training" not in MAY_IMPORT["prediction"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    for name in top_level_imports(ast.parse(path.read_text())):
        assert name.split(".")[0] not in LAZY, f"import {name} inside the function that needs it"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_start_light(path: Path) -> None:
    for name in top_level_imports(ast.parse(path.read_text())):
        root = name.split(".")[0]
        assert root in {"flowers", "dataclasses", "pathlib", "typing", "sys", "os", "time"}, name
        if root == "flowers":
            assert name.split(".")[1] in {"cli", "config", "errors"}, f"import {name} inside main()"
