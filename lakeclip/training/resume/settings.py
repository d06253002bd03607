"""Effect of each setting on a resume: it is applied from the next step on, or refused with a way out.

docs/guides/resume.md has the table for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import ConfigError
from lakeclip.provenance.run_segments import WITHOUT_EFFECT, lineage_differences

_ORDER = "it decides which rows come next, so the run's position in its data would be meaningless"
_VALIDATION = "the best checkpoint is chosen by the validation, whose scores could no longer be compared"
_MODEL = "the run's weights belong to its model"
_STATES = "the optimiser's states belong to it"
_START = "it decides the weights that the run started from"
_BEFORE = "it compares the run with its start"

#: Settings that a resume cannot change, and why.
FIXED: dict[str, str] = {
    **{f"data.{name}": _ORDER for name in ("query", "filter_nsfw", "weights", "seed", "shuffle")},
    **{f"data.{name}": _VALIDATION for name in ("val_lake", "val_fraction", "max_val_rows")},
    **dict.fromkeys(("model", "data.image_size", "loss.objective", "context_length"), _MODEL),
    **dict.fromkeys(("image_encoder", "text_encoder", "embed_dim", "average_word_embeddings"), _MODEL),
    **{f"optimizer.{name}": _STATES for name in ("states", "text_weights", "algorithm")},
    **dict.fromkeys(("start", "teacher.initial_scale"), _START),
    **{f"keep.{name}": _STATES for name in ("lock_image", "lock_text", "lora_rank", "lora_alpha")},
    **{
        f"keep.{name}": _BEFORE
        for name in ("keep_lake", "keep_label_column", "keep_classes", "keep_templates", "keep_rows")
    },
}

#: Settings whose value is compared by its content, not by its name.
BY_CONTENT = ("data.lake", "data.folder", "model_config")
#: The folder of the run, which is the one that is resumed.
_FOLDER = ("trainer.runs", "trainer.name")

#: Settings that a resume applies from the next step on. Those of `PLANNED` change the learning rate's curve.
PLANNED = (
    *("data.batch_size", "trainer.accumulate", "trainer.max_epochs", "trainer.max_steps"),
    *("optimizer.lr", "optimizer.warmup_steps", "optimizer.layer_decay"),
)
APPLIED = (
    *PLANNED,
    *(f"optimizer.{name}" for name in ("betas", "eps", "weight_decay", "max_grad_norm", "ema_decay")),
    "loss.label_smoothing",
    *(f"teacher.{name}" for name in ("targets", "alpha", "epsilon", "iterations", "teacher_decay")),
    *(f"data.{name}" for name in ("image_column", "caption_column", "caption_template", "same_by")),
    *("data.small_images", "data.resize_ratio", "trainer.patch_dropout", "trainer.max_skipped"),
)
#: Settings of the machine and of what is written beside the weights, which are applied too.
_MACHINE = (
    *("data.num_workers", "data.mark_unusable"),
    *(
        f"trainer.{name}"
        for name in (
            *("minibatch_size", "checkpointing", "compile", "precision", "accelerator", "devices", "num_nodes"),
            *("strategy", "val_every_steps", "save_every_minutes", "save_every_steps", "keep_last", "track"),
        )
    ),
)


def changed_settings(
    config: TrainConfig | FinetuneConfig, recorded: Mapping[str, Any], saved: TrainConfig | FinetuneConfig, folder: Path
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that a resume changes, each with its old and new value.

    Args:
        config: the requested configuration, with the values of its optimiser filled in.
        recorded: the configuration in the checkpoint's lineage, which is in effect up to there.
        saved: the configuration in the run's folder.
        folder: the run's folder.

    Raises:
        ConfigError: a setting cannot be changed; the error names all of them.
    """
    # A checkpoint may be older than a setting, which then had its default.
    before = _merge(asdict(type(config)()), recorded)
    changed = {
        path.removeprefix("config."): (was, now)
        for path, (was, now) in lineage_differences(
            {"config": before, "data": {}}, {"config": asdict(config), "data": {}}
        ).items()
        if path.removeprefix("config.") not in _FOLDER
    }
    refused = {path: reason for path in changed if (reason := _refusal(path, config, before)) is not None}
    trainer = config.trainer
    is_moved = (trainer.runs, trainer.name) != (saved.trainer.runs, saved.trainer.name)
    if is_moved and (Path(trainer.runs) / (trainer.name or "")).resolve() != folder.resolve():
        refused["trainer.name" if trainer.name != saved.trainer.name else "trainer.runs"] = (
            f"the run stays in {folder}; move that folder to rename it"
        )
        changed |= {
            "trainer.name": (saved.trainer.name, trainer.name),
            "trainer.runs": (saved.trainer.runs, trainer.runs),
        }
    if refused:
        flags = " and ".join(flag(path) for path in refused)
        raise ConfigError(
            f"{flags} cannot change when {folder} is resumed",
            found="\n           ".join(
                f"{flag(path)} {changed[path][1]}, but {changed[path][0]} so far: {reason}"
                for path, reason in refused.items()
            ),
            allowed=f"the run's own: leave out {flags}",
            next_step=way_out(config, folder),
        )
    return changed


def is_operational(path: str) -> bool:
    """Return True if a setting concerns the machine, or what is written beside the weights."""
    return path in _MACHINE or f"config.{path}".startswith(WITHOUT_EFFECT)


def flag(path: str) -> str:
    """Return the flag of a setting."""
    name = path.rpartition(".")[2].replace("_", "-")
    return "--from" if name == "start" else f"--{name}"


def way_out(config: TrainConfig | FinetuneConfig, folder: Path) -> str:
    """Return the commands that train with settings which a resume refuses."""
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    anew = f"lakeclip {verb} --recipe {folder / 'config.yaml'} --name NEW … for a new run with them"
    if isinstance(config, TrainConfig) and config.loss.objective == "softmax":
        return f"lakeclip finetune --from lakeclip:{folder} … to start a new run from these weights, or {anew}"
    return anew


def _refusal(path: str, config: TrainConfig | FinetuneConfig, before: Mapping[str, Any]) -> str | None:
    """Return why a setting cannot be changed to its new value; None if it can."""
    if path in FIXED:
        return FIXED[path]
    optimizer, old = config.optimizer, before["optimizer"]
    if path == "optimizer.ema_decay" and (optimizer.ema_decay is None) != (old["ema_decay"] is None):
        return "an average of the weights has to run from the start to the end"
    if isinstance(config, FinetuneConfig):
        if path == "optimizer.layer_decay" and 1 in (config.optimizer.layer_decay, old["layer_decay"]):
            return _STATES
        has_teacher = config.teacher.targets != "none" and config.teacher.alpha < 1
        had_teacher = before["teacher"]["targets"] != "none" and before["teacher"]["alpha"] < 1
        if path in ("teacher.targets", "teacher.alpha") and has_teacher != had_teacher:
            return "a teacher has to run from the start to the end"
    if path in BY_CONTENT or path in APPLIED or is_operational(path):
        return None
    return "it is not known what that would do in the middle of a run"


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with defaults where they are missing; what is not a setting today is left out."""
    return {
        name: _merge(default, values.get(name, {}))
        if isinstance(default, Mapping) and isinstance(values.get(name, {}), Mapping)
        else values.get(name, default)
        for name, default in defaults.items()
    }
