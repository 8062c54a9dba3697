"""The demo page: a place to drop a photo, and beside it the answer."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers.data.formats.limits import allowed_pixels
from flowers.data.images import read_image
from flowers.demo.answer import Oracle
from flowers.demo.answer_html import WAITING, answer_html, error_html
from flowers.errors import ImageError

CSS = Path(__file__).with_name("page.css")
_LOOK_EVERY_S, _KEEP_S = 60, 600
"""How often uploads that nobody asked about are looked for, and how long they stay."""
_AT_A_TIME = 2  # photos in work; one is decoded while another one is computed


def build_page(oracle: Oracle, examples: Sequence[tuple[Path, bytes]], max_upload: float, max_waiting: int) -> Any:
    """Lay the page out; nothing listens yet.

    Args:
        examples: photos to offer, each with a small JPEG of it.
        max_upload: MB, to be told.
        max_waiting: photos that may wait for their turn.

    Returns:
        gradio's Blocks.
    """
    import gradio

    def answer(path: str | None) -> tuple[str, None]:
        """Return the answer, and an empty drop area that is ready for the next photo."""
        if path is None:
            return WAITING, None
        try:
            return ask(oracle, Path(path)), None
        finally:
            if path not in gallery.keep_in_cache:  # a request may name an example's thumbnail
                with contextlib.suppress(OSError):  # nobody's photo is kept, nor the folder that gradio made for it
                    os.unlink(path)
                    os.rmdir(os.path.dirname(path))

    def example(chosen: gradio.EventData) -> str:
        index = chosen._data.get("index") if isinstance(chosen._data, dict) else None
        if index not in range(len(examples)):  # a request that no page makes
            return WAITING
        return ask(oracle, examples[index][0])

    with gradio.Blocks(title="flowers", analytics_enabled=False, delete_cache=(_LOOK_EVERY_S, _KEEP_S)) as page:
        gradio.Markdown(
            f"# What is in the photo?\n\n{oracle.name}, {len(oracle.folders)} classes. Photos stay on the machine that "
            "serves this page, and are deleted once they are answered."
        )
        with gradio.Row():
            with gradio.Column(scale=2, min_width=260):
                photo = gradio.File(
                    label=f"a photo, up to {max_upload:g} MB and {allowed_pixels() // 10**6} megapixels",
                    height=200,
                    elem_id="photo",
                )
                gallery = gradio.Gallery(
                    [(read_image(small), path.name) for path, small in examples],
                    label="or one of these",
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gradio.Column(scale=3, min_width=280):
                shown = gradio.HTML(WAITING, elem_id="answer")
        options = {"api_visibility": "private", "concurrency_limit": _AT_A_TIME, "concurrency_id": "network"}
        photo.upload(answer, photo, [shown, photo], show_progress_on=shown, **options)
        gallery.select(example, None, shown, **options)
    return page.queue(max_size=max_waiting, api_open=False)


def ask(oracle: Oracle, path: Path) -> str:
    """Return the answer to a file as HTML, or the reason why there is none."""
    try:
        return answer_html(path.name, oracle.ask(path))
    except ImageError as error:
        return error_html(path.name, str(error))
