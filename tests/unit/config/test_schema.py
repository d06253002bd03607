"""Tests of the configuration's limits: impossible values raise when the configuration is created."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lakeclip.config.schema import DataConfig, FinetuneConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"batch_size": [0, -1], "val_fraction": [-0.1, 1.0, 2.0], "max_val_rows": [0]}),
        (DataConfig, {"resize_ratio": [0.0, -1.0, 1.1], "num_workers": [-1], "image_size": [0, -224]}),
        (OptimizerConfig, {"lr": [0.0, -1e-3, float("nan")], "weight_decay": [-0.1], "warmup_steps": [-1]}),
        (OptimizerConfig, {"eps": [0.0, -1e-8], "betas": [(0.9, 1.0), (-0.1, 0.9)]}),
        (TrainerConfig, {name: [0, -1] for name in ("max_epochs", "max_steps", "minibatch_size", "devices")}),
        (TrainerConfig, {"num_nodes": [0], "val_every_steps": [0]}),
    ],
)
def test_impossible_values_raise(section: type[Any], values: dict[str, list[Any]]) -> None:
    for name, impossible in values.items():
        for value in impossible:
            with pytest.raises(ConfigError) as caught:
                section(**{name: value})
            assert f"{name} cannot be {value}" in caught.value.what
            assert caught.value.allowed


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"batch_size": 1, "val_fraction": 0.0, "resize_ratio": 1.0, "num_workers": 0, "image_size": 1}),
        (OptimizerConfig, {"weight_decay": 0.0, "warmup_steps": 0, "betas": (0.0, 0.0)}),
        (TrainerConfig, {"max_epochs": 1, "max_steps": 1, "minibatch_size": 1, "devices": 1}),
    ],
)
def test_boundary_values_are_accepted(section: type[Any], values: dict[str, Any]) -> None:
    section(**values)


def test_the_defaults_are_the_papers() -> None:
    """Compare with Radford et al. 2021, section 2.5; settings that depend on the model are None."""
    config = TrainConfig()
    assert config.optimizer == OptimizerConfig(None, None, None, weight_decay=0.2, warmup_steps=None)
    assert config.trainer.max_epochs == 32


@pytest.mark.parametrize("config", [TrainConfig(), FinetuneConfig()])
def test_every_setting_has_a_help_text(config: Any) -> None:
    """Require a docstring below every field, from which tyro makes the help."""
    import inspect

    for section in (config, config.data, config.trainer):
        lines = inspect.getsource(type(section)).splitlines()
        for field in dataclasses.fields(section):
            if not dataclasses.is_dataclass(getattr(section, field.name)):
                index = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
                assert lines[index + 1].strip().startswith('"""'), f"{type(section).__name__}.{field.name}"


def test_no_two_flags_share_a_name() -> None:
    """Require unique names, because flags omit their section: `--lr`, not `--optimizer.lr`."""
    for config in (TrainConfig(), FinetuneConfig()):
        names = [
            field.name
            for section in (config, *vars(config).values())
            if dataclasses.is_dataclass(section)
            for field in dataclasses.fields(section)
        ]
        assert len(names) == len(set(names))


def test_configurations_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().model = "RN50"  # type: ignore[misc]
