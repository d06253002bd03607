"""Where a model comes from, as a table for people: from its checkpoint's lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lakeclip.evaluation.pages.account import DataAccount
from lakeclip.evaluation.pages.history import Curves


class FactGroup(NamedTuple):
    """Facts that belong together, as (label, value)."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunFacts:
    """Where a model comes from, for the page's table.

    Attributes:
        account: of its data; None where nobody kept one.
    """

    name: str
    model: str
    groups: tuple[FactGroup, ...]
    account: DataAccount | None = None


def run_facts(
    name: str, lineage: Mapping[str, Any], *, num_parameters: int, curves: Curves, account: DataAccount
) -> RunFacts:
    """The facts of a run, from its checkpoint's lineage.

    Args:
        name: of the run.
        lineage: the checkpoint's "lakeclip" entry.
        num_parameters: of the model.
        curves: of the run, for the learning rate that was reached.
        account: of its data; see `read_account`.
    """
    model, progress = lineage["model"], lineage["progress"]
    sizes, config = model["config"], lineage["config"]
    optimizer, loading, trainer = config.get("optimizer", {}), config.get("data", {}), config.get("trainer", {})
    rates = [rate for _, rate in curves.get("train/lr", [])]
    groups = (
        FactGroup("Data", data_rows(account)),
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
                ("passes over the data", f"{account.passes:.3g}" if account.passes else ""),
                ("training time", duration(progress["seconds"]) if progress.get("seconds") else ""),
                ("lakeclip", lineage["version"]),
            ),
        ),
    )
    return RunFacts(name, model["name"], (*groups, *_origin(lineage)), account)


def _origin(lineage: Mapping[str, Any]) -> tuple[FactGroup, ...]:
    """What only newer checkpoints tell: the order, the parts of the run, its code and its environment."""
    data, progress, code = lineage["data"], lineage["progress"], lineage.get("code", {})
    validation = data.get("validation") or {}
    place = f"epoch {progress['data_epoch'] + 1}, position {progress['position']:,}" if "position" in progress else ""
    groups = [
        FactGroup(
            "Order",
            _rows(
                ("place", place),
                ("steps of the whole run", _integer(progress.get("total_steps"))),
                ("fingerprint", data.get("plan")),
                ("validation", " ".join(str(validation[key]) for key in ("path", "version") if key in validation)),
                *((f"from step {part['step'] + 1:,}", _part(part)) for part in lineage.get("parts", [])),
            ),
        ),
        FactGroup(
            "Code",
            _rows(
                ("lakeclip", code.get("version")),
                ("commit", code.get("commit", "") + (", with changes" if code.get("changed") else "")),
                ("sources", f"sha256 {code['sources']}" if code.get("sources") else ""),
            ),
        ),
        FactGroup(
            "Environment", _rows(*((name, _said(value)) for name, value in lineage.get("environment", {}).items()))
        ),
    ]
    return tuple(group for group in groups if group.rows)


def _part(part: Mapping[str, Any]) -> str:
    processes = f" on each of {part['world_size']} processes" if part["world_size"] > 1 else ""
    times = f", {part['batches_per_step']} times a step" if part["batches_per_step"] > 1 else ""
    changed = "; ".join(f"{name.removeprefix('config.')} {was} → {now}" for name, (was, now) in part["changed"].items())
    return f"{part['batch_size']:,} pairs{processes}{times}" + (f"; changed: {changed}" if changed else "")


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def data_rows(account: DataAccount) -> tuple[tuple[str, str], ...]:
    """An account as (label, value), without what is not known."""
    several = len(account.lakes) > 1
    lakes = []
    for number, (lake, version) in enumerate(account.lakes, start=1):
        which = f" {number}" if several else ""
        lakes += [(f"lake{which}", lake), (f"version{which}", version)]
    held = account.held_out_rows
    return _rows(
        *(lakes or [("data", "a dataloader of the user's own")]),
        ("query", account.query or "none: every row"),
        ("rows in the lakes" if several else "rows in the lake", _integer(account.total_rows)),
        ("rows kept by the query" if account.query else "rows", _integer(account.kept_rows)),
        ("rows trained on", _integer(account.train_rows)),
        ("held out for validation", f"{held:,} ({100 * held / account.kept_rows:.3g}%)" if held else ""),
        ("validated on", account.val_lake),
        ("rows validated on", _integer(account.val_rows)),
        ("rows that could not be used", _integer(account.num_unusable) or "none"),
        ("steps left out", _integer(len(account.left_out)) or "none"),
    )


def _rows(*rows: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((label, str(value)) for label, value in rows if value not in (None, ""))


def _integer(value: int | None) -> str:
    return f"{value:,}" if value else ""


def duration(seconds: float) -> str:
    """A time as people say it: 1 h 2 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
