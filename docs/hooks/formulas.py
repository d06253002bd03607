r"""MkDocs hook that converts formulas, `$x$` inline and `$$ … $$` as a paragraph, to MathML.

Browsers render MathML themselves, so a page needs no script and no network; see docs/adr/0016.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

# No space next to the dollars on the inside, no word character next to them outside, so that prices stay as they are.
_INLINE = r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![$\w])"
_PARAGRAPH = re.compile(r"\$\$\s(.+)\s\$\$", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Register the Markdown extension."""
    config.markdown_extensions.append(Formulas())  # type: ignore[arg-type]
    return config


def mathml(formula: str, *, display: str) -> str:
    """Convert a formula to MathML.

    Raises:
        PluginError: the formula has a command that latex2mathml does not support and would print verbatim.
    """
    html = convert(" ".join(formula.split()), display=display)
    if "\\" in html:
        raise PluginError(f"latex2mathml does not support a command in ${formula}$")
    return html


class Formulas(Extension):
    """Python-Markdown extension for formulas."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 – Markdown's name
        """Register the processors, before backslash escapes and after code."""
        md.inlinePatterns.register(_Inline(_INLINE, md), "formula", 185)
        md.parser.blockprocessors.register(_Paragraph(md.parser), "formula", 75)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # type: ignore[override]  # noqa: N802
        return self.md.htmlStash.store(mathml(m[1], display="inline")), m.start(0), m.end(0)


class _Paragraph(BlockProcessor):
    def test(self, parent: Element, block: str) -> bool:
        return _PARAGRAPH.fullmatch(block.strip()) is not None

    def run(self, parent: Element, blocks: list[str]) -> None:
        match = _PARAGRAPH.fullmatch(blocks.pop(0).strip())
        assert match is not None
        formula = SubElement(parent, "div", {"class": "formula"})
        formula.text = self.parser.md.htmlStash.store(mathml(match[1], display="block"))
