"""`lakeclip inspect`, on weights of other projects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lakeclip.cli.inspect import run
from lakeclip.errors import CheckpointError, ConfigError
from tests.unit.checkpoints.huggingface_models import change_config, write_clip, write_processor, write_siglip
from tests.unit.checkpoints.weights import random_clip


def test_a_folder_of_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_siglip(tmp_path, vision={"hidden_act": "gelu"}, text={"hidden_act": "gelu"})
    write_processor(tmp_path, size={"height": 32, "width": 32}, image_processor_type="SiglipImageProcessor")
    run([f"huggingface:{tmp_path}", "--json", str(tmp_path / "figures.json")])
    said = capsys.readouterr().out
    for words in ("activation", "gelu", "squash", "(0.5, 0.5, 0.5)", "none: a folder without a tokenizer"):
        assert words in said, words
    assert "equal to those of transformers" in said
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["model"]["vision_pool"] == "map"
    assert found["parity"]["difference"] <= 1e-5
    assert found["assumed"] == []


def test_assumptions_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path)
    run([f"huggingface:{tmp_path}"])
    assert "there is no preprocessor_config.json" in capsys.readouterr().out


def test_a_file_in_openais_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(random_clip().state_dict(), tmp_path / "x.pt")
    run([f"openai:{tmp_path}/x.pt"])
    said = capsys.readouterr().out
    assert "quick_gelu" in said
    assert "not compared with the original library" in said


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path)
    with pytest.raises(ConfigError, match=r"--query does not apply(.|\n)*shown as weights"):
        run([f"huggingface:{tmp_path}", "--query", "a = 1"])
    change_config(tmp_path, "vision_config", window_size=7)
    with pytest.raises(CheckpointError, match="window_size: 7"):
        run([f"huggingface:{tmp_path}"])
