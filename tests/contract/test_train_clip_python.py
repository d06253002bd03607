"""Python code that users of train-CLIP write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

import lakeclip
from lakeclip import CLIPWrapper, CustomCLIPWrapper, DeepLakeDataModule, LakeclipError, TextImageDataModule
from lakeclip.models import zoo
from tests.conftest import TINY_MODELS

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")


def one_step(model: L.LightningModule, data: Any, folder: Path) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, default_root_dir=folder, enable_checkpointing=False, **quiet)
    trainer.fit(model, data)
    assert trainer.global_step == 1
    assert float(trainer.callback_metrics["train/loss"]) > 0
    return trainer


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model and its tokenizer, saved as they lie on the hub; small and random."""
    folder = tmp_path_factory.mktemp("text")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "of", "photo"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def image_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16)
    )


def test_clip_wrapper_with_the_yaml_of_a_model(pairs_folder: Path, tmp_path: Path) -> None:
    """`CLIPWrapper("RN50", config, minibatch_size)`, the config being what stands in the YAML."""
    shipped = Path(zoo.__file__).parent / "configs" / "RN.yaml"
    assert "RN50" in yaml.safe_load(shipped.read_text())
    config = yaml.safe_load(TINY_MODELS)["tiny-resnet"]
    model = CLIPWrapper("tiny-resnet", config, 2)
    one_step(model, TextImageDataModule(str(pairs_folder), batch_size=4, image_size=32), tmp_path)


def test_lake_data_module(pairs_lake: Path, tmp_path: Path) -> None:
    data = DeepLakeDataModule(path=str(pairs_lake), token="", batch_size=4, filter_NSFW=True, image_size=32)
    assert len(data.source) == 180, "NSFW == 'UNLIKELY' and nothing more"
    one_step(CLIPWrapper("tiny-vit", yaml.safe_load(TINY_MODELS)["tiny-vit"], 0), data, tmp_path)


def test_any_dataloader(tmp_path: Path) -> None:
    """The only rule: item 0 is the image batch, item 1 the text batch."""
    ids = lakeclip.tokenize(["a red circle", "a blue square"])
    loader = DataLoader(list(zip(torch.randn(2, 3, 32, 32), ids, ["left", "alone"], strict=True)), batch_size=2)
    one_step(CLIPWrapper("tiny-vit", yaml.safe_load(TINY_MODELS)["tiny-vit"], 0), loader, tmp_path)


@pytest.mark.parametrize("average", [True, False])
def test_custom_wrapper_with_a_hugging_face_tokenizer(
    average: bool, text_model: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    """Captions go through a Hugging Face tokenizer, whose batches are `BatchEncoding`s."""
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    text_encoder = AutoModel.from_pretrained(text_model)
    data = TextImageDataModule(str(pairs_folder), batch_size=4, image_size=32, custom_tokenizer=tokenizer)
    model = CustomCLIPWrapper(image_encoder(), text_encoder, 2, avg_word_embs=average, image_size=32)
    before = {name: value.clone() for name, value in model.model.named_parameters() if value.requires_grad}
    one_step(model, data, tmp_path)
    moved = [
        name
        for name, value in model.model.named_parameters()
        if name in before and not torch.equal(value, before[name])
    ]
    assert any(name.startswith("image_encoder") for name in moved)
    assert any(name.startswith("text_encoder") for name in moved)


def test_kl_coeff_weighs_the_teacher(text_model: Path) -> None:
    """The seed's weight of the distillation beside the contrastive loss, as shares of both."""
    shares = {}
    for coefficient in (0.0, 1.0, 3.0):
        towers = image_encoder(), AutoModel.from_pretrained(text_model)
        model = CustomCLIPWrapper(*towers, kl_coeff=coefficient, image_size=32)
        shares[coefficient] = (model.teacher_config.alpha, model.teacher is None)
    assert shares == {0.0: (1.0, True), 1.0: (0.5, False), 3.0: (0.25, False)}


@pytest.mark.parametrize("module", [TextImageDataModule, DeepLakeDataModule])
def test_removed_from_argparse_args_is_an_error(module: Any) -> None:
    """`from_argparse_args`, which Lightning 2 no longer has."""
    with pytest.raises(LakeclipError, match="Lightning 2"):
        module.from_argparse_args(object())


def test_the_python_api(pairs_lake: Path) -> None:
    model = lakeclip.create_model("ViT-B/32")
    assert isinstance(model, nn.Module)
    assert model.logit_scale.ndim == 0
    ids = lakeclip.tokenize(["a photo of a dog"])
    assert ids.shape == (1, 77)
    assert ids.dtype == torch.int64
    with torch.no_grad():
        assert model.encode_text(ids).shape == (1, 512)
        assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 512)
    lake = lakeclip.open_lake(pairs_lake)
    assert len(lake) == 240
    assert "label" in lake.columns
    assert lake[0]["label"] == lake.column("label")[0]
    assert lake.read([3, 1])[0].row == 3
