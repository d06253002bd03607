"""Cleaning of captions before a tokenizer, as open_clip does it for tokenizers of Hugging Face."""

from __future__ import annotations

import html
import string
from typing import Literal

import ftfy

#: Ways to clean a caption: not at all; repair it and join its words by single spaces; then lower its case; or, as for
#: SigLIP, also remove its ASCII punctuation.
Cleaning = Literal["none", "whitespace", "lower", "canonicalize"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def repair(text: str) -> str:
    """Undo wrong encodings and HTML entities."""
    # On plain ASCII without HTML entities the repairs change nothing, and they cost twenty times as much as tokenizing.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def clean(text: str, cleaning: Cleaning) -> str:
    """Clean a caption."""
    if cleaning == "none":
        return text
    text = repair(text)
    if cleaning == "canonicalize":
        text = text.replace("_", " ").translate(_PUNCTUATION)
    if cleaning != "whitespace":
        text = text.lower()
    return " ".join(text.split())
