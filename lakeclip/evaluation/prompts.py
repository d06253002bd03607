"""Prompt templates for class names (Radford et al. 2021, section 3.1.4)."""

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
    """A named set of prompts with {} for the class name."""

    name: str
    about: str
    templates: tuple[str, ...]


@lru_cache(maxsize=1)
def template_sets() -> dict[str, TemplateSet]:
    """Return the sets of templates that come with lakeclip, by name."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: TemplateSet(name, entry["about"], tuple(entry["templates"])) for name, entry in content.items()}


def find_templates(name_or_file: str) -> TemplateSet:
    """Find a set by name, or read a file with one prompt per line: {} for the class name, # for comments.

    Raises:
        ConfigError: there is no such set or file, or the file does not hold templates.
    """
    sets = template_sets()
    if name_or_file in sets:
        return sets[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        similar = difflib.get_close_matches(name_or_file.lower(), sets, n=1)
        raise ConfigError(
            f"there are no templates {name_or_file!r}",
            allowed=f"{', '.join(sets)}, or a file with one prompt per line and {{}} for the class name",
            next_step=f"--templates {similar[0]}" if similar else "",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the templates in {path} cannot be read", found=str(error)) from None
    prompts = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    prompts = [(number, line) for number, line in prompts if line and not line.startswith("#")]
    problems = [f"line {number}: {problem}" for number, line in prompts if (problem := template_problem(line))]
    if problems or not prompts:
        raise ConfigError(
            f"{path} does not hold templates",
            found="; ".join(problems[:5]) or "no prompts",
            allowed="one prompt per line with {} for the class name, such as: a photo of a {}.",
        )
    return TemplateSet(path.name, f"from {path.name}", tuple(dict.fromkeys(line for _, line in prompts)))


def template_problem(template: str) -> str:
    """Return the problem with a template, or "" if it is valid."""
    if "{}" not in template:
        return f"no {{}} in {template[:60]!r}"
    if any(brace in template.replace("{}", "") for brace in "{}"):
        return f"an extra brace in {template[:60]!r}"
    return ""


def clean_class_name(name: str) -> str:
    """Convert a label into words: "traffic_light" → "traffic light"."""
    return re.sub(r"[\s_]+", " ", name).strip()


def fill(templates: Sequence[str], class_name: str) -> list[str]:
    """Insert a class name into the templates."""
    return [template.replace("{}", class_name) for template in templates]
