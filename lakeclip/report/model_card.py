"""MODEL_CARD.md: what somebody who is handed a model must know of it (Mitchell et al. 2018, arXiv 1810.03993)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lakeclip.evaluation.forgetting import Forgetting
from lakeclip.evaluation.pages.account import DataAccount
from lakeclip.evaluation.pages.facts import RunFacts
from lakeclip.evaluation.pages.page import write_page
from lakeclip.evaluation.pages.report import RetrievalSection, ZeroShotSection

FILE_NAME = "MODEL_CARD.md"

_LIMITS = """\
- It knows the words of its captions and the pictures of its data, and nothing else. Outside of them it answers as
  surely as within, and is wrong.
- What the data associates, the model does: also where that is unfair to people. The data was not examined for this.
- The scores above are of the images named there. Others will give others.
- Not for deciding about people, and not for identifying them."""


def write_card(
    run: Path,
    facts: RunFacts,
    *,
    zeroshot: Sequence[ZeroShotSection] = (),
    retrieval: RetrievalSection | None = None,
    forgetting: Forgetting | None = None,
    checkpoints: Sequence[Path] = (),
    layouts: Sequence[str] = (),
) -> Path:
    """Write MODEL_CARD.md into a run's folder: data, recipe, scores and limits, from its checkpoint's lineage.

    Args:
        checkpoints: files of the run whose hashes the card holds; the first is the one that it is about.
        layouts: of `lakeclip export`; none for a model that others have no layout for.

    Returns:
        The page.

    Raises:
        OutputError: the folder cannot be written.
    """
    first = checkpoints[0].relative_to(run) if checkpoints else "checkpoints/best.ckpt"
    lines = [
        f"# {_cell(facts.name)}",
        "",
        f"A model that puts images and texts into one space ({_cell(facts.model)}), trained with lakeclip.",
        "",
        "## How to use it",
        "",
        "```python",
        "import lakeclip",
        "",
        f'model, tokenize, transform = lakeclip.load("{first}")',
        "```",
        "",
    ]
    if layouts:
        lines += [
            "For other programs, checked as it is written:",
            "",
            "```bash",
            f"lakeclip export --checkpoint {first} --to {layouts[0]}",
            "```",
            "",
            f"`--to` takes {', '.join(layouts)}. Where one of them cannot hold this model, the command says so.",
            "",
        ]
    if checkpoints:
        hashes = [
            (str(path.relative_to(run)), f"sha256 {_sha256(path)}, {path.stat().st_size / 1e6:,.1f} MB")
            for path in checkpoints
        ]
        lines += ["## Files", "", *_table(("file", "hash and size"), hashes), ""]
    for group in facts.groups:
        lines += [f"## {group.title}", "", *_table(("", ""), group.rows), ""]
        if group.title == "Data" and facts.account:
            lines += _account(facts.account)
    lines += ["## Scores", ""]
    scores = list(_scores(zeroshot, retrieval, forgetting))
    lines += _table(("on", "score"), scores) if scores else ["None were taken."]
    lines += ["", "## Limits", "", _LIMITS, ""]
    return write_page(run / FILE_NAME, "\n".join(lines))


def _scores(
    zeroshot: Sequence[ZeroShotSection], retrieval: RetrievalSection | None, forgetting: Forgetting | None
) -> Sequence[tuple[str, str]]:
    rows = []
    for section in zeroshot:
        result = section.result
        low, high = result.interval
        rows.append(
            (
                f"{section.title}: zero-shot top-1 among {len(result.classes)} classes, {result.num_samples:,} images",
                f"{result.top1:.1%} ({low:.1%} to {high:.1%}; chance {result.chance:.1%})",
            )
        )
    if retrieval is not None:
        found = retrieval.result
        for way, ranking in (("image → text", found.image_to_text), ("text → image", found.text_to_image)):
            recall = ", ".join(f"R@{k} {share:.1%}" for k, share in ranking.recall.items())
            about = f"{retrieval.about} {found.num_images:,} images, {found.num_texts:,} captions"
            rows.append((f"{way}. {about}", recall))
    if forgetting is not None:
        rows.append(
            (
                f"what was known before, {forgetting.kept_lake}: zero-shot top-1",
                f"{forgetting.before:.1%} before training, {forgetting.mixes[-1].kept:.1%} after, "
                f"{forgetting.best.kept:.1%} in mixed.ckpt",
            )
        )
    return rows


def _account(account: DataAccount) -> list[str]:
    """Rows that could not be used, by reason; and the data as it is cited."""
    lines = []
    if account.unusable:
        reasons = [(one.reason, f"{one.count:,}: row {', '.join(one.examples)}") for one in account.unusable]
        lines += ["What could not be used:", "", *_table(("why", "rows"), reasons), ""]
    if account.lakes:
        lakes = "; ".join(f"{lake}, version {version}" if version else lake for lake, version in account.lakes)
        query = f", rows for which {_cell(account.query)}" if account.query else ""
        lines += [f"To cite the data: {_cell(lakes)}{query}; {account.kept_rows:,} rows.", ""]
    return lines


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {_cell(one)} | {_cell(two)} |" for one, two in rows)]


def _cell(text: str) -> str:
    """A query or a label may hold what ends a cell, and a stranger's what is a picture, a link, or a script."""
    return re.sub(r"([\\|\[\]`<])", r"\\\1", " ".join(text.split()))
