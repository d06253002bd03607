r"""Formulas in pages, `$x$` in a line and `$$ … $$` as a paragraph, as MathML.

Browsers draw MathML themselves, so a page needs no script and no network; docs/adr/0016 says more.
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

# No space within the dollars, and no digit behind them: prices stay prices.
_IN_LINE = r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![$\w])"
_PARAGRAPH = re.compile(r"\$\$\s(.+)\s\$\$", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let Markdown know formulas."""
    config.markdown_extensions.append(Formulas())  # type: ignore[arg-type]
    return config


def mathml(formula: str, *, display: str) -> str:
    """One formula as MathML.

    Raises:
        PluginError: a command is in it that the converter does not know, and would print as it stands.
    """
    html = convert(" ".join(formula.split()), display=display)
    if "\\" in html:
        raise PluginError(f"latex2mathml does not know a command of ${formula}$")
    return html


class Formulas(Extension):
    """Of Python-Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 – Markdown's name
        """Before backslashes are taken for escapes, and after code."""
        md.inlinePatterns.register(_InLine(_IN_LINE, md), "formula", 185)
        md.parser.blockprocessors.register(_Paragraph(md.parser), "formula", 75)


class _InLine(InlineProcessor):
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
