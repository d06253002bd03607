"""Verdict on a finished run: whether its model does better than guessing, and what to do if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lakeclip.evaluation.chance import StuckLoss, find_stuck_loss
from lakeclip.report.curves import Curves

if TYPE_CHECKING:
    from lakeclip.evaluation.retrieval import RetrievalResult
    from lakeclip.evaluation.run import ZeroShotTestResult

#: With fewer validation rows, a model has to be several times better than guessing to show it.
_FEW_ROWS = 100


class RunVerdict(NamedTuple):
    """A statement that a run's model does no better than guessing.

    Attributes:
        headline: a short form of it.
        what: one sentence with the figures.
        advice: the next command.
    """

    headline: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}\n  next:  {self.advice}"


def judge_run(
    lineage: Mapping[str, Any],
    curves: Curves,
    *,
    zeroshot: Sequence[ZeroShotTestResult] = (),
    retrieval: RetrievalResult | None = None,
) -> RunVerdict | None:
    """Return a verdict if a run's loss stayed where guessing is, or none of its scores is above chance.

    Args:
        lineage: lineage of the run's checkpoint.
        curves: curves of the run.
        zeroshot, retrieval: scores of the run, as far as they are known.

    Returns:
        None for a model that does better than guessing, and for a run without scores whose loss fell.
    """
    stuck = stuck_loss(lineage, curves)
    standings = [(f"{test.title}: zero-shot top-1", test.result.standing) for test in zeroshot]
    if retrieval is not None:
        for direction, ranking in (
            ("text → image", retrieval.text_to_image),
            ("image → text", retrieval.image_to_text),
        ):
            standings += [(f"{direction} R@{k}", ranking.standing(k)) for k in ranking.recall]
    above = any(standing.verdict == "learning" for _, standing in standings)
    if above or not (stuck or standings):
        return None
    score = f"{standings[0][0]} is {standings[0][1]}" if standings else ""
    num_rows = retrieval.num_images if retrieval else 0
    if stuck:
        text = f"the model is guessing: {stuck}" + (f"; {score}" if score else "")
        return RunVerdict("No better than guessing", text, _advice(lineage))
    if 0 < num_rows < _FEW_ROWS and not zeroshot:
        return RunVerdict(
            "Not distinguishable from guessing",
            f"the model cannot be told from guessing on {num_rows:,} validation rows: {score}",
            f"more rows to score on (--val-fraction, --val-lake, lakeclip evaluate retrieval); {_advice(lineage)}",
        )
    return RunVerdict("No better than guessing", f"the model does no better than guessing: {score}", _advice(lineage))


def stuck_loss(lineage: Mapping[str, Any], curves: Curves) -> StuckLoss | None:
    """Return the loss of a run that ended where guessing is; None if it fell, or if guessing has no known loss."""
    loss = lineage["config"].get("loss")
    losses = [value for _, value in curves.get("train/loss", [])]
    if not loss or loss.get("objective", "softmax") != "softmax" or loss.get("label_smoothing"):
        return None
    segments = lineage.get("parts") or []
    size = (
        segments[-1]["batch_size"] * segments[-1]["world_size"]
        if segments
        else lineage["config"].get("data", {}).get("batch_size")
    )
    return find_stuck_loss(losses, size) if size else None


def _advice(lineage: Mapping[str, Any]) -> str:
    data, config = lineage["data"], lineage["config"]
    loading = config.get("data", {})
    name, value = ("--folder", loading["folder"]) if loading.get("folder") else ("--lake", loading.get("lake"))
    source = f"{name} {value}" if value else "--lake LAKE"
    if "teacher" in config:
        return (
            f"lakeclip inspect {value or 'LAKE'} shows whether captions describe their images; then more --max-epochs, "
            "or a higher --lr"
        )
    num_rows = data.get("train_rows") or data.get("num_rows")
    rows = f" than {num_rows:,}" if num_rows else ""
    return (
        f"lakeclip finetune --from NAME {source} starts from a model that knows images and words (`lakeclip weights` "
        f"lists names); or train on more pairs{rows}, for more steps (--max-epochs, a smaller --batch-size)"
    )
