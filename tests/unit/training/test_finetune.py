"""Fine-tuning: the step with a teacher is exact, the teacher is what it should be, and what is locked stays."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig, TeacherConfig
from lakeclip.errors import ConfigError
from lakeclip.losses.registry import LOSSES
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.training.finetune import CustomCLIPWrapper, FinetuneModule
from lakeclip.training.grad_cache import backward_through_batch
from tests.unit.losses.dense import dense_distillation, dense_softmax, dense_transport
from tests.unit.training.optim.test_optimizers import SMALL
from tests.unit.training.test_grad_cache import VIT, batch_of
from tests.unit.training.test_module import pairs, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")
SGD = FinetuneOptimizerConfig(algorithm="sgd", lr=0.1)


def module(config: Any = VIT, *, minibatch_size: int | None = None, **settings: Any) -> FinetuneModule:
    torch.manual_seed(0)
    made = FinetuneModule(
        CLIP(config), model_name="mine", minibatch_size=minibatch_size, optimizer=SGD, **settings
    ).double()
    if made.teacher is not None:
        # Another opinion than the student's.
        with torch.no_grad():
            for parameter in made.teacher.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def custom(**settings: Any) -> CustomCLIPWrapper:
    torch.manual_seed(0)
    photos = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return CustomCLIPWrapper(photos, BertModel(BertConfig(vocab_size=60, **sizes)), image_size=32, **settings)


# ── the step ──────────────────────────────────────────────────────────────────────────────────────────────────────


def definition(made: FinetuneModule, images: Tensor, ids: Tensor) -> Tensor:
    """Return the loss by its formulas."""
    assert made.teacher is not None
    student = [l2_normalize(made.model.encode_image(images)), l2_normalize(made.model.encode_text(ids))]
    with torch.no_grad():
        teacher = made.teacher.model
        views = [l2_normalize(teacher.encode_image(images)), l2_normalize(teacher.encode_text(ids))]
        logits = teacher.logit_scale.exp() * views[0] @ views[1].T
        settings = made.teacher_config
        targets = (
            dense_transport(*views, settings.epsilon, settings.iterations)
            if settings.targets == "transport"
            else (logits.softmax(dim=1), logits.softmax(dim=0))
        )
    hard = dense_softmax(*student, made.model.logit_scale)
    soft = dense_distillation(*student, made.distillation_scale, *targets)
    return settings.alpha * hard + (1 - settings.alpha) * soft


@pytest.mark.parametrize("minibatch_size", [None, 4, 16, 1])
@pytest.mark.parametrize("teacher", [TeacherConfig(), TeacherConfig(targets="softmax", alpha=0.3)])
def test_gradients_of_the_step_equal_the_definition(minibatch_size: int | None, teacher: TeacherConfig) -> None:
    """Compare in float64, for any micro-batch size and including both temperatures."""
    made = module(minibatch_size=minibatch_size, teacher=teacher)
    images, ids = batch_of(10)
    definition(made, images, ids).backward()
    trained = {name: value for name, value in made.named_parameters() if value.requires_grad}
    expected = {name: value.grad.clone() for name, value in trained.items() if value.grad is not None}
    assert expected.keys() == trained.keys(), "every trained parameter has a gradient"
    made.zero_grad()
    result = backward_through_batch(
        images,
        ids,
        model=made.model,
        embed=made.embed,
        loss=made.loss_fn((images, ids)),
        scalars=made.scalars,
        minibatch_size=minibatch_size,
        backward=lambda scalar: scalar.backward(),
        no_sync=nullcontext,
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(
            trained[name].grad, gradient, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(result.loss, definition(made, images, ids).detach(), rtol=1e-12, atol=0)


def test_a_run_trains_every_parameter_and_updates_the_teacher(tmp_path: Path) -> None:
    made = module(replace(VIT, vocab_size=49408, context_length=77)).float()
    assert made.teacher is not None
    before = {name: value.clone() for name, value in made.state_dict().items()}
    trainer(tmp_path, max_steps=3, enable_checkpointing=False).fit(made, pairs(8, 4))
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved >= {name for name, _ in made.model.named_parameters(prefix="model")}
    assert {"distillation_scale", "teacher.steps", "teacher.model.visual.proj"} <= moved


def test_temperatures_are_learned_logarithms_within_bounds() -> None:
    """Both factors are exp(x) and start equal (3.9 in OTTER); the distillation's stays between 1 and 100."""
    made = module()
    assert float(made.distillation_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    made = module(teacher=TeacherConfig(initial_scale=3.9))
    scales = [float(scale.detach()) for scale in made.scalars]
    assert scales == pytest.approx([3.9, 3.9])
    with torch.no_grad():
        for value, bound in ((-1.0, 0.0), (9.0, 4.60517)):
            made.distillation_scale.fill_(value)
            made.after_step(is_taken=False)
            assert float(made.distillation_scale.detach()) == pytest.approx(bound)


# ── the teacher ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_teacher_is_only_updated_by_averaging() -> None:
    """The teacher has no gradients, is in evaluation mode and not in the optimiser; its buffers are averaged too."""
    made = custom(teacher=TeacherConfig(teacher_decay=0.9))
    assert made.teacher is not None
    made.train()
    assert not any(part.training for part in made.teacher.modules())
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())
    optimised = {id(p) for group in made.make_optimizer().param_groups for p in group["params"]}
    assert not optimised & {id(parameter) for parameter in made.teacher.parameters()}
    assert optimised == {id(parameter) for parameter in made.parameters() if parameter.requires_grad}

    (norm,) = (part for part in made.model.modules() if isinstance(part, nn.BatchNorm2d))
    (mean_norm,) = (part for part in made.teacher.modules() if isinstance(part, nn.BatchNorm2d))
    weight, mean = norm.weight.detach().clone(), norm.running_mean.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        norm.weight.add_(1)
        norm.running_mean.add_(1)  # type: ignore[union-attr]
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    made.teacher.update(made.model)
    # The first step's decay is 2/11.
    torch.testing.assert_close(mean_norm.weight, weight + 9 / 11)
    torch.testing.assert_close(mean_norm.running_mean, mean + 9 / 11)
    assert mean_norm.num_batches_tracked == norm.num_batches_tracked


