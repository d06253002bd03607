"""Runner of Markdown pages: it executes the blocks of the README and the site in order, with the files they expect.

Only the tables below change commands. They replace what is expensive or needs a network. A block in an unknown
language, or a command without a rule, is an error.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from lakeclip.cli.app import main
from lakeclip.ingestion.sources.synthetic import scenes
from lakeclip.models.zoo import create_model
from tests.conftest import TINY_MODELS
from tests.contract.test_train_clip_finetune import save_roberta
from tests.unit.checkpoints.huggingface_models import write_processor, write_siglip, write_word_tokenizer
from tests.unit.ingestion.download.hostile_server import Server, respond

ROOT = Path(__file__).parents[2]

#: Text of a page → its replacement in tests: a lake of the same columns, a model of the same kind.
STAND_INS = {
    "hub://genai360/laion-400M": "nsfw.lake",
    "s3://my-bucket/my.lake": "my.lake",
    "hf:johngiorgi/declutr-sci-base": "hf:tiny-roberta",
    "torchvision:resnet50": "lakeclip:ViT-Ti/4-32px",
    "openai:ViT-B-32.pt": "openai:clip.pt",
    "open_clip:laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": "open_clip:clip.pt",
    "huggingface:google/siglip-base-patch16-224": "huggingface:tiny-siglip",
}
#: Start of a command → flags that make it quick. If a flag is given twice, the second one counts.
QUICK = {
    "lakeclip demo": "--max-steps 2",
    "lakeclip train --resume": "--max-steps 2",
    "lakeclip finetune --resume": "--max-steps 2",
    "lakeclip train --repeat": "",
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
    "lakeclip weights": "",
    "lakeclip evaluate": "",
    "lakeclip export": "",
}
#: Lines of Python → their replacements.
PYTHON_STAND_INS = {
    "max_epochs=1": "max_steps=1, accelerator='cpu', enable_progress_bar=False",
    "batch_size=64": "batch_size=8",
    "from torchvision.models import resnet50": "from tests.contract.snippets import small_tower as resnet50",
    "johngiorgi/declutr-sci-base": "tiny-roberta",
}


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page it begins on."""

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


def prose(markdown: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)


# ── files that the pages expect ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def reader_files(folder: Path, pairs_folder: Path, pairs_lake: Path) -> Iterator[None]:
    """Make the files that the pages expect, and serve the images that `laion.parquet` names."""
    for name in ("my-photos", "my-test-photos", "data_dir"):
        (folder / name).symlink_to(pairs_folder)
    shutil.copy(next(pairs_folder.rglob("*.jpg")), folder / "photo.jpg")
    (folder / "nsfw.lake").symlink_to(pairs_lake)
    (folder / "tiny.yaml").write_text(TINY_MODELS)
    save_roberta(folder / "tiny-roberta")
    clip = create_model("tiny-vit", model_config_file=folder / "tiny.yaml")
    torch.save(clip.state_dict(), folder / "clip.pt")
    write_siglip(folder / "tiny-siglip", text={"eos_token_id": 2})
    write_word_tokenizer(folder / "tiny-siglip")
    write_processor(folder / "tiny-siglip", size={"height": 32, "width": 32}, do_center_crop=False)
    (folder / "shards").mkdir()
    samples = list(scenes("train", 40, seed=1))
    for number in range(2):
        with tarfile.open(folder / f"shards/train-{number:04}.tar", "w") as tar:
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
    # Of the addresses two are dead.
    there = samples[1:13] + samples[14:]
    with Server({f"/{sample.key}.jpg": respond(sample.image) for sample in there}) as server:
        table = {
            "URL": [server.url(f"/{sample.key}.jpg") for sample in samples],
            "TEXT": [sample.captions[0] for sample in samples],
            "NSFW": ["UNLIKELY" if place % 4 else "UNSURE" for place in range(len(samples))],
            "similarity": [0.25 + place / 200 for place in range(len(samples))],
        }
        pq.write_table(pa.table(table), folder / "laion.parquet")
        yield


def small_tower(weights: str) -> nn.Module:
    """A stand-in for a pretrained ResNet: any module that turns images into features."""
    assert weights == "DEFAULT"
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.LazyLinear(16))


# ── runners of pages, commands and snippets ─────────────────────────────────────────────────────────────────────────


