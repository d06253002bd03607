"""Docstrings in plain English: functions say what they do, classes say what they are, and none opens with a riddle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).parents[2]
_FOLDERS = ("lakeclip", "benchmarks", "examples", "requirements", "docs/hooks", "tests")

#: Words that open a noun clause or a possessive: "What a run leaves.", "Of a name what fits a folder."
_RIDDLES = re.compile(
    r"(What|Whether|Of|Where|Wherever|How|Which|Who|Whose|Whoever|That|When|Whenever|Why|Such|So|But|Than|As|None|To|By|"
    r"From|On|At|Between|Above|Below|Behind|Beside)\b"
)
#: Third-person forms that a class's docstring may open with because they are plural nouns.
_PLURALS = {
    "checks",
    "counts",
    "plots",
    "samples",
    "scores",
    "steps",
    "results",
    "files",
    "flags",
    "runs",
    "stores",
    "maps",
}

# Imperatives that function docstrings open with. Add one when it is missing; a noun is not a verb.
_VERBS = frozenset(
    """
    abort accept accumulate adapt add adjust aggregate agree align allocate allow annotate answer append apply argue
    arrange ask assemble assert assign attach attend average avoid await back-propagate backpropagate begin
    benchmark bind block bound bring broadcast buffer build bump bundle cache calculate call cancel cap capture cast
    catch center change charge check choose clamp classify clean clear clip clone close collect combine commit
    compare compile complete compose compress compute concatenate configure confirm connect consume continue convert
    copy correct corrupt count cover crash create crop cross cut damage decide declare decode decompress deduplicate
    defer define delay delete deliver derive describe deserialize detach detect determine disable discard distill
    distribute divide do document download drain draw drop dump duplicate embed empty emulate enable encode end
    enforce ensure enter enumerate escape estimate evaluate evict exchange exclude execute exit expand expect
    explain export expose extend extract fail fall feed fetch fill filter find fine-tune finish fit flag flatten
    flip flush fold follow forget format forward free freeze gather generate get give group guard guess halve hand
    handle hash hide hold identify ignore import include increase index infer ingest inherit initialize insert
    inspect install interpolate interrupt invert invoke issue iterate join judge keep kill label launch lay leave
    let limit link list listen load locate lock log look lower make map mark mask match materialize measure merge
    mirror mix model mount move multiply name narrow normalize note notify number obtain open order override
    overwrite pack pad pair parametrize parse partition pass patch perform permute pick place plan play plot point
    pool post prefetch prepare prepend preprocess present preserve print probe process produce project propagate
    protect prove provide provoke prune pull put query quote raise random randomize rank read rebuild recall receive
    recompute record recover redact reduce refer refuse register reject release reload remember remove rename render
    repack repair repeat replace replay reply report represent request require resample rescale reserve reset
    reshape resize resolve respond restore restrict resume retrieve retry return reuse reverse rewrite roll rotate
    round route run sample save say scale scan schedule score search seed select send separate serialize serve set
    shard share shift shorten show shrink shuffle shut silence simulate skip slice smooth solve sort spawn split
    spread stack stamp standardize start state stay step stop store stream stretch strip subtract sum summarize
    supply swap switch synchronize tag take tell terminate test throw time tokenize touch trace track train
    transform translate transpose treat trim truncate try tune turn type undo unite unlock unpack unquote unshard
    update upload use validate verify view visit wait walk warm warn watch weigh wrap write yield zero zip
    """.split()  # noqa: SIM905
)


class _Docstring(NamedTuple):
    where: str
    kind: str
    is_public: bool
    text: str

    @property
    def first_word(self) -> str:
        return re.split(r"[\s,.:;()]", self.text, maxsplit=1)[0]


def _walk(path: Path) -> Iterator[_Docstring]:
    """Yield every docstring of a file; nested functions count as private."""
    name = str(path.relative_to(_ROOT))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if text := ast.get_docstring(tree):
        yield _Docstring(f"{name}:1", "module", True, text)
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:
        parent, is_public = todo.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                todo.append((node, is_public and not isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef))))
                continue
            inside = is_public and not node.name.startswith("_") and not isinstance(parent, ast.FunctionDef)
            if text := ast.get_docstring(node):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                decorators = {ast.unparse(one) for one in node.decorator_list}
                if decorators & {"property", "cached_property", "functools.cached_property"}:
                    kind = "property"
                if any("fixture" in one for one in decorators):
                    kind = "fixture"
                yield _Docstring(f"{name}:{node.lineno}", kind, inside, text)
            todo.append((node, inside))


@cache
def _docstrings() -> tuple[_Docstring, ...]:
    files = sorted(path for folder in _FOLDERS for path in (_ROOT / folder).rglob("*.py"))
    return tuple(found for path in files for found in _walk(path))


def _listed(found: list[_Docstring]) -> str:
    return "\n".join(f"{one.where}: {one.text.splitlines()[0]}" for one in found)


def test_no_docstring_opens_with_a_riddle() -> None:
    found = [one for one in _docstrings() if _RIDDLES.match(one.text)]
    assert not found, f"{len(found)} docstrings open with a noun clause; say what it does or is:\n{_listed(found)}"


def test_docstrings_of_public_functions_start_with_a_verb() -> None:
    found = [
        one
        for one in _docstrings()
        if one.kind == "function" and one.is_public and one.where.startswith("lakeclip/")
        if one.first_word.lower() not in _VERBS
    ]
    assert not found, f"{len(found)} docstrings of functions do not start with a verb:\n{_listed(found)}"


def test_docstrings_of_classes_start_with_a_noun() -> None:
    found = [
        one
        for one in _docstrings()
        if one.kind == "class" and one.where.startswith("lakeclip/")
        if one.first_word.lower().removesuffix("s") in _VERBS and one.first_word.lower().endswith("s")
        if one.first_word.lower() not in _PLURALS
    ]
    assert not found, f"{len(found)} docstrings of classes start with a verb; name the thing:\n{_listed(found)}"


@pytest.mark.parametrize("word", ["house", "chamber", "chambers", "hangs on", "in vain", "came apart", "defect"])
def test_private_metaphors_are_gone(word: str) -> None:
    found = []
    for path in sorted(path for folder in _FOLDERS for path in (_ROOT / folder).rglob("*.py")):
        if path != Path(__file__):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [
                f"{path.relative_to(_ROOT)}:{number}: {line.strip()}"
                for number, line in enumerate(lines, 1)
                if re.search(rf"\b{word}\b", line, re.IGNORECASE)
            ]
    assert not found, "\n".join(found)