def test_the_teachers_decay_warms_up() -> None:
    made = custom(teacher=TeacherConfig(teacher_decay=0.5))
    assert made.teacher is not None
    student, teacher = made.model.logit_scale, made.teacher.model.logit_scale
    expected = float(teacher)
    for n in range(1, 13):
        with torch.no_grad():
            student.add_(0.1)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * float(student.detach())
        made.teacher.update(made.model)
        assert float(teacher) == pytest.approx(expected, rel=1e-5)


def test_a_skipped_step_does_not_update_the_teacher() -> None:
    made = module()
    assert made.teacher is not None
    before = made.teacher.model.visual.proj.clone()
    with torch.no_grad():
        made.after_step(is_taken=False)
    assert torch.equal(before, made.teacher.model.visual.proj)
    assert int(made.teacher.steps) == 0


@pytest.mark.parametrize("settings", [{"kl_coeff": 0.0}, {"teacher": TeacherConfig(targets="none")}])
def test_a_model_without_a_teacher_has_no_teacher_state(settings: dict[str, Any]) -> None:
    made = custom(**settings)
    assert made.teacher is None
    assert not any("teacher" in name or "distillation" in name for name in made.state_dict())
    assert made.scalars == (made.model.logit_scale,)


def test_alpha_zero_trains_on_the_teachers_targets_only(tmp_path: Path) -> None:
    made = module(replace(VIT, vocab_size=49408, context_length=77), teacher=TeacherConfig(alpha=0.0)).float()
    trainer(tmp_path, max_steps=2, enable_checkpointing=False).fit(made, pairs(8, 4))


# ── refused settings ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"kl_coeff": -1.0}, "kl_coeff"),
        ({"optimizer": FinetuneOptimizerConfig(states="bf16")}, "SGD"),
        ({"optimizer": FinetuneOptimizerConfig(text_weights="bf16")}, "text_weights"),
        ({"optimizer": FinetuneOptimizerConfig(ema_decay=0.9)}, "average"),
        ({"keep": KeepConfig(lock_text=9)}, "9 lower layers"),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        custom(**settings)


def test_both_towers_of_a_clip_locked_leave_nothing() -> None:
    with pytest.raises(ConfigError, match="nothing is left"):
        module(SMALL, keep=KeepConfig(lock_image="all", lock_text="all"))


def test_a_sigmoid_model_goes_on_with_the_sigmoid_loss() -> None:
    model = CLIP(SMALL, scalars=LOSSES["sigmoid"].scalars)
    made = FinetuneModule(model, model_name="siglip", teacher=TeacherConfig(targets="none"))
    images, texts = (torch.nn.functional.normalize(torch.randn(4, SMALL.embed_dim), dim=1) for _ in range(2))
    logits = model.logit_scale.exp() * images @ texts.T + model.scalars["logit_bias"]
    signs = 2 * torch.eye(4) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 4
    torch.testing.assert_close(made.compute_loss(images, texts, positive_ids=None), expected)


@pytest.mark.parametrize("locked", ["lock_image", "lock_text"])
def test_a_locked_tower_runs_once_with_the_same_gradients(locked: str) -> None:
    """The teacher's and the student's features of that side are equal, so they are computed once."""
    images, ids = batch_of(6)
    made = module(keep=KeepConfig(**{locked: "all"}), minibatch_size=4)
    assert made.teacher is not None
    made.teacher = type(made.teacher)(made.model, 0.9)
    side = "image" if locked == "lock_image" else "text"
    setattr(made.teacher, f"{side}s", None)
    definition(made, images, ids).backward()
    trained = [value for value in made.parameters() if value.requires_grad]
    expected = [value.grad.clone() for value in trained if value.grad is not None]
    made.zero_grad()
    backward_through_batch(
        images,
        ids,
        model=made.model,
        embed=made.embed,
        loss=made.loss_fn((images, ids)),
        scalars=made.scalars,
        minibatch_size=4,
        backward=lambda scalar: scalar.backward(),
        no_sync=nullcontext,
    )
    for value, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-10, atol=1e-13)
