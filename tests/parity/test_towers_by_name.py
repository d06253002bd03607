"""Tests of towers of torchvision and timm: loaded by name, and rebuilt from their origin.

Without network access, the tests write random weights into the libraries' download caches.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from lakeclip.errors import ModelError
from lakeclip.models.dual_encoder import DualEncoder, image_features
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


def save_weights(cache: Path, name: str) -> torch.nn.Module:
    """Write random weights where torchvision keeps its own, and return their model with its classifier."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    # Those two have further classifiers in the file, which torchvision drops after reading it.
    options = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    theirs: torch.nn.Module = torchvision.models.get_model(name, weights=None, **options)
    folder = cache / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / weights.url.rpartition("/")[2])
    return theirs


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("googlenet", 1024),
        ("inception_v3", 2048),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("vgg11", 4096),
        ("densenet121", 1024),
        ("vit_b_32", 768),
        ("swin_t", 768),
        ("regnet_y_400mf", 440),
    ],
)
def test_the_last_layer_of_any_torchvision_model_is_removed(name: str, width: int, cache: Path) -> None:
    """The classifier of theirs, applied to our features, gives their logits."""
    theirs = save_weights(cache, name)
    tower = load_image_tower(f"torchvision:{name}")
    model = DualEncoder(tower.module, text_model(), embed_dim=8, image_size=tower.image_size)
    assert model.image_dim == width
    images = torch.randn(2, 3, tower.image_size, tower.image_size)
    if hasattr(theirs, "aux_logits"):
        theirs.transform_input = True  # as with torchvision's own weights
    for training in (False, True):
        model.train(training)
        if training:  # every parameter gets a gradient, without which several devices cannot train
            image_features(tower.module(images)).sum().backward()
            assert [key for key, p in tower.module.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        tower.module.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in tower.module.state_dict()})
        features = image_features(tower.module.eval()(images))
        last = [
            layer for layer in theirs.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1000
        ]
        logits = theirs.eval()(images)
        if last:
            torch.testing.assert_close(last[-1](features), logits, rtol=1e-4, atol=1e-4)
        else:  # SqueezeNet: dropout, convolution, ReLU, average
            convolution = theirs.classifier[1]
            maps = theirs.features(images)
            torch.testing.assert_close(features, maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
            assert convolution.out_channels == logits.shape[1]
        rebuilt = rebuild_image_encoder(json.loads(json.dumps(tower.origin)))
        rebuilt.load_state_dict(tower.module.state_dict())
        torch.testing.assert_close(image_features(rebuilt.eval()(images)), features, rtol=0, atol=0)


def test_towers_of_earlier_versions_have_no_classifier_at_all() -> None:
    rebuilt = rebuild_image_encoder({"library": "torchvision", "name": "mobilenet_v3_small", "config": {}})
    assert isinstance(rebuilt.classifier, torch.nn.Identity)


def text_model() -> BertModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=20, **sizes))


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
