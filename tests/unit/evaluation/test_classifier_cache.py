"""Classifier cache: a second evaluation encodes nothing, and every change of the inputs is a miss."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lakeclip.evaluation.classifier import classifier_weights
from lakeclip.evaluation.classifier_cache import MIN_PROMPTS, ClassifierCache, default_classifier_cache
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import CLIPText, DualEncoder
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.fixtures import tiny_clip

CLASSES = [f"thing {number}" for number in range(MIN_PROMPTS // 2)]
TEMPLATES = ["a photo of a {}.", "art of the {}."]


class CountingTokenizer:
    """A tokenizer that counts the texts it has tokenized."""

    def __init__(self, context_length: int = 24) -> None:
        self.inner = Tokenizer(context_length)
        self.fingerprint, self.context_length = self.inner.fingerprint, context_length
        self.num_texts = 0

    def __call__(self, texts: Iterable[str]) -> Tensor:
        texts = list(texts)
        self.num_texts += len(texts)
        return self.inner(texts)


def num_encoded(
    cache: ClassifierCache,
    model: CLIP | DualEncoder,
    classes: list[str] = CLASSES,
    templates: list[str] = TEMPLATES,
    tokenize: CountingTokenizer | None = None,
) -> int:
    tokenize = tokenize or CountingTokenizer()
    classifier_weights(model, tokenize, classes, templates, cache=cache)
    return tokenize.num_texts


@pytest.fixture
def cache(tmp_path: Path) -> ClassifierCache:
    return ClassifierCache(tmp_path / "classifiers")


def test_second_evaluation_encodes_nothing_and_is_bit_identical(cache: ClassifierCache) -> None:
    model = tiny_clip()
    plain = classifier_weights(model, CountingTokenizer(), CLASSES, TEMPLATES)
    first = classifier_weights(model, CountingTokenizer(), CLASSES, TEMPLATES, cache=cache)
    again = CountingTokenizer()
    second = classifier_weights(tiny_clip(), again, CLASSES, TEMPLATES, cache=cache)
    assert again.num_texts == 0
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_changed_inputs_are_a_miss(cache: ClassifierCache) -> None:
    model = tiny_clip()
    everything = len(CLASSES) * len(TEMPLATES)
    assert num_encoded(cache, model) == everything
    assert num_encoded(cache, model) == 0
    assert num_encoded(cache, model, classes=[*CLASSES[:-1], "other"]) == everything
    assert num_encoded(cache, model, classes=CLASSES[::-1]) == everything
    assert num_encoded(cache, model, templates=[*TEMPLATES[:-1], "the {}"]) == everything
    assert num_encoded(cache, model, tokenize=CountingTokenizer(20)) == everything
    other = CountingTokenizer()
    other.fingerprint = "another vocabulary"
    assert num_encoded(cache, model, tokenize=other) == everything
    with torch.no_grad():
        model.positional_embedding[0, 0] += 1e-6
    assert num_encoded(cache, model) == everything
    assert num_encoded(cache, tiny_clip().to(torch.float64)) == everything


def test_changes_outside_the_text_tower_are_a_hit(cache: ClassifierCache) -> None:
    model = tiny_clip()
    num_encoded(cache, model)
    with torch.no_grad():
        model.logit_scale += 1
        next(model.visual.parameters()).add_(1)
    assert num_encoded(cache, model) == 0


def test_another_arithmetic_is_a_miss(cache: ClassifierCache) -> None:
    model = tiny_clip()
    num_encoded(cache, model)
    with torch.autocast("cpu", torch.bfloat16):
        assert num_encoded(cache, model) > 0


def test_dual_encoder_key_depends_on_the_text_tower_only(cache: ClassifierCache) -> None:
    images = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten())
    towers = DualEncoder(images, CLIPText(tiny_clip()), embed_dim=16, image_size=32)
    assert num_encoded(cache, towers) > 0
    assert num_encoded(cache, towers) == 0
    with torch.no_grad():
        next(towers.image_projection.parameters()).add_(1)
    assert num_encoded(cache, towers) == 0
    with torch.no_grad():
        next(towers.text_encoder.parameters()).add_(1)
    assert num_encoded(cache, towers) > 0


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "another file"])
def test_a_damaged_file_is_replaced(cache: ClassifierCache, damage: str) -> None:
    model = tiny_clip()
    expected = classifier_weights(model, CountingTokenizer(), CLASSES, TEMPLATES, cache=cache)
    (file,) = cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[-1] ^= 1
    file.write_bytes(
        {"truncated": content[:-40], "empty": b"", "another file": b"{}" * 100}.get(damage, bytes(content))
    )
    tokenize = CountingTokenizer()
    loaded = classifier_weights(model, tokenize, CLASSES, TEMPLATES, cache=cache)
    assert tokenize.num_texts > 0
    assert torch.equal(loaded, expected)
    assert num_encoded(cache, model) == 0


def test_few_prompts_and_tokenizers_without_fingerprint_are_not_cached(cache: ClassifierCache) -> None:
    model = tiny_clip()
    assert num_encoded(cache, model, classes=CLASSES[:-1]) > 0
    assert num_encoded(cache, model, classes=CLASSES[:-1]) > 0
    classifier_weights(model, lambda texts: Tokenizer(24)(texts), CLASSES, TEMPLATES, cache=cache)
    assert not cache.folder.exists()


def test_least_recently_used_files_are_evicted(tmp_path: Path) -> None:
    weights = torch.zeros(16, 16)
    ClassifierCache(tmp_path).store("a", weights)
    size = (tmp_path / "a.safetensors").stat().st_size
    cache = ClassifierCache(tmp_path, max_bytes=3 * size + size // 2)
    for age, key in enumerate("abc"):
        cache.store(key, weights)
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    assert cache.load("a") is not None  # the oldest file, used again
    cache.store("d", weights)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    assert cache.load("b") is None


def test_concurrent_writers_leave_one_complete_file(cache: ClassifierCache) -> None:
    weights = torch.randn(64, 64)
    loaded: list[Tensor | None] = []

    def work() -> None:
        for _ in range(20):
            cache.store("key", weights)
            loaded.append(cache.load("key"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(item is not None and torch.equal(item, weights) for item in loaded)
    assert [path.name for path in cache.folder.iterdir()] == ["key.safetensors"]


def test_unwritable_folder_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert num_encoded(ClassifierCache(tmp_path / "file" / "classifiers"), tiny_clip()) > 0


def test_default_folder_and_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path))
    monkeypatch.delenv("LAKECLIP_CACHE_GB", raising=False)
    default = default_classifier_cache()
    assert default is not None
    assert default.folder == tmp_path / "classifiers"
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0.001")
    limited = default_classifier_cache()
    assert limited is not None
    assert limited.max_bytes == 1_000_000
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0")
    assert default_classifier_cache() is None
