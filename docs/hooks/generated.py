"""MkDocs hook that generates parts of pages from the repository: flags, recipes, examples, weights and decisions."""

from __future__ import annotations

import contextlib
import io
import itertools
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
from lakeclip.pretrained_weights import known_weights

_WIDTH = 78


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the decision records to the navigation, in order."""
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "adr").glob("*.md"))
    for section in config.nav or []:
        if "Why" in section:
            section["Why"].append({"Decisions": [f"adr/{name}" for name in decisions]})
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the markers in a page by generated text."""
    root = Path(config.docs_dir).parent
    generators: dict[str, Callable[[], str]] = {
        "commands": commands,
        "recipes": lambda: recipes(root / "recipes"),
        "examples": lambda: examples(root / "examples"),
        "weights": weights,
    }

    def generate(match: re.Match[str]) -> str:
        if match[1] not in generators:
            raise PluginError(f"{page.file.src_uri} has a marker for {match[1]!r}; available: {', '.join(generators)}")
        return generators[match[1]]()

    return re.sub(r"<!-- made here: (\w+) -->", generate, markdown)


def commands() -> str:
    """Return the `--help` of every verb and subcommand."""
    parts = []
    for verb in VERBS:
        for command in _with_subcommands(verb):
            parts += [f"## lakeclip {' '.join(command)}", _fenced("text", helptext(command))]
    return "\n\n".join(parts)


def recipes(folder: Path) -> str:
    """Return the recipes with their comments."""
    parts = []
    for path in sorted(folder.glob("*.yaml")):
        parts += [f"## {path.stem}", _fenced("yaml", path.read_text(encoding="utf-8"))]
    return "\n\n".join(parts)


def examples(folder: Path) -> str:
    """Return the source of the examples."""
    parts = []
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = source.removeprefix('"""').partition(".")[0].partition("\n")[0]
        parts += [f"## {path.name}", f"{title}.", _fenced("python", source)]
    return "\n\n".join(parts)


def weights() -> str:
    """Return the tables of pretrained models."""
    parts = []
    for group, members in itertools.groupby(known_weights(), key=lambda known: known.group):
        rows = [
            f"| `{known.source}` | {known.parameters:,} | {known.image_size} | {known.imagenet:.1f}% | {known.data} "
            f"| {known.licence} |"
            for known in members
        ]
        heading = (
            "| `--from` | million parameters | pixels | ImageNet | trained on | licence |\n|---|---:|---:|---:|---|---|"
        )
        parts.append("\n".join([f"**{group}**", "", heading, *rows]))
    return "\n\n".join(parts)


def helptext(command: list[str]) -> str:
    """Return what `lakeclip COMMAND --help` prints, wrapped to a fixed width."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), _columns(str(_WIDTH)):
        main([*command, "--help"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    # The description of a command is one long line.
    return "\n".join(line if line.startswith(" ") else textwrap.fill(line, _WIDTH) for line in text.splitlines())


def _with_subcommands(verb: str) -> list[list[str]]:
    usage = re.match(rf"usage: lakeclip {verb} \[-h\]\s+\{{([\w,-]+)\}}", helptext([verb]))
    return [[verb], *([verb, name] for name in usage[1].split(","))] if usage else [[verb]]


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
