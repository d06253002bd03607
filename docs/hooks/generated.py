"""Pages that are made from the package, so that they cannot fall behind it: flags, recipes, examples, decisions."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lakeclip.cli.app import VERBS, main

_WIDTH = "78"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every decision in the navigation, in their order."""
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "adr").glob("*.md"))
    for section in config.nav or []:
        if "Why" in section:
            section["Why"].append({"Decisions": [f"adr/{name}" for name in decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    root = Path(config.docs_dir).parent
    for name, content in (
        ("reference/commands.md", commands_page()),
        ("reference/recipes.md", recipes_page(root / "recipes")),
        ("examples.md", examples_page(root / "examples")),
    ):
        files.append(File.generated(config, name, content=content))
    return files


def commands_page() -> str:
    """`--help` of every verb, and of what is below it."""
    parts = ["# Commands and flags", "What each command prints when it is asked with `--help`."]
    for verb in VERBS:
        for words in _with_verbs_below(verb):
            parts += [f"## lakeclip {' '.join(words)}", _fenced("text", helptext(words))]
    return "\n\n".join(parts) + "\n"


def recipes_page(folder: Path) -> str:
    """The recipes, with their comments."""
    parts = ["# Recipes", "Each is a file of settings with the reasons; `--recipe NAME` takes it."]
    for path in sorted(folder.glob("*.yaml")):
        parts += [f"## {path.stem}", _fenced("yaml", path.read_text(encoding="utf-8"))]
    return "\n\n".join(parts) + "\n"


def examples_page(folder: Path) -> str:
    """The examples, whole."""
    parts = ["# Examples", "Programs of a page each, in the folder `examples`. The tests run them."]
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = source.removeprefix('"""').partition(".")[0].partition("\n")[0]
        parts += [f"## {path.name}", f"{title}.", _fenced("python", source)]
    return "\n\n".join(parts) + "\n"


def helptext(words: list[str]) -> str:
    """What `lakeclip WORDS --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), _columns(_WIDTH):
        main([*words, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def _with_verbs_below(verb: str) -> list[list[str]]:
    below = re.match(rf"usage: lakeclip {verb} \[-h\] \{{([\w,-]+)\}}", helptext([verb]))
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
