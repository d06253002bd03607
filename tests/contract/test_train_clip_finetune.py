"""`python train_finetune.py --folder data_dir --batchsize 512`, train-CLIP's command, with the towers it names.

The tests have no network: they put weights where torchvision and Hugging Face keep downloaded ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

from tests import preloaded

ROOT = Path(__file__).parents[2]


def finetune(folder: Path, cwd: Path, *more: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment |= {"HF_HOME": str(cache / "hf"), "TORCH_HOME": str(cache / "torch")}
    command = [sys.executable, str(ROOT / "train_finetune.py"), "--folder", str(folder), "--batchsize", "4", *more]
    if cache is None:
        return preloaded.run(command, cwd=cwd, env=environment, timeout=280)
    # The libraries read where their caches are when they are imported.
    return subprocess.run(command, cwd=cwd, env=environment, timeout=280, capture_output=True, text=True, check=False)


def save_roberta(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(chr(33 + index) for index in range(94)), "Ġ"]
    tokenizer = RobertaTokenizerFast(vocab={word: place for place, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(words), max_position_embeddings=130, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with caches that hold resnet50 and declutr-sci-base under their real names, with random weights."""
    models = pytest.importorskip("torchvision.models", reason="runs in the second environment", exc_type=ImportError)
    home = tmp_path_factory.mktemp("cache")
    weights = home / "torch/hub/checkpoints"
    weights.mkdir(parents=True)
    name = models.get_model_weights("resnet50").DEFAULT.url.rpartition("/")[2]
    torch.save(models.resnet50().state_dict(), weights / name)
    model = home / "hf/hub/models--johngiorgi--declutr-sci-base"
    save_roberta(model / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    return home


def test_the_train_clip_command(cache: Path, pairs_folder: Path, tmp_path: Path) -> None:
    """Without names of models it uses those of train-CLIP's script."""
    trained = finetune(pairs_folder, tmp_path, "--max_steps", "1", cache=cache)
    assert trained.returncode == 0, trained.stderr
    assert f"lakeclip finetune --folder {pairs_folder} --batch-size 4" in trained.stdout
    assert list(tmp_path.glob("runs/*/checkpoints/last.ckpt"))


def test_towers_by_name(pairs_folder: Path, tmp_path: Path) -> None:
    """The image tower is one of lakeclip's, the text tower a model saved in a folder."""
    save_roberta(tmp_path / "words")
    more = ("--image_encoder", "lakeclip:ViT-Ti/4-32px", "--image_size", "32", "--text_encoder", f"hf:{tmp_path}/words")
    trained = finetune(pairs_folder, tmp_path, *more, "--max_steps", "1", "--minibatch_size", "3")
    assert trained.returncode == 0, trained.stderr
    assert list(tmp_path.glob("runs/*/checkpoints/last.ckpt"))


def test_missing_towers_are_refused(pairs_folder: Path, tmp_path: Path) -> None:
    refused = finetune(pairs_folder, tmp_path, cache=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "declutr-sci-base" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "--text_encoder" in refused.stderr or "hf:" in refused.stderr
