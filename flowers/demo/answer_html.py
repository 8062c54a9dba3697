"""An answer, or the reason why there is none, as a piece of HTML that needs nothing from anywhere else."""

import base64
import html

import numpy as np
import torch
from torch.nn import functional

from flowers.demo.answer import Answer, Guess
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
    damaged = "" if answer.damage is None else f'<p class="damaged">The file is damaged: {_text(answer.damage)}.</p>'
    return (
        f'<section class="answer"><p class="of">{_text(name)}, {width} × {height} pixels</p>{damaged}'
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
    source = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, quality=88)).decode()
    caption = _text(caption)
    return f'<figure class="{kind}"><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _text(text: str) -> str:
    """Foreign text as nothing but text; bytes that were no UTF-8 as ``\\udcNN``."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
