"""`lakeclip weights`, with a hub that is a local server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lakeclip.cli.weights import run
from lakeclip.errors import CheckpointError, ConfigError, OutputError
from lakeclip.hub import WEIGHT_FILES, is_hub_name
from lakeclip.models.zoo import model_config, summarize
from lakeclip.pretrained_weights import find_local, known_weights
from tests.unit.test_hub import _Hub
from tests.unit.test_hub import server as server

OPENAI = "huggingface:openai/clip-vit-base-patch32"
#: Part of a name → a shipped model with the same sizes.
SAME = {
    "clip-vit-base-patch32": "ViT-B/32",
    "clip-vit-base-patch16": "ViT-B/16",
    "clip-vit-large-patch14": "ViT-L/14",
    "B-32-laion2B": "ViT-B/32",
    "B-16": "ViT-B/16",
    "L-14": "ViT-L/14",
    "-b32-": "ViT-B/32",
    "-b16-": "ViT-B/16",
    "-l14-": "ViT-L/14",
}


def test_every_name_is_of_the_hub_and_better_ones_come_later() -> None:
    sources = [weights.source for weights in known_weights()]
    assert len(set(sources)) == len(sources) >= 20
    for weights in known_weights():
        library, _, name = weights.source.partition(":")
        assert library in WEIGHT_FILES
        assert is_hub_name(name)
        assert weights.licence in ("MIT", "Apache 2.0", "CC BY-NC 4.0", "Apple AMLR")
    groups = [weights.group for weights in known_weights()]
    for group in dict.fromkeys(groups):
        scores = [weights.imagenet for weights in known_weights() if weights.group == group]
        assert scores == sorted(scores)


@pytest.mark.parametrize(("part", "model"), SAME.items())
def test_parameters_are_those_of_the_same_sizes(part: str, model: str) -> None:
    found = [weights for weights in known_weights() if part in weights.source]
    assert found
    for weights in found:
        assert weights.parameters == round(summarize(model_config(model)).parameters / 1e6)


def test_the_list_and_its_json(tmp_path: Path, server: _Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--json", str(tmp_path / "weights.json")])
    printed = capsys.readouterr().out
    listed = json.loads((tmp_path / "weights.json").read_text())["weights"]
    for weights, entry in zip(known_weights(), listed, strict=True):
        assert re.search(rf"{weights.imagenet:.1f}%  {weights.licence} +{re.escape(weights.source)}$", printed, re.M)
        assert (entry["source"], entry["folder"]) == (weights.source, None)
    assert server.requests == []


def test_a_model_is_downloaded_when_asked(server: _Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = dict.fromkeys(("config.json", "model.safetensors", "modeling.py"), b"{}")
    run([OPENAI])
    printed = capsys.readouterr().out
    assert f"not on this machine; it would be kept in {tmp_path / 'cache'}" in printed
    assert f"lakeclip weights {OPENAI} --download" in printed
    assert "63.3% on ImageNet (published), licence MIT" in printed
    assert server.requests == []
    run([OPENAI, "--download"])
    folder = find_local(OPENAI)
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert f"kept in {folder}" in capsys.readouterr().out
    run([])
    assert f"{OPENAI} *" in capsys.readouterr().out
    assert find_local(OPENAI.replace("huggingface", "open_clip")) is None, "these are no weights for open_clip"


def test_an_unlisted_model_is_shown_and_downloaded(server: _Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = dict.fromkeys(("open_clip_config.json", "open_clip_model.safetensors"), b"{}")
    run(["open_clip:org/name", "--download"])
    printed = capsys.readouterr().out
    assert "ImageNet" not in printed
    assert "use it: lakeclip finetune --from open_clip:org/name --lake LAKE" in printed


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["ViT-B-32"], ConfigError, r"similar names: open_clip:laion/CLIP-ViT-B-32-laion2B.*\n.*allowed: huggingface:"),
        (["openai/clip-vit-base-patch32"], ConfigError, r"similar names: huggingface:openai/clip-vit-base-patch32"),
        (["openclip:laion/CLIP-ViT-B-16"], ConfigError, r"open_clip:laion/CLIP-ViT-B-16"),
        (["--download"], ConfigError, "needs the name of a model"),
        (["--json", "/no/such/folder/file.json"], OutputError, "cannot write"),
        (["huggingface:openai/clip-vit-base-patch23", "--download"], CheckpointError, "no model of that name"),
    ],
)
def test_mistakes_are_explained(argv: list[str], error: type[Exception], message: str, server: _Hub) -> None:
    server.status = 404
    with pytest.raises(error, match=message):
        run(argv)
