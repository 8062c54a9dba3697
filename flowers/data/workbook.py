"""Tables in Excel's format: written in bounded memory, the same rows to the same bytes, and read.

Text is never taken for a formula, a number or a link. Characters that the format cannot hold are escaped as Excel does
(``_x000D_``), the two that no XML holds (U+FFFE, U+FFFF) as ``flowers.data.paths`` writes bytes.
"""

import contextlib
import re
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from flowers import console
from flowers.data.paths import readable
from flowers.errors import DataError, UsageError

MAX_ROWS = 1_048_575
"""Rows of a sheet below its header."""
MAX_PICTURES = 20_000
"""Rows of a sheet with pictures: Excel gets slow, and each takes memory until the file is written."""
PICTURES = "photo"
"""The name of the column of pictures."""
SIDE = 72
"""Pixels of a picture's side."""

_ROWS_AT_A_TIME = 1000
_MADE = datetime(1980, 1, 1)
_WIDTHS = {"path": 44, "status": 11, "error": 40, PICTURES: 11}
_WIDTH, _WIDTH_OF_NUMBERS = 20, 9
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
_FORMULA = ("=", "+", "-", "@")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, IndexError, TypeError, AttributeError, ParseError)

Cell = str | float | None


def require_libraries(output: Path) -> None:
    """See that a workbook can be written, and read again.

    Raises:
        UsageError: XlsxWriter or openpyxl is not installed.
    """
    try:
        import openpyxl  # noqa: F401
        import xlsxwriter  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--output {readable(output)}: .xlsx needs {error.name}: pip install 'flowers[excel]', or choose .csv with "
            "--excel"
        ) from None


def check_room(output: Path, rows: int, *, pictures: bool) -> None:
    """Refuse more rows than a sheet holds, if the output is one.

    Raises:
        UsageError: there are more.
    """
    if not output.name.lower().endswith(".xlsx"):
        return
    name = f"--output {readable(output)}: {rows:,} files"
    if rows > MAX_ROWS:
        raise UsageError(f"{name}, but a sheet of Excel has {MAX_ROWS:,} rows below its header; choose .csv")
    if pictures and rows > MAX_PICTURES:
        raise UsageError(f"{name}, but --thumbnails takes at most {MAX_PICTURES:,}; leave it out, or choose --report")


def write_workbook(
    path: Path,
    rows: Iterable[tuple[Mapping[str, Cell], bytes | None]],
    names: Sequence[str],
    *,
    pictures: bool = False,
) -> None:
    """Write one sheet: a header that stays in sight, with filters, and typed cells.

    Args:
        path: where; temporary files lie beside it.
        rows: values by column, numbers as probabilities, with a JPEG of ``SIDE`` pixels or None.
        names: columns.
        pictures: put the JPEGs into a first column.

    Raises:
        OSError: the file cannot be written.
        UsageError: there are more rows than a sheet holds.
    """
    import xlsxwriter
    from xlsxwriter.exceptions import FileCreateError

    most = MAX_PICTURES if pictures else MAX_ROWS
    with tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent) as folder:
        book = xlsxwriter.Workbook(str(path), {"constant_memory": True, "tmpdir": folder})
        book.use_zip64()
        book.set_properties({"created": _MADE})
        sheet = book.add_worksheet("predictions")
        cells = _Cells(book, sheet)
        columns = [PICTURES, *names] if pictures else list(names)
        first, count = len(columns) - len(names), 0
        if pictures:
            sheet.set_default_row((SIDE + 4) * 0.75)  # points of 1/96 inch pixels
        for place, name in enumerate(columns):
            usual = _WIDTH_OF_NUMBERS if name.startswith("prob") else _WIDTH
            sheet.set_column(place, place, _WIDTHS.get(name, usual))
            sheet.write_string(0, place, name, cells.bold)
        for count, (row, picture) in enumerate(_shown(rows), start=1):
            if count > most:
                raise UsageError(f"the table has more than {most:,} rows, the most of an .xlsx; choose .csv")
            for place, name in enumerate(names, start=first):
                cells.write(count, place, row[name])
            if picture is not None:
                how = {"image_data": BytesIO(picture), "x_offset": 2, "y_offset": 2, "object_position": 1}
                sheet.insert_image(count, 0, "", {**how, "decorative": True})
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, first, count, len(columns) - 1)
        sheet.ignore_errors({"number_stored_as_text": f"A1:XFD{MAX_ROWS + 1}"})  # classes may be called 1, 2, ...
        try:
            book.close()
        except FileCreateError as error:
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            traceback.clear_frames(error.args[0].__traceback__)  # the ZipFile ends itself as it goes, and fails again
            sys.unraisablehook = hook
            raise error.args[0] from None


def _shown(rows: Iterable) -> Iterator:
    """The same rows, with a bar or a line now and then: a million of them take minutes."""
    with console.progress("write", None, "rows") as meter:
        for count, row in enumerate(rows, start=1):
            yield row
            if count % _ROWS_AT_A_TIME == 0:
                meter.advance(_ROWS_AT_A_TIME)


class _Cells:
    """Writes the cells of a sheet by their type."""

    def __init__(self, book: Any, sheet: Any):
        self._sheet = sheet
        usual = {"valign": "vcenter"}  # beside a picture
        self.bold = book.add_format({**usual, "bold": True})
        self._prob = book.add_format({**usual, "num_format": "0.0%"})
        self._text = book.add_format(usual)
        self._quoted = book.add_format({**usual, "quote_prefix": True})  # stays text when somebody edits the cell

    def write(self, row: int, column: int, value: Cell) -> None:
        if value is None or value == "":
            return
        if not isinstance(value, str):
            self._sheet.write_number(row, column, value, self._prob)
            return
        text = value.replace("\ufffe", r"\xef\xbf\xbe").replace("\uffff", r"\xef\xbf\xbf")
        if text.startswith("<r>") and text.endswith("</r>"):  # which the library would take for XML of its own
            self._sheet.write_rich_string(row, column, text[0], self._text, text[1:], self._text)
        else:
            self._sheet.write_string(row, column, text, self._quoted if text.startswith(_FORMULA) else self._text)


def read_workbook(path: Path) -> Iterator[tuple[int, list[Cell]]]:
    """The rows of a workbook's first sheet with their numbers, the header first; as many cells as the header has.

    Rows without a value are left out, and so are columns without a name, and pictures.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no workbook, or damaged.
        DataError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError:
        raise DataError(f"{readable(path)}: .xlsx needs openpyxl: pip install 'flowers[excel]'") from None

    with open(path, "rb") as file:
        try:
            with contextlib.closing(openpyxl.load_workbook(file, read_only=True, data_only=True)) as book:
                kept: list[int] = []
                for number, row in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
                    if not kept:
                        kept = [place for place, name in enumerate(row) if name not in (None, PICTURES)]
                    cells = [_value(row[place]) if place < len(row) else None for place in kept]
                    if any(cell is not None for cell in cells):
                        yield number, cells
        except _DAMAGE as error:
            raise ValueError(f"no workbook of Excel, or damaged ({' '.join(str(error).split())})") from None


def _value(cell: object) -> Cell:
    if cell is None or isinstance(cell, float):
        return cell
    if isinstance(cell, int) and not isinstance(cell, bool):
        return float(cell)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), str(cell))


def as_text(cell: Cell) -> str:
    """A cell as a CSV would hold it; a whole number has no decimals, since Excel makes one of a name like 12."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
