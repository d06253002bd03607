"""Where a model comes from, as a table for people: from its checkpoint's lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lakeclip.evaluation.history import Curves


class FactGroup(NamedTuple):
    """Facts that belong together, as (label, value)."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunFacts:
    """Where a model comes from, for the page's table."""

    name: str
    model: str
    groups: tuple[FactGroup, ...]


def run_facts(name: str, lineage: Mapping[str, Any], *, num_parameters: int, curves: Curves) -> RunFacts:
    """The facts of a run, from its checkpoint's lineage.

    Args:
        name: of the run.
        lineage: the checkpoint's "lakeclip" entry.
        num_parameters: of the model.
        curves: of the run, for the learning rate that was reached.
    """
    model, data, progress = lineage["model"], lineage["data"], lineage["progress"]
    sizes, config = model["config"], lineage["config"]
    optimizer, loading, trainer = config.get("optimizer", {}), config.get("data", {}), config.get("trainer", {})
    rates = [rate for _, rate in curves.get("train/lr", [])]
    passes = progress["samples_seen"] / data["rows"] if data["rows"] else None
    groups = (
        FactGroup(
            "Data",
            _rows(
                ("lake", data["path"] or "a dataloader of the user's own"),
                ("version", data["version"]),
                ("query", data["query"] or "none: every row"),
                ("rows", _integer(data["rows"]) if data["rows"] else ""),
                (
                    "held out for validation",
                    f"{100 * loading['val_fraction']:g}%" if loading.get("val_fraction") else "",
                ),
                ("validated on", loading.get("val_lake")),
            ),
        ),
        FactGroup(
            "Model",
            _rows(
                ("name", model["name"]),
                ("parameters", f"{num_parameters / 1e6:,.1f} million"),
                ("input", f"{lineage['image_size']} × {lineage['image_size']} pixels"),
                ("shared space", f"{sizes['embed_dim']} dimensions"),
                ("text", f"at most {lineage['tokenizer']['context_length']} tokens ({lineage['tokenizer']['kind']})"),
            ),
        ),
        FactGroup(
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
        FactGroup(
            "Run",
            _rows(
                ("steps", _integer(progress["step"])),
                ("pairs seen", _integer(progress["samples_seen"])),
                ("passes over the data", f"{passes:.3g}" if passes else ""),
                ("training time", _duration(progress["seconds"]) if progress.get("seconds") else ""),
                ("lakeclip", lineage["version"]),
            ),
        ),
    )
    return RunFacts(name, model["name"], groups)


def _rows(*rows: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((label, str(value)) for label, value in rows if value not in (None, ""))


def _integer(value: int) -> str:
    return f"{value:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
