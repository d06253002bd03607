"""Summary of a run: the data, settings and code in its checkpoint's lineage, as labelled values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lakeclip.report.curves import Curves
from lakeclip.report.data_summary import DataSummary


class SummaryGroup(NamedTuple):
    """A group of (label, value) rows with a title."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run: its model, and groups of labelled values.

    Attributes:
        data: summary of its data; None if unknown.
    """

    name: str
    model: str
    groups: tuple[SummaryGroup, ...]
    data: DataSummary | None = None


def summarize_run(
    name: str, lineage: Mapping[str, Any], *, num_parameters: int, curves: Curves, data: DataSummary
) -> RunSummary:
    """Summarize a run from its checkpoint's lineage.

    Args:
        name: name of the run.
        lineage: the checkpoint's "lakeclip" entry.
        num_parameters: number of the model's parameters.
        curves: curves of the run, for its peak learning rate.
        data: summary of its data; see `read_data_summary`.
    """
    model, progress = lineage["model"], lineage["progress"]
    sizes, config = model["config"], lineage["config"]
    optimizer, loading, trainer = config.get("optimizer", {}), config.get("data", {}), config.get("trainer", {})
    rates = [rate for _, rate in curves.get("train/lr", [])]
    groups = (
        SummaryGroup("Data", data_rows(data)),
        SummaryGroup(
            "Model",
            _rows(
                ("name", model["name"]),
                ("parameters", f"{num_parameters / 1e6:,.1f} million"),
                ("input", f"{lineage['image_size']} × {lineage['image_size']} pixels"),
                ("shared space", f"{sizes['embed_dim']} dimensions"),
                ("text", f"at most {lineage['tokenizer']['context_length']} tokens ({lineage['tokenizer']['kind']})"),
            ),
        ),
        SummaryGroup(
            "Recipe",
            _rows(
                ("batch", f"{loading['batch_size']:,} pairs per device" if loading.get("batch_size") else ""),
                ("peak learning rate", f"{max(rates):.3g}" if rates else optimizer.get("lr")),
                ("weight decay", optimizer.get("weight_decay")),
                (
                    "warm-up",
                    f"{optimizer['warmup_steps']:,} steps" if optimizer.get("warmup_steps") is not None else "",
                ),
                ("crop keeps at least", f"{100 * loading['resize_ratio']:g}%" if loading.get("resize_ratio") else ""),
                ("precision", trainer.get("precision")),
                ("seed", loading.get("seed")),
            ),
        ),
        SummaryGroup(
            "Run",
            _rows(
                ("steps", _integer(progress["step"])),
                ("pairs seen", _integer(progress["samples_seen"])),
                ("passes over the data", f"{data.passes:.3g}" if data.passes else ""),
                ("training time", duration(progress["seconds"]) if progress.get("seconds") else ""),
                ("lakeclip", lineage["version"]),
            ),
        ),
    )
    return RunSummary(name, model["name"], (*groups, *_origin(lineage)), data)


def _origin(lineage: Mapping[str, Any]) -> tuple[SummaryGroup, ...]:
    """List what only newer checkpoints record: data order, run segments, code and environment."""
    data, progress, code = lineage["data"], lineage["progress"], lineage.get("code", {})
    validation = data.get("validation") or {}
    position = (
        f"epoch {progress['data_epoch'] + 1}, position {progress['position']:,}" if "position" in progress else ""
    )
    groups = [
        SummaryGroup(
            "Order",
            _rows(
                ("position", position),
                ("steps of the full run", _integer(progress.get("total_steps"))),
                ("fingerprint", data.get("plan")),
                ("validation", " ".join(str(validation[key]) for key in ("path", "version") if key in validation)),
                *((f"from step {segment['step'] + 1:,}", _segment(segment)) for segment in lineage.get("parts", [])),
            ),
        ),
        SummaryGroup(
            "Code",
            _rows(
                ("lakeclip", code.get("version")),
                ("commit", code.get("commit", "") + (", with uncommitted changes" if code.get("changed") else "")),
                ("sources", f"sha256 {code['sources']}" if code.get("sources") else ""),
            ),
        ),
        SummaryGroup(
            "Environment", _rows(*((name, _join(value)) for name, value in lineage.get("environment", {}).items()))
        ),
    ]
    return tuple(group for group in groups if group.rows)


def _segment(segment: Mapping[str, Any]) -> str:
    """Describe a segment of a resumed run: its batches, and the settings changed at its start."""
    processes = f" on each of {segment['world_size']} processes" if segment["world_size"] > 1 else ""
    batches = f", {segment['batches_per_step']} batches per step" if segment["batches_per_step"] > 1 else ""
    changes = segment["changed"].items()
    changed = "; ".join(f"{name.removeprefix('config.')} {before} → {after}" for name, (before, after) in changes)
    return f"{segment['batch_size']:,} pairs{processes}{batches}" + (f"; changed: {changed}" if changed else "")


def _join(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def data_rows(data: DataSummary) -> tuple[tuple[str, str], ...]:
    """Return a data summary as (label, value) rows, without what is unknown."""
    has_several = len(data.lakes) > 1
    lakes = []
    for number, (lake, version) in enumerate(data.lakes, start=1):
        suffix = f" {number}" if has_several else ""
        lakes += [(f"lake{suffix}", lake), (f"version{suffix}", version)]
    held = data.held_out_rows
    return _rows(
        *(lakes or [("data", "the user's own dataloader")]),
        ("query", data.query or "none: all rows"),
        ("rows in the lakes" if has_several else "rows in the lake", _integer(data.total_rows)),
        ("rows kept by the query" if data.query else "rows", _integer(data.kept_rows)),
        ("rows trained on", _integer(data.train_rows)),
        ("held out for validation", f"{held:,} ({100 * held / data.kept_rows:.3g}%)" if held else ""),
        ("validated on", data.val_lake),
        ("rows validated on", _integer(data.val_rows)),
        ("unusable rows", _integer(data.num_unusable) or "none"),
        ("skipped steps", _integer(len(data.skipped_steps)) or "none"),
    )


def _rows(*rows: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((label, str(value)) for label, value in rows if value not in (None, ""))


def _integer(value: int | None) -> str:
    return f"{value:,}" if value else ""


def duration(seconds: float) -> str:
    """Format a duration: 1 h 2 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
