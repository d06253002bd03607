"""Gallery of retrieval examples: hits, ranks, matching, and thumbnails."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import DataError
from lakeclip.report.gallery import NUM_HITS, retrieval_gallery, thumbnail
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.fixtures import MemorySource, scenery, tiny_clip

TOKENIZE, TRANSFORM = Tokenizer(24), EvalTransform(32)


def encoded(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_queries_in_both_directions() -> None:
    source = scenery(40, "train")
    gallery = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source, 3, num_images=2)
    assert (len(gallery.captions), len(gallery.images)) == (3, 2)
    captions = {caption for sample in source.samples for caption in sample.captions}
    for query in gallery.captions:
        assert query.caption in captions
        assert len(query.hits) == NUM_HITS
        assert query.num_candidates == 40
        assert [hit.similarity for hit in query.hits] == sorted((hit.similarity for hit in query.hits), reverse=True)
        for hit in query.hits:
            assert hit.is_right == (query.caption in hit.picture.caption.split(" · "))
    for query in gallery.images:
        own_captions = query.picture.caption.split(" · ")
        assert query.num_candidates == len(captions)
        for hit in query.hits:
            assert hit.is_right == (hit.text in own_captions)


def test_rank_agrees_with_the_hits() -> None:
    gallery = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, scenery(30, "train"), 30, num_images=30)
    for query in (*gallery.captions, *gallery.images):
        ranks = [rank for rank, hit in enumerate(query.hits, start=1) if hit.is_right]
        assert query.rank == ranks[0] if ranks else query.rank > NUM_HITS


def test_images_with_equal_captions_all_match() -> None:
    source = MemorySource([sample._replace(captions=("a shape",)) for sample in scenery(12).samples])
    gallery = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source)
    assert [query.caption for query in gallery.captions] == ["a shape"]
    assert all(hit.is_right for hit in gallery.captions[0].hits)
    assert gallery.captions[0].rank == 1


def test_match_column_shares_captions_of_equal_values() -> None:
    source = scenery(24)
    plain = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source, 20)
    matched = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source, 20, match_column="label")
    label_of = {caption: sample.metadata["label"] for sample in source.samples for caption in sample.captions}
    named = {name for name in label_of.values() if sum(str(name) in caption for caption in label_of) > 0}
    assert len(named) == 8
    right = 0
    for before, after in zip(plain.captions, matched.captions, strict=True):
        assert before.caption == after.caption
        label = str(label_of[after.caption])
        assert [hit.is_right for hit in after.hits] == [label in hit.picture.caption for hit in after.hits]
        right += sum(hit.is_right for hit in after.hits) - sum(hit.is_right for hit in before.hits)
    assert right > 0


def test_same_seed_draws_the_same_queries() -> None:
    model, source = tiny_clip(), scenery(30, "train")
    first, again = (retrieval_gallery(model, TOKENIZE, TRANSFORM, source, seed=1) for _ in range(2))
    other = retrieval_gallery(model, TOKENIZE, TRANSFORM, source, seed=2)
    assert [q.caption for q in first.captions] == [q.caption for q in again.captions]
    assert [q.caption for q in first.captions] != [q.caption for q in other.captions]


def test_requested_positions_only() -> None:
    source = scenery(20)
    gallery = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source, 50, positions=[1, 3, 5, 7])
    assert {query.num_candidates for query in gallery.captions} == {4}
    expected = {caption for i in (1, 3, 5, 7) for caption in source.samples[i].captions}
    assert {query.caption for query in gallery.captions} == expected


def test_images_without_captions_are_candidates_only() -> None:
    samples = scenery(8).samples
    samples[2:] = [sample._replace(captions=()) for sample in samples[2:]]
    gallery = retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, MemorySource(samples))
    assert len(gallery.images) == 2
    assert gallery.captions[0].num_candidates == 8


def test_sources_without_captions_are_rejected() -> None:
    source = MemorySource([sample._replace(captions=()) for sample in scenery(3).samples])
    with pytest.raises(DataError, match="no captions"):
        retrieval_gallery(tiny_clip(), TOKENIZE, TRANSFORM, source)


@pytest.mark.parametrize(
    ("size", "shown", "kind"), [((64, 48), (64, 48), "PNG"), ((800, 400), (192, 96), "JPEG"), ((1, 5), (1, 5), "PNG")]
)
def test_thumbnails(size: tuple[int, int], shown: tuple[int, int], kind: str) -> None:
    picture = thumbnail(encoded(*size), "a caption")
    image = Image.open(io.BytesIO(picture.data))
    assert (image.size, image.format) == (shown, kind)
    assert picture.media_type == f"image/{kind.lower()}"


def test_small_images_keep_their_pixels() -> None:
    data = scenery(1).samples[0].image
    kept = np.asarray(Image.open(io.BytesIO(thumbnail(data, "").data))).astype(int)
    assert np.abs(kept - np.asarray(Image.open(io.BytesIO(data))).astype(int)).max() <= 8
