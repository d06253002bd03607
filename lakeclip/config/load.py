"""Reader and writer of recipes: YAML files that are checked strictly against the dataclasses of `schema.py`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import ConfigError
from lakeclip.files import atomic_write

#: The configuration class of a command.
Config = TypeVar("Config", TrainConfig, FinetuneConfig)

#: Number of wrong settings that an error lists.
_MAX_PROBLEMS = 30
#: Shortened representation of a wrong value: YAML aliases can make a small file expand to more than memory holds.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2


class _Loader(yaml.SafeLoader):
    """Loader that reads floats as YAML 1.2 does; PyYAML reads `5e-4` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
# PyYAML takes the first resolver that matches, so floats go last: what was an int must stay an int.
for _char, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _resolvers.sort(key=lambda item: item[0] == "tag:yaml.org,2002:float")


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes every text that `_Loader` would read as something else, such as a model named 1e5."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 – a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}", found=error.strerror or str(error)) from None
    # PyYAML does not wrap what its constructors raise: for a date in month 13, say, or nesting that is too deep.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML", found=" ".join(str(error).split())) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold settings", found=type(content).__name__, allowed="`name: value` lines")
    return content


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    return inside if (inside := package / "recipes").is_dir() else package.parent / "recipes"


def read_recipe(recipe: str | Path, kind: type[Config] = TrainConfig) -> Config:  # type: ignore[assignment]
    """Return the configuration in a recipe.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        kind: the configuration class.

    Raises:
        ConfigError: the recipe does not exist, or has unknown keys or wrong values; the error lists all of them.
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
    """Build a configuration from nested settings, as `config_to_dict` returns them.

    Args:
        where: name of their origin, for the error.
        kind: the configuration class.

    Raises:
        ConfigError: there are unknown keys or wrong values; the error lists all of them with their paths.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [_explain(problem, kind) for problem in problems[:_MAX_PROBLEMS]]
        lines += [f"… and {len(problems) - _MAX_PROBLEMS:,} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ConfigError(f"{where} has invalid settings", found="\n           ".join(lines)) from None


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
    """Convert a configuration to nested plain values, as saved with a run and in its checkpoints."""
    values: dict[str, Any] = dataclasses.asdict(config)
    if values["optimizer"]["betas"] is not None:
        values["optimizer"]["betas"] = list(values["optimizer"]["betas"])
    return values


def write_config(config: TrainConfig | FinetuneConfig, path: Path, *, history: Sequence[str] = ()) -> None:
    """Write a configuration atomically, as a recipe that `read_recipe` reads back equal.

    Args:
        history: lines about how the configuration came about, which are written as comments.
    """
    comments = "".join(f"# {line}\n" for entry in history for line in entry.splitlines())
    with atomic_write(path) as file:
        file.write((comments + yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False)).encode())
