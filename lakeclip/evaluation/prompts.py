"""Class names to sentences: the prompt ensembles of zero-shot classification (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from lakeclip.errors import ConfigError

DEFAULT_TEMPLATES = "simple"

_FILE = Path(__file__).with_name("templates.yaml")


class TemplateSet(NamedTuple):
    """Sentences with {} for the class name, and what they are for."""

    name: str
    about: str
    templates: tuple[str, ...]


@lru_cache(maxsize=1)
def template_sets() -> dict[str, TemplateSet]:
    """The sets that come with lakeclip, by name."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: TemplateSet(name, entry["about"], tuple(entry["templates"])) for name, entry in content.items()}


def find_templates(name_or_file: str) -> TemplateSet:
    """A set by its name, or from a file of the user's: one sentence a line, with {} for the class name, # for remarks.

    Raises:
        ConfigError: neither a set nor a file, or the file holds something else.
    """
    sets = template_sets()
    if name_or_file in sets:
        return sets[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        near = difflib.get_close_matches(name_or_file.lower(), sets, n=1)
        raise ConfigError(
            f"there are no templates {name_or_file!r}",
            allowed=f"{', '.join(sets)}, or a file with one sentence a line and {{}} for the class name",
            next_step=f"--templates {near[0]}" if near else "",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the templates in {path} cannot be read", found=str(error)) from None
    sentences = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    sentences = [(number, line) for number, line in sentences if line and not line.startswith("#")]
    problems = [f"line {number}: {problem}" for number, line in sentences if (problem := template_problem(line))]
    if problems or not sentences:
        raise ConfigError(
            f"{path} does not hold templates",
            found="; ".join(problems[:5]) or "no sentences",
            allowed="one sentence a line with {} where the class name goes, such as: a photo of a {}.",
        )
    return TemplateSet(path.name, f"from {path.name}", tuple(dict.fromkeys(line for _, line in sentences)))


def template_problem(template: str) -> str:
    """Why a sentence cannot be a template; empty if it can."""
    if "{}" not in template:
        return f"no {{}} in {template[:60]!r}"
    if any(brace in template.replace("{}", "") for brace in "{}"):
        return f"a brace too many in {template[:60]!r}"
    return ""


def clean_class_name(name: str) -> str:
    """A label as one would say it: "traffic_light" is "traffic light"."""
    return re.sub(r"[\s_]+", " ", name).strip()


def fill(templates: Sequence[str], class_name: str) -> list[str]:
    """The sentences for one class."""
    return [template.replace("{}", class_name) for template in templates]
