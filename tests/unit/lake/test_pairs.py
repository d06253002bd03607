"""Tests of opening a configuration's source (lake, mixture, folder) and of its description."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lakeclip.config.schema import DataConfig
from lakeclip.data.plan import MixturePlan, make_plans
from lakeclip.errors import ConfigError, LakeError
from lakeclip.ingestion.mark_unusable import mark_unusable
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import Lake
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.mixture import LakeMixture, parse_share
from lakeclip.lake.pairs import describe, open_pairs
from tests.unit.lake.sample_files import picture, sample, write_files


def lake(path: Path, count: int, **metadata: object) -> Path:
    with LakeWriter(str(path)) as writer:
        for i in range(count):
            words = (f"{path.name} {i}",)
            writer.append(sample(i, words, n=i, **metadata), ImageInfo("jpeg", 24, 16))
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.lake", ("a.lake", None)),
        ("a.lake:0.7", ("a.lake", 0.7)),
        ("s3://bucket/a:2", ("s3://bucket/a", 2.0)),
        ("hub://org/name", ("hub://org/name", None)),
        ("a:b", ("a:b", None)),
    ],
)
def test_a_share_follows_a_colon(name: str, expected: tuple[str, float | None]) -> None:
    assert parse_share(name) == expected


@pytest.mark.parametrize("name", ["a:0", "a:-1", "a:inf", "a:nan"])
def test_a_share_is_above_0(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        parse_share(name)


def test_a_mixture_of_lakes_with_shares(tmp_path: Path) -> None:
    a, b = lake(tmp_path / "a", 30), lake(tmp_path / "b", 10, extra=1)
    source = open_pairs(DataConfig(lake=f"{a}:0.75 + {b}:0.25", query="n != 3"))
    assert isinstance(source, LakeMixture)
    assert len(source) == 29 + 9
    assert source.shares == [0.75, 0.25]
    assert "extra" not in source.columns
    rows = pickle.loads(pickle.dumps(source)).read([0, 29, 37, 3])
    assert [row.captions[0] for row in rows] == ["a 0", "b 0", "b 9", "a 4"]
    assert [source.locate(row.row) for row in rows] == [(str(a), 0), (str(b), 0), (str(b), 9), (str(a), 4)]
    assert source[29]["text"] == "b 0"
    assert source.column("n")[29:31] == [0, 1]
    plan, held = make_plans(source, 0.2, seed=0, shuffle=True)
    assert isinstance(plan, MixturePlan)
    assert len(held) + plan.num_rows == 38
    description = describe(source)
    assert f"{a}: 29 of 30 rows by 'n != 3', 75.0% of every batch" in description
    assert "row 9: b 9" in description
    assert len(description.splitlines()) == 2 * (1 + 5)


def test_lakes_without_shares_are_mixed_by_size(tmp_path: Path) -> None:
    a, b = lake(tmp_path / "a", 30), lake(tmp_path / "b", 10)
    source = open_pairs(DataConfig(lake=f"{a} + {b}"))
    assert isinstance(source, LakeMixture)
    assert source.shares == [30, 10]
    for wrong in (f"{a}:0.5", f"{a}:0.5 + {b}"):
        with pytest.raises(ConfigError, match="shares of the mixture are inconsistent"):
            open_pairs(DataConfig(lake=wrong))


def test_weights_come_from_a_column_or_an_expression(tmp_path: Path) -> None:
    path = str(lake(tmp_path / "a", 10))
    for weights, query, expected in (("n", None, range(10)), ("n * 2 + 1", "n > 6", [15, 17, 19])):
        source = open_pairs(DataConfig(lake=path, weights=weights, query=query))
        assert isinstance(source, Lake)
        assert source.weights is not None
        assert source.weights.tolist() == list(expected)
        assert pickle.loads(pickle.dumps(source)).weights is None, "the weights are needed only in the main process"
    wrong = {"text": "cannot be used", "hight": "did you mean height", "n - 5": "negative", "n * 0": "0 for"}
    for weights, found in wrong.items():
        with pytest.raises(LakeError) as error:
            open_pairs(DataConfig(lake=path, weights=weights))
        assert found in str(error.value)


def test_a_folder_has_no_columns(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "f", {"a.jpg": picture(), "a.txt": "a cat"})
    assert "1 pairs" in describe(open_pairs(DataConfig(folder=str(folder))))
    for setting in ({"query": "n > 1"}, {"weights": "n"}, {"filter_nsfw": True}, {"caption_template": "{n}"}):
        with pytest.raises(ConfigError, match="a folder of pairs has no columns"):
            open_pairs(DataConfig(folder=str(folder), **setting))


def test_rows_marked_as_unusable_are_excluded(tmp_path: Path) -> None:
    path = str(lake(tmp_path / "a", 10))
    before = open_pairs(DataConfig(lake=path))
    assert mark_unusable(path, {3: "broken image", 7: "no caption"}) == 2
    assert mark_unusable(path, {3: "again", 8: "more"}) == 1
    after = open_pairs(DataConfig(lake=path))
    assert after.column("n") == [0, 1, 2, 4, 5, 6, 9]
    assert len(before.read(range(10))) == 10, "a source that was opened before still reads its own version"
    with pytest.raises(LakeError, match="cannot mark rows"):
        mark_unusable(path, {10: "there is no such row"})
