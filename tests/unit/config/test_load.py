"""Tests of recipes: strict reading, errors with paths, and round trips."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.config.load import config_from_dict, config_to_dict, read_recipe, read_yaml, write_config
from lakeclip.config.schema import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.errors import ConfigError


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def recipe_error(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_recipe(write_recipe(folder, text))
    return caught.value


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_settings_have_their_defaults(tmp_path: Path) -> None:
    config = read_recipe(write_recipe(tmp_path, "model: RN50\ndata:\n  batch_size: 64\n"))
    assert config == TrainConfig(model="RN50", data=DataConfig(batch_size=64))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("5e-4", 5e-4),
        ("5.0e-4", 5e-4),
        ("5E-4", 5e-4),
        ("+1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2.5", -2.5),
        ("1", 1),
        ("0", 0),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        ("yes", True),
        ("null", None),
        ("RN50", "RN50"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("'5e-4'", "5e-4"),
    ],
)
def test_numbers_are_read_as_in_yaml_1_2(written: str, read: object, tmp_path: Path) -> None:
    """Guard against PyYAML's `5e-4`, a string, which would fail long after the recipe was read."""
    value = read_yaml(write_recipe(tmp_path, f"value: {written}"))["value"]
    assert value == read
    assert type(value) is type(read)


def test_pyyaml_itself_is_not_changed() -> None:
    assert yaml.safe_load("value: 5e-4") == {"value": "5e-4"}


def test_lists_are_converted_to_tuples(tmp_path: Path) -> None:
    assert read_recipe(write_recipe(tmp_path, "optimizer: {betas: [0.9, 0.98]}")).optimizer.betas == (0.9, 0.98)


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_error_lists_all_mistakes_with_their_paths(tmp_path: Path) -> None:
    error = recipe_error(
        tmp_path, "modle: RN50\ndata: {batchsize: 3}\noptimizer: {lr: fast}\ntrainer: {max_epochs: 1.5}"
    )
    assert str(tmp_path / "recipe.yaml") in error.what
    assert "modle: no such setting; did you mean model?" in error.found
    assert "data.batchsize: no such setting; did you mean batch_size?" in error.found
    assert "optimizer.lr: " in error.found
    assert "'fast'" in error.found
    assert "trainer.max_epochs: " in error.found


def test_the_error_for_an_unknown_key_lists_the_keys_of_its_section(tmp_path: Path) -> None:
    error = recipe_error(tmp_path, "optimizer: {xyzzy: 1}")
    assert "optimizer.xyzzy: no such setting; known: lr, betas, eps, weight_decay, warmup_steps" in error.found


@pytest.mark.parametrize("text", ["trainer: {precision: fp8}", "trainer: {accelerator: gpus}"])
def test_the_error_for_an_unknown_choice_lists_the_choices(text: str, tmp_path: Path) -> None:
    assert "' or '" in recipe_error(tmp_path, text).found


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "does not hold settings"), ("- model", "does not hold settings"), ("model: [RN50", "is not valid YAML")],
)
def test_files_without_settings_raise(text: str, what: str, tmp_path: Path) -> None:
    error = recipe_error(tmp_path, text)
    assert str(tmp_path / "recipe.yaml") in error.what
    assert what in error.what


def test_a_binary_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_recipe(path)


def test_a_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_recipe(tmp_path)


def test_the_error_for_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("cc13m")
    assert "cc12m" in caught.value.allowed
    assert "small" in caught.value.allowed
    with pytest.raises(ConfigError, match="there is no recipe"):
        read_recipe(tmp_path / "missing.yaml")


def test_a_recipe_cannot_run_code(tmp_path: Path) -> None:
    recipe_error(tmp_path, "model: !!python/object/apply:os.system ['true']")


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────

_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)

configs = st.builds(
    TrainConfig,
    model=_TEXTS,
    data=st.builds(
        DataConfig,
        lake=st.none() | _TEXTS,
        query=st.none() | _TEXTS,
        val_fraction=st.floats(0, 1, exclude_max=True),
        batch_size=st.integers(1, 10**6),
        shuffle=st.booleans(),
    ),
    optimizer=st.builds(
        OptimizerConfig,
        lr=st.none() | st.floats(1e-300, 1e3),
        betas=st.none() | st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    ),
    trainer=st.builds(
        TrainerConfig, max_steps=st.none() | st.integers(1), precision=st.sampled_from(["32", "16", "bf16"])
    ),
)


@given(config=configs)
def test_a_written_configuration_is_read_back_equal(
    config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    write_config(config, path)
    assert read_recipe(path) == config
    assert config_from_dict(config_to_dict(config), where="a checkpoint") == config


# ── malicious recipes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "model: !!python/name:os.system",
        "model: !!python/object/new:os.popen ['touch ran']",
    ],
)
def test_python_tags_are_not_executed(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not valid YAML" in str(recipe_error(tmp_path, text))
    assert not (tmp_path / "ran").exists()


def test_nested_aliases_raise_without_using_memory(tmp_path: Path) -> None:
    """Read a "billion laughs" file: a few hundred bytes that expand to 10³⁰."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    tracemalloc.start()
    error = recipe_error(tmp_path, "\n".join([*lines, "model: *a29", "data: {lake: *a29, batch_size: *a29}"]))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert len(str(error)) < 20_000


def test_nesting_that_is_too_deep_raises(tmp_path: Path) -> None:
    assert "not valid YAML" in str(recipe_error(tmp_path, "model: " + "[" * 50_000))
