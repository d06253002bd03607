"""MkDocs hook that copies repository files outside docs/ into the site when a page links to them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")
_FOLDER = "repository"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the page's links to repository files; links to missing files stay for the strict build to report."""
    root = Path(config.docs_dir).resolve().parent
    page_folder = PurePosixPath(page.file.src_uri).parent

    def to_site(match: re.Match[str]) -> str:
        target = (root / "docs" / page_folder / match[1]).resolve()
        if not target.is_relative_to(root) or target.is_relative_to(root / "docs") or not target.is_file():
            return match[0]
        # A browser displays text files, but would download YAML and Python.
        name = f"{_FOLDER}/{target.relative_to(root).as_posix()}"
        if target.suffix in (".py", ".yaml"):
            name += ".txt"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(target)))
        return f"]({'../' * len(page_folder.parts)}{name})"

    return _LINK.sub(to_site, markdown)
