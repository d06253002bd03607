"""The README, executed: every command and every piece of Python in it, from top to bottom, in one folder.

Commands are made small by the tables below and by nothing else: what they change is what is expensive or far away. A
block in a language that nobody runs, or a command that no rule knows, fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from lakeclip.cli import seed
from lakeclip.cli.app import main
from lakeclip.config.load import read_recipe, recipes_folder
from lakeclip.lake.sources.scenes import scenes
from lakeclip.models.zoo import available_models, create_model, summarize
from tests.contract.test_seed_finetune import save_roberta
from tests.unit.lake.download.hostile import Server, respond

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: What the README says → what stands for it here: a lake of the same columns, a model of the same kind.
STAND_INS = {
    "hub://genai360/laion-400M": "nsfw.lake",
    "s3://my-bucket/my.lake": "my.lake",
    "hf:johngiorgi/declutr-sci-base": "hf:tiny-roberta",
    "torchvision:resnet50": "lakeclip:ViT-Ti/4-32px",
    "openai:ViT-B-32.pt": "openai:clip.pt",
}
#: What a command begins with → flags that make it quick. Of a flag that is there twice, the second counts.
QUICK = {
    "lakeclip demo": "--max-steps 2",
    "lakeclip train --resume": "--max-steps 2",
    "lakeclip finetune --resume": "--max-steps 2",
    "lakeclip train --model ViT-Ti/8-64px": "--max-steps 2 --num-workers 0 --batch-size 8",
    "lakeclip train --model ViT-Mini/16": "--max-steps 1 --num-workers 0 --batch-size 8",
    "lakeclip train": "--max-steps 1 --val-every-steps 1 --num-workers 0 --batch-size 8 "
    "--model tiny-vit --model-config tiny.yaml",
    "lakeclip finetune": "--max-steps 1 --num-workers 0 --batch-size 8 --image-size 32 "
    "--image-encoder lakeclip:ViT-Ti/4-32px --text-encoder hf:tiny-roberta",
    "python train.py": "--max_steps 1 --num_workers 0 --batch_size 8 --model_name ViT-Ti/4-32px",
    "python train_finetune.py": "--max_steps 1 --num_workers 0 --batch_size 8 --image_size 32 "
    "--image_encoder lakeclip:ViT-Ti/4-32px --text_encoder hf:tiny-roberta",
    "lakeclip ingest --download": "--allow-private --per-host-rate 0",
    "lakeclip ingest": "",
    "lakeclip inspect": "",
    "lakeclip models": "",
    "lakeclip evaluate": "",
    "lakeclip export": "",
}
#: Lines of Python → what stands for them.
PYTHON_STAND_INS = {
    "max_epochs=1": "max_steps=1, accelerator='cpu', enable_progress_bar=False",
    "batch_size=64": "batch_size=8",
    "from torchvision.models import resnet50": "from tests.contract.test_readme import small_tower as resnet50",
    "johngiorgi/declutr-sci-base": "tiny-roberta",
}


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the README it begins on."""

    language: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", markdown, re.DOTALL | re.MULTILINE):
        found.append(Block(match[1], match[2], markdown[: match.start()].count("\n") + 2))
    return found


def commands(block: Block) -> list[str]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def small_tower(weights: str) -> nn.Module:
    """Stands for a pretrained ResNet: any module that turns images into features."""
    assert weights == "DEFAULT"
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.LazyLinear(16))


