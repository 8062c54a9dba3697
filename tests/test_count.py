"""The counter of product code, on a tree typed by hand."""

from pathlib import Path

import count

ROOT = Path(__file__).parents[1]

SOURCE = '''"""A module."""

import os
from flowers.data import paths


class Place:
    """A class."""

    name: str
    """Its name."""

    def find(self, root, *, look: Callable[[str], str], then: "Callable | None" = None):
        # comment
        text = """two
lines"""
        return os.path.join(
            root, text
        )
'''


def test_only_code_counts(tmp_path: Path) -> None:
    for name, text in {
        "flowers/data/paths.py": "",
        "flowers/base.py": SOURCE,
        "jobs/a.py": "import flowers.base",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert count.count(tmp_path) == {
        "files": 3,
        "code lines": 8,
        "modules with one importer": 2,
        "longest parameter list": "3 (flowers/base.py:find)",
        "functions of more than 8 parameters": 0,
        "most callables in a parameter list": "2 (flowers/base.py:find)",
        "functions of more than 2 callables": 0,
    }


def test_no_function_has_more_than_8_parameters() -> None:
    figures = count.count(ROOT)
    assert figures["functions of more than 8 parameters"] == 0, figures["longest parameter list"]
    assert figures["functions of more than 2 callables"] == 0, figures["most callables in a parameter list"]
