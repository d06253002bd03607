"""`lakeclip models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lakeclip.cli.models import run
from lakeclip.errors import ModelError, OutputError
from lakeclip.models.zoo import available_models

MINE = """
mine:
  embed_dim: 32
  image_resolution: 32
  vision_layers: 2
  vision_width: 64
  vision_patch_size: 8
  context_length: 16
  vocab_size: 500
  transformer_width: 64
  transformer_heads: 2
  transformer_layers: 2
"""


def test_every_model_is_a_plain_row_of_at_most_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert max(len(line) for line in lines) <= 80
    rows = {line.split()[0]: line.split() for line in lines}
    assert set(available_models()) < set(rows)
    assert rows["RN50"] == ["RN50", "102.0", "38.3", "63.7", "17.1", "224×224", "1024"]
    assert rows["RN50x64"][5] == "448×448"


def test_json_and_own_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    run(["--model-config", str(tmp_path / "mine.yaml"), "--json", str(tmp_path / "models.json")])
    assert "mine" in capsys.readouterr().out
    models = json.loads((tmp_path / "models.json").read_text())["models"]
    assert models["ViT-B/32"]["parameters"] == 151_277_313
    assert models["mine"]["config"]["vision_patch_size"] == 8
    assert models["mine"]["gflops"] > 0


def test_bad_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.yaml"):
        run(["--model-config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(OutputError, match="cannot write"):
        run(["--json", str(tmp_path / "nowhere" / "models.json")])
