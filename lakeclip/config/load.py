"""Recipes: YAML files checked strictly against the dataclasses of `schema.py`, and written back with a run."""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import ConfigError
from lakeclip.files import whole_file

#: A schema: what a verb is configured by.
Config = TypeVar("Config", TrainConfig, FinetuneConfig)

#: Wrong settings that an error names.
_MOST_PROBLEMS = 30
#: How it shows their values: lists within lists within lists may have more ends than memory has bytes.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: plain PyYAML reads `5e-4` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
# Order matters in PyYAML: whatever matched int before must still be an int.
for _char, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _resolvers.sort(key=lambda item: item[0] == "tag:yaml.org,2002:float")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 – a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}", found=error.strerror or str(error)) from None
    # PyYAML lets through what its constructors raise: a date in month 13, nesting without end.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML", found=" ".join(str(error).split())) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold settings", found=type(content).__name__, allowed="`name: value` lines")
    return content


def recipes_folder() -> Path:
    """Where the shipped recipes are: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    return inside if (inside := package / "recipes").is_dir() else package.parent / "recipes"


def read_recipe(recipe: str | Path, kind: type[Config] = TrainConfig) -> Config:  # type: ignore[assignment]
    """The configuration in a recipe: a YAML file, or the name of one that is shipped.

    Raises:
        ConfigError: no such recipe, or it has unknown keys or wrong values; all of them are named at once.
    """
    path = Path(recipe)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        path = recipes_folder() / f"{recipe}.yaml"
    if not path.exists():
        shipped = sorted(file.stem for file in recipes_folder().glob("*.yaml"))
        raise ConfigError(f"there is no recipe {str(recipe)!r}", allowed=f"a YAML file, or one of {', '.join(shipped)}")
    return config_from_dict(read_yaml(path), where=str(path), kind=kind)


def config_from_dict(
    values: dict[str, Any],
    *,
    where: str,
    kind: type[Config] = TrainConfig,  # type: ignore[assignment]
) -> Config:
    """Check nested settings, as `config_to_dict` makes them, against the schema.

    Args:
        where: what to call their origin in an error.
        kind: the schema.

    Raises:
        ConfigError: with every unknown key and wrong value, each by its path.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [_explain(problem, kind) for problem in problems[:_MOST_PROBLEMS]]
        lines += [f"… and {len(problems) - _MOST_PROBLEMS:,} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ConfigError(f"{where} has settings that cannot be used", found="\n           ".join(lines)) from None


def _explain(problem: Any, kind: type[Config]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        section: Any = kind()
        for part in problem["loc"][:-1]:
            section = getattr(section, str(part), None)
        names = [field.name for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else []
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        return f"{path}: no such setting" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}")
    return f"{path}: {problem['msg']}, not {_REPR.repr(problem['input'])}"


def config_to_dict(config: TrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Nested plain values, as saved with a run and inside its checkpoints."""
    plain: dict[str, Any] = dataclasses.asdict(config)
    if plain["optimizer"]["betas"] is not None:
        plain["optimizer"]["betas"] = list(plain["optimizer"]["betas"])
    return plain


def write_config(config: TrainConfig | FinetuneConfig, path: Path) -> None:
    """Write a configuration as a recipe that `read_recipe` reads back equal: whole, or not at all."""
    with whole_file(path) as file:
        file.write(yaml.safe_dump(config_to_dict(config), sort_keys=False).encode())
