"""The demo page: a place to drop a photo, and beside it the answer as a piece of self-contained HTML."""

import contextlib
import html
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from flowers.data.formats.limits import allowed_pixels
from flowers.data.images import read_image
from flowers.data.paths import encode_path
from flowers.demo.answer import Answer, Oracle
from flowers.errors import ImageError
from flowers.prediction.rows import Guess
from flowers.reports.page import jpeg_uri
from flowers.reports.photos import encode_jpeg

_FOR, _AGAINST = (230, 159, 0), (0, 114, 178)
"""Orange and blue of Okabe and Ito, "Color Universal Design" (2008): told apart by everyone."""
_FULL_COLOUR = 0.5
"""Log-odds that have the full colour even where nothing in the picture matters more: noise stays pale."""

WAITING = '<div class="hint">The answer comes here: five names, and which pixels mattered.</div>'


def answer_html(name: str, answer: Answer) -> str:
    """Names with bars, the picture as the network saw it, and the same with the pixels that mattered.

    Args:
        name: of the photo's file.
    """
    best = answer.guesses[0]
    width, height = answer.size
    notes = "" if answer.damage is None else f'<p class="damaged">The file is damaged: {_text(answer.damage)}.</p>'
    if answer.unfamiliar:
        notes += '<p class="unfamiliar">This photo is like none of the classes; these are the nearest.</p>'
    return (
        f'<section class="answer"><p class="of">{_text(name)}, {width} × {height} pixels</p>{notes}'
        f'<ol class="guesses">{"".join(map(_guess, answer.guesses))}</ol>'
        '<div class="views">'
        f"{_figure(answer.view, 'what the network saw', 'view')}"
        f"{_figure(heat(answer.view, answer.evidence), f'what speaks for {best.label}', 'heat')}"
        '</div><p class="legend"><span><i class="for"></i> covering this takes evidence away</span> '
        '<span><i class="against"></i> covering this adds some</span></p></section>'
    )


def error_html(name: str, reason: str) -> str:
    """Why a file has no answer."""
    return (
        f'<section class="failed" role="alert"><b>No answer for {_text(name)}</b><p>{_text(reason)}</p>'
        '<p class="of">Nothing is wrong with the page: try another photo.</p></section>'
    )


def heat(view: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Colour the picture: grey, orange where it is evidence for the class, blue where it is evidence against.

    Args:
        view: uint8 [S, S, 3].
        evidence: float32 [n, n].

    Returns:
        uint8 [S, S, 3]
    """
    grid = torch.from_numpy(evidence)[None, None] / max(float(np.abs(evidence).max()), _FULL_COLOUR)
    smooth = functional.interpolate(grid, view.shape[:2], mode="bicubic", align_corners=False)
    weight = smooth[0, 0].clamp(-1, 1).numpy()[:, :, None]
    grey = view.astype(np.float32).mean(axis=2, keepdims=True)
    colour = np.where(weight > 0, np.float32(_FOR), np.float32(_AGAINST))
    share = 0.75 * np.abs(weight)
    tinted = colour * (0.35 + 0.65 * grey / 255)  # the photo's light and shade stay to be seen
    return ((1 - share) * grey + share * tinted).round().astype(np.uint8)


def _guess(guess: Guess) -> str:
    folder = "" if guess.class_name == guess.label else f" <small>{_text(guess.class_name)}</small>"
    percent = f"{100 * guess.prob:.1f}%"
    return (
        f'<li data-class="{_text(guess.class_name)}" data-prob="{guess.prob:.6f}">'
        f'<span class="name">{_text(guess.label)}{folder}</span><span class="prob">{percent}</span>'
        f'<span class="bar"><span style="width: {100 * guess.prob:.2f}%"></span></span></li>'
    )


def _figure(image: np.ndarray, caption: str, kind: str) -> str:
    source, caption = jpeg_uri(encode_jpeg(image, quality=88)), _text(caption)
    return f'<figure class="{kind}"><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _text(text: str) -> str:
    """Foreign text as nothing but text; bytes that were no UTF-8 as ``\\udcNN``."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


CSS = Path(__file__).with_name("page.css")
_LOOK_EVERY_S, KEEP_S = 60, 600
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

    with gradio.Blocks(title="flowers", analytics_enabled=False, delete_cache=(_LOOK_EVERY_S, KEEP_S)) as page:
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
                photo.async_move_resource_to_block_cache = _only_local(photo.async_move_resource_to_block_cache)
                # gradio's own leaves an empty file beside each upload: after some photos UploadLimit refuses all.
                photo.preprocess = lambda upload: upload and upload.path
                gallery = gradio.Gallery(
                    [(read_image(small), encode_path(path.name)) for path, small in examples],
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


def _only_local(move: Callable[[str], Awaitable[str]]) -> Callable[[str], Awaitable[str]]:
    """Keep gradio from fetching, at any size, the address that a forged request names in place of an upload."""

    async def moved(path: str) -> str:
        if "://" in path:
            raise ValueError("addresses are not fetched: upload a photo")
        return await move(path)

    return moved


def ask(oracle: Oracle, path: Path) -> str:
    """Return the answer to a file as HTML, or the reason why there is none."""
    try:
        return answer_html(path.name, oracle.ask(path))
    except ImageError as error:
        return error_html(path.name, str(error))
