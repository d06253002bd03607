"""MODEL_CARD.md: what a user of the model must know (Mitchell et al. 2018, arXiv 1810.03993)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lakeclip.evaluation.forgetting import Forgetting
from lakeclip.evaluation.run import ZeroShotTestResult
from lakeclip.report.data_summary import DataSummary
from lakeclip.report.page import write_page
from lakeclip.report.run_page import RetrievalSection
from lakeclip.report.run_summary import RunSummary

FILE_NAME = "MODEL_CARD.md"

_LIMITS = """\
- The model knows only what its images and captions show. On other data it predicts with the same confidence, and is
  often wrong.
- It reproduces the associations in its data, including those that are unfair to people. The data was not examined for
  this.
- The scores above hold for the data named there. On other data they differ.
- Do not use it to make decisions about people or to identify them."""


def write_model_card(
    run: Path,
    summary: RunSummary,
    *,
    zeroshot: Sequence[ZeroShotTestResult] = (),
    retrieval: RetrievalSection | None = None,
    forgetting: Forgetting | None = None,
    checkpoints: Sequence[Path] = (),
    layouts: Sequence[str] = (),
) -> Path:
    """Write MODEL_CARD.md into a run's folder: data, recipe, scores and limits.

    Args:
        checkpoints: files whose hashes the card lists; the first is the model that the card describes.
        layouts: layouts of `lakeclip export` that support the model.

    Returns:
        The path of the card.

    Raises:
        OutputError: the folder cannot be written.
    """
    first = checkpoints[0].relative_to(run) if checkpoints else "checkpoints/best.ckpt"
    lines = [
        f"# {_cell(summary.name)}",
        "",
        f"A CLIP model ({_cell(summary.model)}), which embeds images and texts into one space, trained with lakeclip.",
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
            "To export it for other programs; the export is verified:",
            "",
            "```bash",
            f"lakeclip export --checkpoint {first} --to {layouts[0]}",
            "```",
            "",
            f"`--to` takes {', '.join(layouts)}. The command reports a layout that does not support this model.",
            "",
        ]
    if checkpoints:
        hashes = [
            (str(path.relative_to(run)), f"sha256 {_sha256(path)}, {path.stat().st_size / 1e6:,.1f} MB")
            for path in checkpoints
        ]
        lines += ["## Files", "", *_table(("file", "hash and size"), hashes), ""]
    for group in summary.groups:
        lines += [f"## {group.title}", "", *_table(("", ""), group.rows), ""]
        if group.title == "Data" and summary.data:
            lines += _data_notes(summary.data)
    lines += ["## Scores", ""]
    scores = list(_scores(zeroshot, retrieval, forgetting))
    lines += _table(("on", "score"), scores) if scores else ["None."]
    lines += ["", "## Limits", "", _LIMITS, ""]
    return write_page(run / FILE_NAME, "\n".join(lines))


def _scores(
    zeroshot: Sequence[ZeroShotTestResult], retrieval: RetrievalSection | None, forgetting: Forgetting | None
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
        scores = retrieval.result
        for direction, ranking in (("image → text", scores.image_to_text), ("text → image", scores.text_to_image)):
            recall = ", ".join(f"R@{k} {share:.1%}" for k, share in ranking.recall.items())
            about = f"{retrieval.about} {scores.num_images:,} images, {scores.num_texts:,} captions"
            rows.append((f"{direction}. {about}", recall))
    if forgetting is not None:
        rows.append(
            (
                f"data to keep, {forgetting.kept_lake}: zero-shot top-1",
                f"{forgetting.before:.1%} before training, {forgetting.mixes[-1].kept:.1%} after, "
                f"{forgetting.best.kept:.1%} in mixed.ckpt",
            )
        )
    return rows


def _data_notes(data: DataSummary) -> list[str]:
    """List the unusable rows by reason, and how to cite the data."""
    lines = []
    if data.unusable:
        reasons = [(group.reason, f"{group.count:,}: row {', '.join(group.examples)}") for group in data.unusable]
        lines += ["Unusable rows:", "", *_table(("reason", "rows"), reasons), ""]
    if data.lakes:
        lakes = "; ".join(f"{lake}, version {version}" if version else lake for lake, version in data.lakes)
        query = f", query {_cell(data.query)}" if data.query else ""
        lines += [f"To cite the data: {_cell(lakes)}{query}; {data.kept_rows:,} rows.", ""]
    return lines


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)]


def _cell(text: str) -> str:
    """Escape text for a table cell: data may contain cell ends, images, links or scripts."""
    return re.sub(r"([\\|\[\]`<])", r"\\\1", " ".join(text.split()))