@pytest.fixture
def folder(
    tmp_path: Path,
    pairs_folder: Path,
    pairs_lake: Path,
    tiny_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """Where the README's reader sits: what it calls theirs is there, and nothing else."""
    for name in ("my-photos", "my-test-photos", "data_dir"):
        (tmp_path / name).symlink_to(pairs_folder)
    shutil.copy(next(pairs_folder.rglob("*.jpg")), tmp_path / "photo.jpg")
    (tmp_path / "nsfw.lake").symlink_to(pairs_lake)
    shutil.copy(tiny_models, tmp_path / "tiny.yaml")
    save_roberta(tmp_path / "tiny-roberta")
    torch.save(create_model("ViT-Ti/4-32px").state_dict(), tmp_path / "clip.pt")
    (tmp_path / "shards").mkdir()
    samples = list(scenes("train", 40, seed=1))
    for number in range(2):
        with tarfile.open(tmp_path / f"shards/train-{number:04}.tar", "w") as tar:
            for sample in samples[20 * number : 20 * number + 20]:
                label = f'{{"label": "{sample.metadata["label"]}"}}'
                for suffix, data in (
                    ("jpg", sample.image),
                    ("txt", sample.captions[0].encode()),
                    ("json", label.encode()),
                ):
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for block in blocks(README):
        if block.language == "yaml":
            (tmp_path / "my-models.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")  # so that what the commands set is taken back
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Server({f"/{sample.key}.jpg": respond(sample.image) for sample in samples[1:]}) as server:
        urls = [server.url(f"/{sample.key}.jpg") for sample in samples]
        table = {"URL": urls, "TEXT": [sample.captions[0] for sample in samples]}
        pq.write_table(pa.table(table), tmp_path / "laion.parquet")
        yield tmp_path


# ── the README as a whole ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_command_and_snippet_works(folder: Path) -> None:
    printed = ""
    for block in blocks(README):
        where = f"README.md, line {block.line}"
        if block.language == "bash":
            for command in commands(block):
                printed = shell(command, where)
        elif block.language == "python":
            python(block, where)
        elif block.language == "text" and block.text.startswith("runs/first/"):
            for line in block.text.splitlines()[1:]:
                assert (folder / "runs/first" / line.split()[0]).exists(), f"{where}: {line}"
        elif block.language == "text":
            # What the command before prints; the figures are another run's.
            for line in block.text.splitlines():
                assert mask(line) in mask(printed), f"{where}: {line}\nis not in\n{printed}"
        else:
            assert block.language in ("yaml", "bibtex"), f"{where}: nobody runs ```{block.language}"


def test_the_seeds_commands_stand_for_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README says they stand for is what they print."""
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")
    monkeypatch.setattr(seed, "exit_cleanly", lambda work: None)
    everything = [command for block in blocks(README) if block.language == "bash" for command in commands(block)]
    olden = [command for command in everything if command.startswith("python train")]
    assert len(olden) == 3
    for command in olden:
        today = run_python(shlex.split(command)[1:]).partition("lakeclip ")[2]
        assert any(sorted(shlex.split(other)[1:]) == sorted(shlex.split(today)) for other in everything), today


def test_the_first_command_stands_early() -> None:
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
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    flags = set(re.findall(r"`(?:[^`]* )?(--[a-z][a-z-]*)[ `]", prose)) - {"--token", "--nproc-per-node"}
    helps = "".join(
        helptext(verb) for verb in (["train"], ["finetune"], ["evaluate", "zeroshot"], ["ingest"], ["export"])
    )
    assert flags
    for flag in flags:
        assert flag in helps, flag


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "examples").glob("*.py"))])
def test_the_examples_run(name: str, folder: Path) -> None:
    source = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert f"python examples/{name}" in source, "it says how it is run"
    python(Block("python", source, 1), name, ["my-photos"])


# ── how a command and a snippet are run ─────────────────────────────────────────────────────────────────────────────


def shell(command: str, where: str) -> str:
    """Run one command of the README as its rule says, and return what it printed.

    Raises:
        AssertionError: no rule knows the command, or it does not do what it should.
    """
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        target = re.search(rf"^{words[1]}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert target, f"{where}: make has no target {words[1]}"
        return shell("lakeclip demo", where) if words[1] == "demo" and "/lakeclip demo" in target[1] else ""
    if words[:3] == ["pip", "install", "-e"]:
        extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[3])
        assert extra, f"{where}: {command}"
        assert extra[1] is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(), where
        return ""
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        os.environ[name] = value
        return ""
    rule = next((start for start in QUICK if command.startswith(start)), None)
    assert rule is not None, f"{where}: no rule says how to run {command!r}"
    words = [STAND_INS.get(word, word) for word in words] + shlex.split(QUICK[rule])
    code, out, err = program(words)
    if "gpu" in words:
        assert code == 2, f"{where}: {command}\n{err}"
        assert "accelerator gpu" in err
        assert "no GPU" in err
        return shell(err.rpartition("next:")[2].strip(), where)  # what it says would work, does
    assert code == 0, f"{where}: {command}\nrun as {shlex.join(words)}\n{out}\n{err}"
    return out


def program(words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `lakeclip …` or `python FILE …`, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), calm():
        try:
            if words[0] == "lakeclip":
                main(words[1:])
            else:
                run_python(words[1:], out)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


def run_python(words: list[str], out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    before = sys.argv
    sys.argv = list(words)
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = before
    return out.getvalue()


def python(block: Block, where: str, arguments: list[str] | None = None) -> None:
    source = block.text
    for words, stand_in in PYTHON_STAND_INS.items():
        source = source.replace(words, stand_in)
    before = sys.argv
    sys.argv = [where, *(arguments or [])]
    try:
        with contextlib.redirect_stdout(io.StringIO()), calm():
            exec(compile(source, where, "exec"), {"__name__": "__main__"})
    finally:
        sys.argv = before


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Advice of third parties on runs of one step is no failure; nor may a run leave its precision behind."""
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_float32_matmul_precision(precision)


def helptext(verb: list[str]) -> str:
    return program(["lakeclip", *verb, "--help"])[1]


def mask(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", text).strip()
