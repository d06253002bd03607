"""What pages take from the package, so that they cannot fall behind it: flags, recipes, examples, decisions."""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from lakeclip.cli.app import VERBS, main

_WIDTH = 78


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every decision in the navigation, in their order."""
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "adr").glob("*.md"))
    for section in config.nav or []:
        if "Why" in section:
            section["Why"].append({"Decisions": [f"adr/{name}" for name in decisions]})
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made where a page asks for it."""
    root = Path(config.docs_dir).parent
    makers: dict[str, Callable[[], str]] = {
        "commands": commands,
        "recipes": lambda: recipes(root / "recipes"),
        "examples": lambda: examples(root / "examples"),
    }

    def made(match: re.Match[str]) -> str:
        if match[1] not in makers:
            raise PluginError(f"{page.file.src_uri} asks for {match[1]}; there are {', '.join(makers)}")
        return makers[match[1]]()

    return re.sub(r"<!-- made here: (\w+) -->", made, markdown)


def commands() -> str:
    """`--help` of every verb, and of what is below it."""
    parts = []
    for verb in VERBS:
        for words in _with_verbs_below(verb):
            parts += [f"## lakeclip {' '.join(words)}", _fenced("text", helptext(words))]
    return "\n\n".join(parts)


def recipes(folder: Path) -> str:
    """The recipes, with their comments."""
    parts = []
    for path in sorted(folder.glob("*.yaml")):
        parts += [f"## {path.stem}", _fenced("yaml", path.read_text(encoding="utf-8"))]
    return "\n\n".join(parts)


def examples(folder: Path) -> str:
    """The examples, whole."""
    parts = []
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = source.removeprefix('"""').partition(".")[0].partition("\n")[0]
        parts += [f"## {path.name}", f"{title}.", _fenced("python", source)]
    return "\n\n".join(parts)


def helptext(words: list[str]) -> str:
    """What `lakeclip WORDS --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), _columns(str(_WIDTH)):
        main([*words, "--help"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    # A command's description is one long line.
    return "\n".join(line if line.startswith(" ") else textwrap.fill(line, _WIDTH) for line in text.splitlines())


def _with_verbs_below(verb: str) -> list[list[str]]:
    below = re.match(rf"usage: lakeclip {verb} \[-h\]\s+\{{([\w,-]+)\}}", helptext([verb]))
    return [[verb], *([verb, word] for word in below[1].split(","))] if below else [[verb]]


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


@contextlib.contextmanager
def _columns(width: str) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
