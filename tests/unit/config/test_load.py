"""Recipes: read strictly, every mistake named by its path, and written so that they read back equal."""

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


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe(folder, text))
    return caught.value


# ── what is read ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_recipe_leaves_open_is_the_default(tmp_path: Path) -> None:
    config = read_recipe(recipe(tmp_path, "model: RN50\ndata:\n  batch_size: 64\n"))
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
def test_numbers_are_yaml_1_2_s(written: str, read: object, tmp_path: Path) -> None:
    """Plain PyYAML reads `5e-4` as a string, and training at "5e-4" fails long after the recipe was read."""
    value = read_yaml(recipe(tmp_path, f"value: {written}"))["value"]
    assert value == read
    assert type(value) is type(read)


def test_other_users_of_pyyaml_see_no_change() -> None:
    assert yaml.safe_load("value: 5e-4") == {"value": "5e-4"}


def test_lists_in_a_recipe_become_the_tuples_of_the_configuration(tmp_path: Path) -> None:
    assert read_recipe(recipe(tmp_path, "optimizer: {betas: [0.9, 0.98]}")).optimizer.betas == (0.9, 0.98)


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_mistake_is_named_at_once_with_its_path(tmp_path: Path) -> None:
    error = mistake(tmp_path, "modle: RN50\ndata: {batchsize: 3}\noptimizer: {lr: fast}\ntrainer: {max_epochs: 1.5}")
    assert str(tmp_path / "recipe.yaml") in error.what
    assert "modle: no such setting; did you mean model?" in error.found
    assert "data.batchsize: no such setting; did you mean batch_size?" in error.found
    assert "optimizer.lr: " in error.found
    assert "'fast'" in error.found
    assert "trainer.max_epochs: " in error.found


def test_a_key_like_no_other_gets_the_list_of_its_section(tmp_path: Path) -> None:
    error = mistake(tmp_path, "optimizer: {xyzzy: 1}")
    assert "optimizer.xyzzy: no such setting; known: lr, betas, eps, weight_decay, warmup_steps" in error.found


@pytest.mark.parametrize("text", ["trainer: {precision: fp8}", "trainer: {accelerator: gpus}"])
def test_a_value_that_is_none_of_the_choices_gets_the_choices(text: str, tmp_path: Path) -> None:
    assert "' or '" in mistake(tmp_path, text).found


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "does not hold settings"), ("- model", "does not hold settings"), ("model: [RN50", "is not valid YAML")],
)
def test_files_that_are_no_recipe(text: str, what: str, tmp_path: Path) -> None:
    error = mistake(tmp_path, text)
    assert str(tmp_path / "recipe.yaml") in error.what
    assert what in error.what


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_recipe(tmp_path)


def test_a_recipe_that_is_not_there_gets_the_names_of_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("cc13m")
    assert "cc12m" in caught.value.allowed
    assert "small" in caught.value.allowed
    with pytest.raises(ConfigError, match="there is no recipe"):
        read_recipe(tmp_path / "missing.yaml")


def test_a_recipe_cannot_run_code(tmp_path: Path) -> None:
    mistake(tmp_path, "model: !!python/object/apply:os.system ['true']")


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────

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
def test_a_configuration_survives_being_written_and_read(
    config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    write_config(config, path)
    assert read_recipe(path) == config
    assert config_from_dict(config_to_dict(config), where="a checkpoint") == config


# ── recipes that were made to do harm ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "model: !!python/name:os.system",
        "model: !!python/object/new:os.popen ['touch ran']",
    ],
)
def test_a_recipe_runs_nothing(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not valid YAML" in str(mistake(tmp_path, text))
    assert not (tmp_path / "ran").exists()


def test_aliases_of_aliases_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    """A billion laughs: in the file a few hundred bytes, as text 10 to the 30."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    tracemalloc.start()
    error = mistake(tmp_path, "\n".join([*lines, "model: *a29", "data: {lake: *a29, batch_size: *a29}"]))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert len(str(error)) < 20_000


def test_nesting_without_end_is_not_valid(tmp_path: Path) -> None:
    assert "not valid YAML" in str(mistake(tmp_path, "model: " + "[" * 50_000))
