"""Test `lakeclip.save` and `lakeclip.load` with models, towers and tokenizers that the user defined in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lakeclip
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.tokenizer import Tokenizer
from tests.conftest import TINY


class Texts(nn.Module):
    """A custom text encoder with the interface of a Hugging Face model."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 8, "pad_token_id": 0})()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.table(input_ids)
        return type("Output", (), {"last_hidden_state": hidden, "pooler_output": None})()


def towers() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8)), Texts()


def tokenize(texts: Any) -> Tensor:
    return torch.tensor([[1 + sum(text.encode()) % 49, 2] for text in texts])


def test_a_clip_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLIP(TINY).eval()
    path = lakeclip.save(model, tmp_path / "clip.ckpt", name="tiny", tokenizer=Tokenizer(TINY.context_length))
    loaded = lakeclip.load(path)
    ids = loaded.tokenize(["a red circle"])
    torch.testing.assert_close(loaded.model.encode_text(ids), model.encode_text(ids), rtol=0, atol=0)


def test_a_clip_without_a_tokenizer_requires_one(tmp_path: Path) -> None:
    path = lakeclip.save(CLIP(TINY), tmp_path / "clip.ckpt")
    with pytest.raises(CheckpointError, match="tokenize="):
        lakeclip.load(path)
    assert lakeclip.load(path, tokenize=tokenize).tokenize is tokenize


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_custom_towers_trained_on_a_custom_dataloader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = lakeclip.CustomCLIPWrapper(*towers(), image_size=16, avg_word_embs=True)
    pairs = [(torch.rand(3, 16, 16), torch.tensor([index + 1, 2])) for index in range(8)]
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(pairs, batch_size=4))
    trainer.save_checkpoint(tmp_path / "custom.ckpt")

    with pytest.raises(CheckpointError, match="model=YOUR_MODEL"):
        lakeclip.load(tmp_path / "custom.ckpt")
    empty = DualEncoder(*towers(), image_size=16, average_word_embeddings=True)
    with pytest.raises(CheckpointError, match="tokenize=YOUR_TOKENIZER"):
        lakeclip.load(tmp_path / "custom.ckpt", model=empty)
    model, tokenizer, transform = lakeclip.load(tmp_path / "custom.ckpt", model=empty, tokenize=tokenize)
    module.eval()
    image = transform(Image.new("RGB", (20, 30), "red"))[None]
    assert image.shape == (1, 3, 16, 16)
    torch.testing.assert_close(model.encode_image(image), module.model.encode_image(image), rtol=0, atol=0)
    ids = tokenizer(["a red circle", "blue"])
    torch.testing.assert_close(model.encode_text(ids), module.model.encode_text(ids), rtol=0, atol=0)


def test_saved_weights_of_custom_towers(tmp_path: Path) -> None:
    model = DualEncoder(*towers(), image_size=16)
    path = lakeclip.save(model, tmp_path / "custom.ckpt")
    loaded = lakeclip.load(path, model=DualEncoder(*towers(), image_size=16), tokenize=tokenize).model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_weights_that_do_not_fit_raise(tmp_path: Path) -> None:
    path = lakeclip.save(DualEncoder(*towers(), image_size=16), tmp_path / "custom.ckpt")
    other = DualEncoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), Texts(), image_size=16)
    with pytest.raises(CheckpointError, match="do not fit the given model"):
        lakeclip.load(path, model=other, tokenize=tokenize)
