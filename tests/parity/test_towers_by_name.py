"""Tests of towers of torchvision and timm: loaded by name, and rebuilt from their origin.

Without network access, the tests write random weights into the libraries' download caches.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lakeclip.errors import ModelError
from lakeclip.models.pretrained import load_image_tower, rebuild_image_encoder

torchvision = pytest.importorskip("torchvision", reason="runs in the second environment", exc_type=ImportError)
timm = pytest.importorskip("timm", reason="runs in the second environment")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_torchvision(cache: Path) -> None:
    models = torchvision.models
    weights = models.get_model_weights("resnet18").DEFAULT
    folder = cache / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    theirs = models.resnet18()
    torch.save(theirs.state_dict(), folder / weights.url.rpartition("/")[2])
    tower = load_image_tower("torchvision:resnet18")
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(images)
        torch.testing.assert_close(tower.module.eval()(images), expected, rtol=0, atol=0)
        rebuilt = rebuild_image_encoder(json.loads(json.dumps(tower.origin)))
        rebuilt.load_state_dict(tower.module.state_dict())
        torch.testing.assert_close(rebuilt.eval()(images), expected, rtol=0, atol=0)
    assert (tower.image_size, tower.mean) == (224, (0.485, 0.456, 0.406))


def test_timm(cache: Path) -> None:
    theirs = timm.create_model("resnet10t", pretrained=False)
    repository = theirs.pretrained_cfg["hf_hub_id"].replace("/", "--")
    folder = cache / "hub" / f"models--{repository}"
    (folder / "snapshots/0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0")
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), folder / "snapshots/0/model.safetensors")
    tower = load_image_tower("timm:resnet10t")
    theirs.reset_classifier(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(images)
        torch.testing.assert_close(tower.module.eval()(images), expected, rtol=0, atol=0)
        rebuilt = rebuild_image_encoder(json.loads(json.dumps(tower.origin)))
        rebuilt.load_state_dict(tower.module.state_dict())
        torch.testing.assert_close(rebuilt.eval()(images), expected, rtol=0, atol=0)
    assert tower.image_size == theirs.pretrained_cfg["input_size"][-1]
    assert tower.mean == theirs.pretrained_cfg["mean"]


@pytest.mark.parametrize("name", ["torchvision:resnet19", "timm:no_such_model"])
def test_an_unknown_model_raises(name: str, cache: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_image_tower(name)
