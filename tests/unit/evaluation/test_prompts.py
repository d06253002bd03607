"""Prompt templates: the shipped sets, files of the user, and class names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.errors import ConfigError
from lakeclip.evaluation.prompts import (
    DEFAULT_TEMPLATES,
    clean_class_name,
    fill,
    find_templates,
    template_problem,
    template_sets,
)


def test_every_shipped_set_is_usable() -> None:
    sets = template_sets()
    assert {DEFAULT_TEMPLATES, "simple", "openai-7", "cifar", "scenes"} <= set(sets)
    for entry in sets.values():
        assert entry.about
        assert entry.templates
        assert len(set(entry.templates)) == len(entry.templates)
        assert not any(template_problem(template) for template in entry.templates)
    assert len(sets["openai-7"].templates) == 7
    assert len(sets["openai-80"].templates) == 80
    assert set(sets["openai-7"].templates) <= set(sets["openai-80"].templates)
    assert len(sets["cifar"].templates) == 18


@pytest.mark.parametrize(
    ("name", "number", "example"),
    [
        ("caltech101", 34, "the {} in a video game."),
        ("cars", 8, "i love my {}!"),
        ("country211", 5, "a photo i took while visiting {}."),
        ("dtd", 8, "a photo of the {} pattern."),
        ("eurosat", 3, "a centered satellite photo of {}."),
        ("fer2013", 6, "look at how {} they are."),
        ("gtsrb", 3, 'a zoomed in photo of a "{}" traffic sign.'),
        ("kinetics700", 28, "a example of a person practicing {}."),
        ("pets", 1, "a photo of a {}, a type of pet."),
        ("resisc45", 18, "aerial view of the {}."),
        ("ucf101", 48, "a demonstration of the person during {}."),
    ],
)
def test_sets_of_the_paper_are_complete(name: str, number: int, example: str) -> None:
    templates = find_templates(name).templates
    assert len(templates) == number
    assert example in templates


def test_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(
        "# comments and empty lines\n\na sketch of a {}.\r\n  a {} in {} style \na sketch of a {}.\n", "utf-8"
    )
    assert find_templates(str(file)).templates == ("a sketch of a {}.", "a {} in {} style")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a photo", "line 1: no {}"),
        ("a {}.\na photo of {name}.", "line 2: no {}"),
        ("a {} {", "line 1: an extra brace"),
        ("", "no prompts"),
        ("# nothing\n", "no prompts"),
    ],
)
def test_file_without_templates_is_rejected(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(ConfigError, match="does not hold templates") as error:
        find_templates(str(file))
    assert problem in error.value.found


def test_binary_file_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xff\xfe{}\x80")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_templates(str(file))


def test_unknown_name_lists_the_sets_and_suggests_one() -> None:
    with pytest.raises(ConfigError, match="no templates 'openai7'") as error:
        find_templates("openai7")
    assert "cifar" in error.value.allowed
    assert error.value.next_step == "--templates openai-7"


@pytest.mark.parametrize(
    ("label", "name"), [("traffic_light", "traffic light"), ("  red  circle\n", "red circle"), ("T-shirt", "T-shirt")]
)
def test_class_names_are_cleaned(label: str, name: str) -> None:
    assert clean_class_name(label) == name


def test_braces_in_a_class_name_are_kept() -> None:
    assert fill(["a {}.", "{} or {}"], "{x}") == ["a {x}.", "{x} or {x}"]
