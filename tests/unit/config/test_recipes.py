"""Tests of the shipped recipes, read as a run reads them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import tyro

from lakeclip.cli.finetune import FinetuneFlags
from lakeclip.cli.train import TrainFlags
from lakeclip.config.load import read_recipe, recipes_folder
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import ConfigError
from lakeclip.models.zoo import model_config

SHIPPED = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
NAMES = [name for name in SHIPPED if not name.startswith("finetune-")]
FINETUNE = [name for name in SHIPPED if name not in NAMES]
#: Recipe → number of pairs in its data set, and the global batch size in its comments.
SIZES = {"small": (2_000, 128), "flickr": (8_000, 128), "cc3m": (3e6, 1024), "cc12m": (12e6, 2048)} | {
    "laion400m": (400e6, 32_768)
}


def test_every_recipe_has_a_size_in_this_test() -> None:
    assert sorted([*SIZES, "demo"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_read_by_name(name: str) -> None:
    config = read_recipe(name)
    assert model_config(config.model).embed_dim > 0
    assert config.data.lake is None, "the data is the user's"
    assert config.data.folder is None


@pytest.mark.parametrize("name", NAMES)
def test_flags_override_the_recipe(name: str) -> None:
    """Check the precedence default < recipe < flag."""
    flags = tyro.cli(
        TrainFlags,
        args=["--lake", "my.lake", "--batch-size", "7"],
        default=TrainFlags(recipe=name, config=read_recipe(name)),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    data = dataclasses.replace(read_recipe(name).data, lake="my.lake", batch_size=7)
    assert flags.config == dataclasses.replace(read_recipe(name), data=data)


@pytest.mark.parametrize("name", SIZES)
def test_batch_size_and_validation_rows_fit_the_data(name: str) -> None:
    config, (pairs, batch) = read_recipe(name), SIZES[name]
    trainer, data = config.trainer, config.data
    assert data.batch_size * (trainer.devices or 1) * trainer.num_nodes == batch
    assert f"{batch:,}" in (recipes_folder() / f"{name}.yaml").read_text() or trainer.devices is None
    held_out = pairs * data.val_fraction
    assert 100 <= held_out <= 2 * data.max_val_rows, "enough to score, and not many more than are scored"
    assert (pairs - held_out) // batch >= 10, "an epoch has steps"


def test_the_largest_recipe_is_the_papers() -> None:
    """Compare with Radford et al. 2021, section 2.5."""
    config = read_recipe("laion400m")
    assert config.optimizer == dataclasses.replace(TrainConfig().optimizer, warmup_steps=2000, weight_decay=0.2)
    assert config.trainer.max_epochs == 32
    assert config.optimizer.lr is None, "so that each model uses its own"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_explains_itself(name: str) -> None:
    head = re.match(r"(#.*\n)+", (recipes_folder() / f"{name}.yaml").read_text())
    assert head is not None, "a recipe opens with a comment"
    if name != "demo":
        for words in (f"lakeclip train --recipe {name}", "Why", "What to expect"):
            assert words in head[0], words


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_recipes_are_read_and_explain_themselves(name: str) -> None:
    config = read_recipe(name, FinetuneConfig)
    assert (config.data.lake, config.data.folder, config.start) == (None, None, None), (
        "the data and the start are the user's"
    )
    text = (recipes_folder() / f"{name}.yaml").read_text()
    for words in (f"lakeclip finetune --recipe {name}", "Why", "What to expect", "Verified"):
        assert words in text, words
    with pytest.raises(ConfigError, match="invalid settings"):
        read_recipe(name)


def test_the_help_lists_the_shipped_recipes() -> None:
    import inspect

    # The demo recipe is used only by `lakeclip demo`.
    for flags, names in ((TrainFlags, list(SIZES)), (FinetuneFlags, FINETUNE)):
        listed = re.search(r"the name of a shipped one \(([^)]*)\)", inspect.getsource(flags))
        assert listed is not None
        assert sorted(re.split(r",\s+", listed[1])) == sorted(names)


def test_a_wheel_contains_the_recipes() -> None:
    """Check that the build copies the recipes into the package; in a checkout they are beside it."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'recipes = "lakeclip/recipes"' in text
