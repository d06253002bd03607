"""The README, executed: every command and every piece of Python in it, from top to bottom, in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakeclip.compat import train_clip_cli
from lakeclip.config.load import read_recipe, recipes_folder
from lakeclip.models.zoo import available_models, summarize
from tests.contract.snippets import (
    ROOT,
    blocks,
    commands,
    execute,
    helptext,
    prose,
    reader_files,
    run_python,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, pairs_folder: Path, pairs_lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the files that the README expects of its reader, and no others."""
    for block in blocks(README):
        if block.language == "yaml":
            (tmp_path / "my-models.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")  # so that what the commands set is taken back
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with reader_files(tmp_path, pairs_folder, pairs_lake):
        yield tmp_path


# ── the README as a whole ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(900)  # many commands, one after another
def test_every_command_and_snippet_works(folder: Path) -> None:
    execute(README, "README.md")


def test_train_clips_commands_print_their_modern_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """They print the command that the README names."""
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")
    monkeypatch.setattr(train_clip_cli, "exit_cleanly", lambda work: None)
    everything = [command for block in blocks(README) if block.language == "bash" for command in commands(block)]
    legacy = [command for command in everything if command.startswith("python train")]
    assert len(legacy) == 3
    for command in legacy:
        today = run_python(shlex.split(command)[1:]).partition("lakeclip ")[2]
        assert any(sorted(shlex.split(other)[1:]) == sorted(shlex.split(today)) for other in everything), today


def test_readme_shows_the_first_command_early() -> None:
    head = "\n".join(README.splitlines()[:25])
    assert "make demo" in head
    assert len(re.findall(r"[.:](?=\s)", README.split("\n\n")[1])) <= 3, "two sentences say what it is"


def test_the_table_of_models_is_what_the_command_prints() -> None:
    rows = re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+)×\d+ \| (\d+) \|$", README, re.M
    )
    expected = []
    for name, config in available_models().items():
        cost = summarize(config)
        millions = (cost.parameters, cost.image_parameters, cost.text_parameters)
        sizes = (str(cost.image_resolution), str(cost.embed_dim))
        expected.append((name, *(f"{count / 1e6:.1f}" for count in millions), f"{cost.gflops:.1f}", *sizes))
    assert rows == expected


def test_the_table_of_recipes_is_what_is_shipped() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(recipes/\1\.yaml\) \| .* \| (\S+) \| ([\d,]+) \| .* \|$", README, re.M)
    for name, model, batch in rows:
        config = read_recipe(name)
        assert config.model == model
        pairs = config.data.batch_size * (config.trainer.devices or 1) * config.trainer.num_nodes
        assert f"{pairs:,}" == batch
    tuned = re.findall(r"^\| \[(finetune-\w+)\]\(recipes/\1\.yaml\) \|", README, re.M)
    shipped = {path.stem for path in recipes_folder().glob("*.yaml")}
    assert {*(name for name, _, _ in rows), *tuned} == shipped - {"demo"}


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_flag_that_the_prose_names_exists() -> None:
    flags = set(re.findall(r"`(?:[^`]* )?(--[a-z][a-z-]*)[ `]", prose(README))) - {"--token", "--nproc-per-node"}
    scores = (["evaluate", kind] for kind in ("zeroshot", "robustness", "compare"))
    helps = "".join(helptext(verb) for verb in (["train"], ["finetune"], ["ingest"], ["export"], *scores))
    assert flags
    for flag in flags:
        assert flag in helps, flag