def execute(markdown: str, page: str) -> None:
    """Run every block of a page in the current folder.

    A `text` block is what the block before printed, or a folder and what is in it; a `yaml` block goes into the file
    that its first line names in a comment. A command with the comment `# refused` must be.

    Raises:
        AssertionError: something does not do what the page says.
    """
    printed = ""
    for block in blocks(markdown):
        where = f"{page}, line {block.line}"
        first, _, rest = block.text.partition("\n")
        if block.language == "bash":
            for command in commands(block):
                printed = shell(command, where)
        elif block.language == "python":
            printed = python(block, where)
        elif block.language == "text" and re.fullmatch(r"\S+/", first):
            for line in rest.splitlines():
                assert (Path(first) / line.split()[0]).exists(), f"{where}: {line}"
        elif block.language == "text":
            # The figures are another run's.
            for line in block.text.splitlines():
                assert mask(line) in mask(printed), f"{where}: {line}\nis not in\n{printed}"
        elif block.language == "yaml":
            if file := re.fullmatch(r"# (\S+\.yaml)", first):
                Path(file[1]).write_text(block.text, encoding="utf-8")
        else:
            assert block.language == "bibtex", f"{where}: nobody runs ```{block.language}"


def shell(command: str, where: str) -> str:
    """Run one command of a page as its rule says, and return what it printed.

    Raises:
        AssertionError: no rule knows the command, or it does not do what it should.
    """
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        target = re.search(rf"^{words[1]}:.*\n((?:\t.*\n)+)?", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert target, f"{where}: make has no target {words[1]}"
        # The demo takes a while, even of two steps: who has its run does not run it again.
        is_new = words[1] == "demo" and not Path("runs/demo").exists()
        return shell("lakeclip demo", where) if is_new and "/lakeclip demo" in target[1] else ""
    if words[:3] == ["pip", "install", "-e"]:
        extra = re.fullmatch(r"\.(?:\[([\w-]+)\])?", words[3])
        assert extra, f"{where}: {command}"
        assert extra[1] is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(), where
        return ""
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        os.environ[name] = value
        return ""
    if words[:2] == ["torchrun", "--nproc-per-node"] and "cpu" in words:
        return torchrun(words, where)
    if words[0] in ("torchrun", "srun"):
        # Launchers of machines that are not here: what each of their processes does is done by one.
        words = [*words[words.index("lakeclip") :], "--num-nodes", "1", "--devices", "1", "--strategy", "auto"]
        command = shlex.join(words)
    if words[0] == "python" and words[1].startswith("examples/"):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        return python(Block("python", source, 1), words[1], words[2:])
    rule = next((start for start in QUICK if command.startswith(start)), None)
    assert rule is not None, f"{where}: no rule says how to run {command!r}"
    words = [STAND_INS.get(word, word) for word in words] + shlex.split(QUICK[rule])
    code, out, err = program(words)
    if re.search(r"# refused\b", command):
        assert code == 2, f"{where}: {command} is not refused"
        return err
    if "gpu" in words:
        assert code == 2, f"{where}: {command}\n{err}"
        assert "accelerator gpu" in err
        assert "no GPU" in err
        return shell(err.rpartition("next:")[2].strip(), where)  # what it says would work, does
    assert code == 0, f"{where}: {command}\nrun as {shlex.join(words)}\n{out}\n{err}"
    return out


def torchrun(words: list[str], where: str) -> str:
    """Run torchrun with the requested number of processes, on a free port."""
    quick = next(flags for start, flags in QUICK.items() if " ".join(words).partition("-m ")[2].startswith(start))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *shlex.split(quick)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{where}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def program(words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `lakeclip …` or `python FILE …`, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), without_warnings():
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


def python(block: Block, where: str, arguments: list[str] | None = None) -> str:
    """Run a snippet or a whole program, and return what it printed."""
    source = block.text
    for words, stand_in in PYTHON_STAND_INS.items():
        source = source.replace(words, stand_in)
    before, out = sys.argv, io.StringIO()
    sys.argv = [where, *(arguments or [])]
    try:
        with contextlib.redirect_stdout(out), without_warnings():
            exec(compile(source, where, "exec"), {"__name__": "__main__"})
    finally:
        sys.argv = before
    return out.getvalue()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings of third parties about runs of one step, and restore the precision that a run sets."""
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_float32_matmul_precision(precision)


def helptext(verb: list[str]) -> str:
    return program(["lakeclip", *verb, "--help"])[1]


def mask(text: str) -> str:
    """Replace the numbers of a text by # and collapse spaces."""
    return re.sub(r"[^\S\n]+", " ", re.sub(r"\d+([.,]\d+)*", "#", text)).strip()
