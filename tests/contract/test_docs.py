"""The documentation, executed and built: every command, snippet, flag and formula of every page of docs/."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.exceptions import PluginError

from lakeclip.cli.app import VERBS
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.ingestion.sources.synthetic import Split, scenes
from tests.contract.snippets import ROOT, blocks, execute, helptext, prose, reader_files, shell

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent.name != "adr")
#: Pages whose commands take more than a few seconds.
SLOW = (
    "guides/many-gpus.md",
    "guides/evaluate-and-export.md",
    "guides/finetune.md",
    "guides/coming-from.md",
    "guides/provenance.md",
    "guides/laion.md",
)
#: How a page says what its reader has from an earlier one.
_HAS = re.compile(r"<!-- the reader has: (.*) -->")
#: Where the prose names other tools' flags.
_OF_OTHERS = "guides/coming-from.md"


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory, pairs_folder: Path, pairs_lake: Path) -> Path:
    """The files that earlier pages leave: two lakes, the quickstart's run, and a small version of the demo's."""
    folder = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch, reader_files(folder, pairs_folder, pairs_lake):
        patch.chdir(folder)
        shell("lakeclip ingest my-photos my.lake", "earlier")
        shell("lakeclip ingest shards/train-*.tar shards.lake", "earlier")
        shell("lakeclip train --recipe small --lake my.lake --name first", "earlier")
        shutil.copytree("runs/first", "runs/demo")
        splits: tuple[Split, ...] = ("train", "seen", "unseen")
        for split in splits:
            Path("runs/demo/lakes").mkdir(exist_ok=True)
            number = 400 if split == "train" else 40
            fill_lake([Samples("scenes", scenes(split, number, 0), number)], f"runs/demo/lakes/{split}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, pairs_folder: Path, pairs_lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("ACTIVELOOP_TOKEN", "AWS_ENDPOINT_URL", "CUDA_VISIBLE_DEVICES", "LAKECLIP_CACHE_GB"):
        monkeypatch.setenv(name, "")  # so that what the pages set is taken back
    with reader_files(tmp_path, pairs_folder, pairs_lake):
        yield tmp_path
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # a hundred megabytes a page


# ── the pages, executed ─────────────────────────────────────────────────────────────────────────────────────────────


WITH_BLOCKS = [page for page in PAGES if blocks((DOCS / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in WITH_BLOCKS]
)
def test_every_command_and_snippet_works(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    markdown = (DOCS / page).read_text(encoding="utf-8")
    if has := _HAS.search(markdown):
        earlier: Path = request.getfixturevalue("earlier")
        for name in has[1].split():
            shutil.copytree(earlier / name, folder / name, symlinks=True)
    execute(markdown, f"docs/{page}")


def test_a_page_that_is_wrong_fails(folder: Path) -> None:
    """The usual mistakes fail the test above."""
    for page, complaint in (
        ("```bash\nlakeclip models --no-such-flag\n```\n", "no-such-flag"),
        ("```bash\nrm -r runs\n```\n", "no rule"),
        ("```bash\nlakeclip inspect nsfw.lake  # refused\n```\n", "not refused"),
        ("```bash\nlakeclip inspect nsfw.lake\n```\n\n```text\nViT-B times 32\n```\n", "is not in"),
        ("```json\n{}\n```\n", "nobody runs"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            execute(page, "a page")
    with pytest.raises(ZeroDivisionError):
        execute("```python\n1 / 0\n```\n", "a page")


# ── the prose ───────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def flags_of_all_verbs() -> set[str]:
    helps = [helptext([verb]) for verb in VERBS]
    helps += [
        helptext(["evaluate", verb])
        for verb in re.findall(r"[\w-]+", re.findall(r"\{(.*?)\}", helptext(["evaluate"]))[0])
    ]
    # `--from` is read before the flags are parsed.
    return set(re.findall(r"--[a-z][a-z-]*", " ".join(helps))) | {"--from"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("LOG.md", _OF_OTHERS)])
def test_every_flag_that_the_prose_names_exists(page: str) -> None:
    text = prose((DOCS / page).read_text(encoding="utf-8"))
    spans = re.findall(r"`([^`\n]+)`", text)
    named = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert named <= flags_of_all_verbs(), page


def test_every_flag_that_others_flags_become_exists() -> None:
    known, rows = flags_of_all_verbs(), 0
    for line in (DOCS / _OF_OTHERS).read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| open_clip", "| train-CLIP")):
            ours = line.split("|")[2]
            rows += 1
            assert set(re.findall(r"--[a-z][a-z-]*", ours)) <= known, line
    assert rows > 60


# ── the site ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    """A broken link or anchor, or a page that the navigation does not name, has failed the build before."""
    pages = {page.removesuffix(".md") + ".html" for page in PAGES}
    assert pages <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", path.read_text(encoding="utf-8")):
            assert not re.search(r'(?:src|href)="?(?:https?:)?//', tag), f"{path.name}: {tag}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_the_reference_holds_the_public_names_and_every_setting(site: Path) -> None:
    import dataclasses

    import lakeclip
    from lakeclip.config import schema

    index = (site / "reference/index.html").read_text(encoding="utf-8")
    assert all(f'id="lakeclip.{name}"' in index for name in lakeclip.__all__)
    settings = (site / "reference/settings.html").read_text(encoding="utf-8")
    for kind in (schema.DataConfig, schema.LossConfig, schema.TrainerConfig, schema.KeepConfig, schema.TeacherConfig):
        for field in dataclasses.fields(kind):
            assert f'id="lakeclip.config.schema.{kind.__name__}.{field.name}"' in settings


def test_every_verb_is_among_the_commands(site: Path) -> None:
    page = (site / "reference/commands.html").read_text(encoding="utf-8")
    for words in [*VERBS, "evaluate zeroshot", "evaluate retrieval"]:
        assert f'id="lakeclip-{words.replace(" ", "-")}"' in page


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WITH_FORMULAS = [
    page for page in PAGES if re.search(r"^\$\$$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("page", WITH_FORMULAS)
def test_formulas_become_mathml(page: str, site: Path) -> None:
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    source = (DOCS / page).read_text(encoding="utf-8")
    assert html.count('display="block"') == len(re.findall(r"^\$\$$", source, re.MULTILINE)) // 2
    article = re.sub(r"<(pre|code)\b.*?</\1>", "", html.partition("<article")[2], flags=re.DOTALL)
    assert "$" not in article
    assert "\\" not in article


def test_prices_and_code_are_not_formulas() -> None:
    import markdown

    formulas = hook("formulas")
    html = markdown.markdown("costs $5 and $6, `$x$`, \\$a$, and $x_i$", extensions=[formulas.Formulas()])
    assert html.count("<math") == 1
    assert "costs $5 and $6" in html
    assert "<code>$x$</code>" in html


def test_a_formula_with_an_unknown_command_is_refused() -> None:
    with pytest.raises(PluginError, match="nosuchcommand"):
        hook("formulas").mathml(r"\nosuchcommand{x}", display="inline")


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_the_examples_run_as_they_say(path: Path, folder: Path, earlier: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    command = re.search(rf"^    (python examples/{path.name}.*)$", source, re.MULTILINE)
    assert command, "the docstring has the command that runs it"
    for name in ("shards.lake", "runs/first"):
        shutil.copytree(earlier / name, folder / name)
    assert shell(command[1], path.name), "it prints its result"


def test_there_are_four_examples() -> None:
    assert len(EXAMPLES) == 4
