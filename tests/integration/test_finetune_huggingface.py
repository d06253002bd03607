"""A model of Hugging Face, fine-tuned and exported again: transformers computes the features of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from lakeclip.checkpoints.layouts import load
from lakeclip.cli.app import main
from lakeclip.cli.finetune import run
from lakeclip.errors import LakeclipError
from lakeclip.models.clip import CLIP
from lakeclip.text.huggingface import FixedLengthTokenizer
from tests.unit.checkpoints.huggingface_models import (
    difference,
    write_clip,
    write_processor,
    write_siglip,
    write_word_tokenizer,
)

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "on", "the", "and")


def data(lake: Path, runs: Path) -> list[str]:
    return [
        *("--lake", str(lake), "--val-fraction", "0.1", "--batch-size", "16", "--num-workers", "0"),
        *("--runs", str(runs), "--name", "tuned", "--accelerator", "cpu", "--max-epochs", "1"),
    ]


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_from_hugging_face_and_back(write: Any, pairs_lake: Path, tmp_path: Path) -> None:
    write(tmp_path / "start", text={"eos_token_id": 2, "hidden_act": "gelu"}, vision={"hidden_act": "gelu"})
    write_word_tokenizer(tmp_path / "start", extra=WORDS)
    mean = [0.5, 0.4, 0.3]
    write_processor(tmp_path / "start", size={"height": 32, "width": 32}, do_center_crop=False, image_mean=mean)
    main(["finetune", "--from", f"huggingface:{tmp_path}/start", *data(pairs_lake, tmp_path), "--lr", "1e-4"])

    tuned, before = load(tmp_path / "tuned"), load(f"huggingface:{tmp_path}/start")
    assert isinstance(tuned.model, CLIP)
    assert isinstance(before.model, CLIP)
    assert tuned.model.config == before.model.config
    assert not torch.equal(tuned.model.visual.conv1.weight, before.model.visual.conv1.weight)
    assert isinstance(tuned.tokenize, FixedLengthTokenizer)
    assert torch.equal(tuned.tokenize(["a red circle"]), before.tokenize(["a red circle"]))
    assert tuned.transform.resize_mode == "squash"

    main(["export", "--checkpoint", str(tmp_path / "tuned"), "--to", "huggingface", "--out", str(tmp_path / "out")])
    theirs = AutoModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    captions = ["a red circle", "the blue square and a green triangle on a red circle and more of a dog"]
    image = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    inputs = processor(text=captions, images=image, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], tuned.tokenize(captions))
    assert difference(tuned.model, theirs, inputs["pixel_values"], inputs["input_ids"]) <= 1e-5
    with torch.no_grad():
        features = tuned.model.encode_image(tuned.transform(image)[None])
        torch.testing.assert_close(tuned.model.encode_image(inputs["pixel_values"]), features, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "more", [["--alpha", "0"], ["--lora-rank", "4"], ["--lock-image", "1", "--layer-decay", "0.8", "--targets", "none"]]
)
@pytest.mark.slow
def test_settings_of_a_model_with_the_sigmoid_objective(more: list[str], pairs_lake: Path, tmp_path: Path) -> None:
    write_siglip(tmp_path / "start", text={"eos_token_id": 2})
    write_word_tokenizer(tmp_path / "start", extra=WORDS)
    name = f"huggingface:{tmp_path}/start"
    main(["finetune", "--from", name, *data(pairs_lake, tmp_path), "--lr", "1e-3", *more])
    before, after = load(name).model.state_dict(), load(tmp_path / "tuned").model.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "transformer.resblocks.1.mlp.c_fc.weight" in changed
    assert ("visual.conv1.bias" in changed) == ("--alpha" in more)
    assert ("logit_bias" in changed) == ("--alpha" not in more)


def test_without_a_tokenizer_nothing_is_trained(pairs_lake: Path, tmp_path: Path) -> None:
    write_siglip(tmp_path / "start")
    with pytest.raises(LakeclipError, match="captions cannot be tokenized for the model in"):
        run(["--from", f"huggingface:{tmp_path}/start", *data(pairs_lake, tmp_path)])
    assert not (tmp_path / "tuned").exists()
