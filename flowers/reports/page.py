"""Self-contained HTML pages: templates filled in, every value escaped, nothing loaded from the network."""

import base64
import datetime
import functools
from pathlib import Path

import flowers
from flowers.files import write_atomically


def write_page(path: Path, template: str, **values: object) -> None:
    """Fill in a template of this package and write it as one self-contained HTML file.

    Args:
        template: file in ``templates/``; it extends ``base.html``, which asks for ``title``.
        values: what the template names. Text is escaped wherever it stands; data for scripts goes through ``tojson``
            in a ``<script type="application/json">``.

    Raises:
        FlowersError: the file cannot be written.
    """
    html = render(template, **values)
    with write_atomically(path, errors="backslashreplace") as file:  # names may hold bytes that are no UTF-8
        file.write(html)


def render(template: str, **values: object) -> str:
    """Fill in a template as ``write_page`` does, and return the page."""
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return templates().get_template(template).render(flowers_version=flowers.__version__, written=written, **values)


@functools.cache
def templates() -> "jinja2.Environment":  # noqa: F821
    """The templates of this package, each of which is compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowers.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def jpeg_uri(content: bytes) -> str:
    """A JPEG as the ``src`` of an image."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def percent(share: float, digits: int = 1) -> str:
    """A fraction for reading: 0.9389 as 93.9%."""
    return f"{100 * share:.{digits}f}%"
