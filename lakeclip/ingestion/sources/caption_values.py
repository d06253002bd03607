"""Captions in a value: a text, a number, a list, an object, or a text that holds a list (JSON's or Python's)."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence

from lakeclip.lake.caption_template import fill_template, template_names
from lakeclip.lake.columns import CAPTION_NAMES, match_name

#: Further names of captions within objects.
_OBJECT_NAMES = (*CAPTION_NAMES, "raw", "comment", "value", "content")
#: Longer texts are one caption, whatever they begin with.
_MAX_TEXT = 200_000
_MAX_DEPTH = 6


def captions_in(value: object) -> tuple[str, ...]:
    """Return the captions in a value, stripped, without blank ones.

    A list gives several captions, and so does a text that holds a list in the notation of JSON, Python or NumPy, as
    tables have it. Of an object its caption, text, … is taken. A number is a text. Missing values give none.
    """
    return tuple(_captions_in(value, 0))


def _captions_in(value: object, depth: int) -> list[str]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        parsed = _parse(text) if depth == 0 else None
        if parsed is not None:
            return _captions_in(parsed, 1)
        return [text] if text else []
    if isinstance(value, bool) or value is None or depth > _MAX_DEPTH:
        return []
    if isinstance(value, int):
        return [str(value)]
    if isinstance(value, float):
        return [] if math.isnan(value) else [str(int(value)) if value.is_integer() else repr(value)]
    if isinstance(value, Mapping):
        name = match_name([str(name) for name in value], _OBJECT_NAMES)
        return _captions_in(value.get(name), depth + 1) if name is not None else []
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        parts = value if isinstance(value, Sequence) else value.tolist()
        return [text for part in parts for text in _captions_in(part, depth + 1)]
    return []


def _parse(text: str) -> object:
    """Return the list or object that a text holds; None if it is an ordinary text."""
    if len(text) > _MAX_TEXT or not re.match(r"\[|\{|\(['\"]|array\(", text) or text[-1] not in "])}":
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = _parse_python(text)
    if isinstance(parsed, Mapping):
        return parsed if match_name([str(name) for name in parsed], _OBJECT_NAMES) else None
    # "[1984]" is a text; "[]" and "[null]" hold no caption.
    if not isinstance(parsed, list) or not all(
        part is None or isinstance(part, (str, list, Mapping)) for part in parsed
    ):
        return None
    return parsed


def _parse_python(text: str) -> object:
    """Parse a list in the notation of Python, or of NumPy, which has no commas; None if it is anything else."""
    depth = deepest = 0
    for char in text:
        depth += (char in "[({") - (char in "])}")
        deepest = max(deepest, depth)
    if deepest > 50:
        return None  # Python's parser takes memory for each level
    if "{" in text:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
        return list(value) if isinstance(value, tuple) else value
    match = re.fullmatch(r"array\((.*?)(, *dtype=[\w<>.']+)?\)", text, re.DOTALL)
    strings: list[object] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(match[1] if match else text).readline):
            if token.type == tokenize.STRING:
                part = ast.literal_eval(token.string)
                if not isinstance(part, str):
                    return None
                strings.append(part)
            elif token.type == tokenize.NAME and token.string in ("None", "nan", "null", "NaN"):
                strings.append(None)
            elif token.type == tokenize.OP and token.string in ("[", "]", "(", ")", ","):
                continue
            elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT):
                return None
    except (tokenize.TokenError, SyntaxError, ValueError, MemoryError):
        return None
    if text.startswith("(") and len(strings) < 2:
        return None  # ("quoted") in brackets
    return strings


class CaptionReader:
    """Reader of the captions of rows: of some columns, or from a template.

    Args:
        names: columns or keys with the captions, best first; those of one row may lack some.
        template: caption with names in braces. The captions themselves, if it names one of `names`, are filled in one
            by one, so that a row has as many captions as before.
    """

    def __init__(self, names: Sequence[str], template: str | None = None) -> None:
        self.names = tuple(names)
        self._template = template
        self.template_names = tuple(template_names(template)) if template is not None else ()

    def read(self, values: Mapping[str, object]) -> tuple[str, ...]:
        """Return the captions of a row, each once."""
        if self._template is None:
            texts = [text for name in self.names for text in captions_in(values.get(name))]
            return tuple(dict.fromkeys(texts))
        fields = {name: _field(values, name) for name in self.template_names}
        if all(value is None or value == "" for value in fields.values()):
            return ()
        several = next((name for name in self.template_names if name in self.names or name == "captions"), None)
        choices = captions_in(fields[several]) if several is not None else ()
        rows = [{**fields, several: text} for text in choices] if several is not None and choices else [fields]
        filled = [self._fill({name: _shown(value) for name, value in row.items()}) for row in rows]
        return tuple(dict.fromkeys(text for text in filled if text))

    def _fill(self, fields: Mapping[str, object]) -> str:
        assert self._template is not None
        try:
            return fill_template(self._template, fields)
        except (ValueError, TypeError):
            # A format for numbers, and a text: it is filled in as it is.
            plain = re.sub(r"(?<!\{)\{([^{}!:]+)(![rsa])?:[^{}]*\}", r"{\1}", self._template)
            return fill_template(plain, fields)


def _field(values: Mapping[str, object], name: str) -> object:
    """Return a value by its name; `meta.brand` is also the brand in the object `meta`."""
    if name in values or "." not in name:
        value = values.get(name)
    else:
        first, _, rest = name.partition(".")
        inner = values.get(first)
        value = _field(inner, rest) if isinstance(inner, Mapping) else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _shown(value: object) -> object:
    """Return what a template shows of a value: the parts of a list, joined by commas."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value if part is not None and part != "")
    if isinstance(value, Mapping):
        texts = captions_in(value)
        return texts[0] if texts else json.dumps(value, ensure_ascii=False, default=str)
    return value
