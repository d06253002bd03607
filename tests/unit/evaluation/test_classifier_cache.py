"""Classifiers on the disk: the second evaluation encodes nothing, and what changes anything misses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lakeclip.evaluation.classifier import classifier_weights
from lakeclip.evaluation.remembered import FEWEST_SENTENCES, RememberedClassifiers, remembered_classifiers
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import CLIPText, DualEncoder
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.scenery import tiny_clip

CLASSES = [f"thing {number}" for number in range(FEWEST_SENTENCES // 2)]
TEMPLATES = ["a photo of a {}.", "art of the {}."]


class Counting:
    """A tokenizer that counts how many texts it was given."""

    def __init__(self, context_length: int = 24) -> None:
        self.inner = Tokenizer(context_length)
        self.fingerprint, self.context_length = self.inner.fingerprint, context_length
        self.num_texts = 0

    def __call__(self, texts: Iterable[str]) -> Tensor:
        texts = list(texts)
        self.num_texts += len(texts)
        return self.inner(texts)


def num_encoded(
    kept: RememberedClassifiers,
    model: CLIP | DualEncoder,
    classes: list[str] = CLASSES,
    templates: list[str] = TEMPLATES,
    tokenize: Counting | None = None,
) -> int:
    tokenize = tokenize or Counting()
    classifier_weights(model, tokenize, classes, templates, remembered=kept)
    return tokenize.num_texts


@pytest.fixture
def kept(tmp_path: Path) -> RememberedClassifiers:
    return RememberedClassifiers(tmp_path / "classifiers")


def test_the_second_time_nothing_is_encoded_and_every_bit_is_the_same(kept: RememberedClassifiers) -> None:
    model = tiny_clip()
    plain = classifier_weights(model, Counting(), CLASSES, TEMPLATES)
    first = classifier_weights(model, Counting(), CLASSES, TEMPLATES, remembered=kept)
    again = Counting()
    second = classifier_weights(tiny_clip(), again, CLASSES, TEMPLATES, remembered=kept)
    assert again.num_texts == 0
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_what_changes_the_features_misses(kept: RememberedClassifiers) -> None:
    model = tiny_clip()
    everything = len(CLASSES) * len(TEMPLATES)
    assert num_encoded(kept, model) == everything
    assert num_encoded(kept, model) == 0
    assert num_encoded(kept, model, classes=[*CLASSES[:-1], "other"]) == everything
    assert num_encoded(kept, model, classes=CLASSES[::-1]) == everything
    assert num_encoded(kept, model, templates=[*TEMPLATES[:-1], "the {}"]) == everything
    assert num_encoded(kept, model, tokenize=Counting(20)) == everything
    other = Counting()
    other.fingerprint = "another vocabulary"
    assert num_encoded(kept, model, tokenize=other) == everything
    with torch.no_grad():
        model.positional_embedding[0, 0] += 1e-6
    assert num_encoded(kept, model) == everything
    assert num_encoded(kept, tiny_clip().to(torch.float64)) == everything


def test_what_does_not_change_the_texts_hits(kept: RememberedClassifiers) -> None:
    model = tiny_clip()
    num_encoded(kept, model)
    with torch.no_grad():
        model.logit_scale += 1
        next(model.visual.parameters()).add_(1)
    assert num_encoded(kept, model) == 0


def test_another_arithmetic_misses(kept: RememberedClassifiers) -> None:
    model = tiny_clip()
    num_encoded(kept, model)
    with torch.autocast("cpu", torch.bfloat16):
        assert num_encoded(kept, model) > 0


def test_two_towers_are_told_apart_by_how_they_are_put_together(kept: RememberedClassifiers) -> None:
    images = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten())
    towers = DualEncoder(images, CLIPText(tiny_clip()), embed_dim=16, image_size=32)
    assert num_encoded(kept, towers) > 0
    assert num_encoded(kept, towers) == 0
    with torch.no_grad():
        next(towers.image_projection.parameters()).add_(1)
    assert num_encoded(kept, towers) == 0
    with torch.no_grad():
        next(towers.text_encoder.parameters()).add_(1)
    assert num_encoded(kept, towers) > 0


@pytest.mark.parametrize("damage", ["cut", "a bit", "empty", "another file"])
def test_a_damaged_file_is_replaced(kept: RememberedClassifiers, damage: str) -> None:
    model = tiny_clip()
    wanted = classifier_weights(model, Counting(), CLASSES, TEMPLATES, remembered=kept)
    (file,) = kept.folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[-1] ^= 1
    file.write_bytes({"cut": content[:-40], "empty": b"", "another file": b"{}" * 100}.get(damage, bytes(content)))
    tokenize = Counting()
    found = classifier_weights(model, tokenize, CLASSES, TEMPLATES, remembered=kept)
    assert tokenize.num_texts > 0
    assert torch.equal(found, wanted)
    assert num_encoded(kept, model) == 0


def test_few_sentences_and_strange_tokenizers_are_not_worth_it(kept: RememberedClassifiers) -> None:
    model = tiny_clip()
    assert num_encoded(kept, model, classes=CLASSES[:-1]) > 0
    assert num_encoded(kept, model, classes=CLASSES[:-1]) > 0
    classifier_weights(model, lambda texts: Tokenizer(24)(texts), CLASSES, TEMPLATES, remembered=kept)
    assert not kept.folder.exists()


def test_the_folder_stays_small_and_what_was_used_last_stays(tmp_path: Path) -> None:
    weights = torch.zeros(16, 16)
    RememberedClassifiers(tmp_path).store("a", weights)
    size = (tmp_path / "a.safetensors").stat().st_size
    kept = RememberedClassifiers(tmp_path, most_bytes=3 * size)
    for age, key in enumerate("abc"):
        kept.store(key, weights)
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    assert kept.load("a") is not None  # the oldest, used again
    kept.store("d", weights)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    assert kept.load("b") is None


def test_many_writers_at_once_leave_one_whole_file(kept: RememberedClassifiers) -> None:
    weights = torch.randn(64, 64)
    found: list[Tensor | None] = []

    def work() -> None:
        for _ in range(20):
            kept.store("key", weights)
            found.append(kept.load("key"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one is not None and torch.equal(one, weights) for one in found)
    assert [path.name for path in kept.folder.iterdir()] == ["key.safetensors"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert num_encoded(RememberedClassifiers(tmp_path / "file" / "classifiers"), tiny_clip()) > 0


def test_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path))
    monkeypatch.delenv("LAKECLIP_CACHE_GB", raising=False)
    found = remembered_classifiers()
    assert found is not None
    assert found.folder == tmp_path / "classifiers"
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0.001")
    limited = remembered_classifiers()
    assert limited is not None
    assert limited.most_bytes == 1_000_000
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0")
    assert remembered_classifiers() is None
