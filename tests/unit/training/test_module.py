"""The LightningModule: the optimiser's steps, the true length of the schedule, validation, and any dataloader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from lakeclip.checkpoints.native import build_model, read_checkpoint
from lakeclip.config.schema import LossConfig, OptimizerConfig, TrainConfig
from lakeclip.errors import ConfigError, ModelError
from lakeclip.losses.registry import MAX_LOGIT_SCALE
from lakeclip.models.clip import CLIP
from lakeclip.text.tokenizer import tokenize
from lakeclip.training.guard import Guard
from lakeclip.training.module import CLIPWrapper, ContrastiveModule
from lakeclip.types import Batch
from tests.conftest import TINY, TINY_MODELS
from tests.unit.losses.dense import dense_sigmoid, dense_softmax

CONFIGS = yaml.safe_load(TINY_MODELS)
pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")


def wrapper(
    name: str = "tiny-vit",
    minibatch_size: int | None = None,
    *,
    accumulate: int = 1,
    guard: Guard | None = None,
    run_config: TrainConfig | None = None,
    **optimizer: Any,
) -> CLIPWrapper:
    torch.manual_seed(0)
    return CLIPWrapper(
        name,
        CONFIGS[name],
        minibatch_size,
        optimizer=OptimizerConfig(**optimizer),
        accumulate=accumulate,
        guard=guard,
        run_config=run_config,
    )


def pairs(num: int, batch: int) -> DataLoader[Any]:
    """A dataloader of plain lists, as a user of train-CLIP has: item 0 is the image batch, item 1 the text batch."""
    images = torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = tokenize([f"photo number {index}" for index in range(num)])
    return DataLoader(list(zip(images, ids, strict=True)), batch_size=batch)  # type: ignore[arg-type]


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **settings)


class Rates(L.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
@pytest.mark.parametrize("minibatch_size", [None, 3])
def test_any_dataloader_trains(name: str, minibatch_size: int | None, tmp_path: Path) -> None:
    model = wrapper(name, minibatch_size, lr=1e-3)
    before = {key: value.clone() for key, value in model.model.named_parameters()}
    trainer(tmp_path, max_epochs=4, enable_checkpointing=False).fit(model, pairs(16, 8))
    unmoved = [key for key, value in model.model.named_parameters() if torch.equal(value, before[key])]
    # The gain that opens a residual branch starts at zero and so does what lies behind it, for one step.
    assert not unmoved


def test_in_a_users_own_trainer_pytorchs_random_state_is_left_alone(tmp_path: Path) -> None:
    class Seeds(L.Callback):
        """Callback that records PyTorch's seed after each step."""

        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append(torch.initial_seed())

    alone, ours = Seeds(), Seeds()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[alone]).fit(wrapper(), pairs(16, 8))
    assert alone.seen == [0, 0], "the seed that `wrapper` set"
    settings = {"max_epochs": 1, "enable_checkpointing": False, "callbacks": [ours]}
    trainer(tmp_path, **settings).fit(wrapper(run_config=TrainConfig()), pairs(16, 8))
    assert len(set(ours.seen)) == 2, "a run of lakeclip's seeds each step by its position"


@pytest.mark.parametrize("accumulate", [0, -1])
def test_steps_have_at_least_one_batch(accumulate: int) -> None:
    with pytest.raises(ConfigError, match="accumulate cannot be"):
        wrapper(accumulate=accumulate)


def test_the_loss_falls(tmp_path: Path) -> None:
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    ids = tokenize(["a red page", "green", "the colour blue"])
    fit = trainer(tmp_path, max_epochs=30, enable_checkpointing=False)
    fit.fit(wrapper(lr=1e-3), DataLoader(list(zip(colours, ids, strict=True)), batch_size=3))  # type: ignore[arg-type]
    assert float(fit.callback_metrics["train/loss"]) < 0.1 * math.log(3)


def test_the_schedule_has_the_true_number_of_steps(tmp_path: Path) -> None:
    """Defects 11 and 12: warm-up and cosine over epochs × batches, ending at zero, without restarts."""
    rates = Rates()
    model = wrapper(lr=1.0, warmup_steps=2)
    fit = trainer(tmp_path, max_epochs=5, enable_checkpointing=False, callbacks=[rates])
    fit.fit(model, pairs(12, 4))
    assert len(rates.rates) == 15
    assert rates.rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates.rates[2:] == sorted(rates.rates[2:], reverse=True)
    assert rates.rates[-1] < 0.02


def test_max_steps_ends_the_schedule_too(tmp_path: Path) -> None:
    rates = Rates()
    fit = trainer(tmp_path, max_epochs=100, max_steps=4, enable_checkpointing=False, callbacks=[rates])
    fit.fit(wrapper(lr=1.0, warmup_steps=0), pairs(12, 4))
    assert rates.rates == pytest.approx([1.0, 0.854, 0.5, 0.146], abs=1e-3)


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="length of the run"):
        trainer(tmp_path, max_epochs=-1, enable_checkpointing=False).fit(wrapper(), pairs(4, 2))


def test_validation_runs(tmp_path: Path) -> None:
    """Loss and retrieval in both directions cover the whole split, whatever its batches."""
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(wrapper(), pairs(8, 4), pairs(7, 3))
    metrics = fit.callback_metrics
    assert 0 < float(metrics["val/loss"]) < 10
    for direction in ("image_to_text", "text_to_image"):
        assert 0 <= float(metrics[f"val/{direction}_R@1"]) <= float(metrics[f"val/{direction}_R@5"]) <= 1
        assert float(metrics[f"val/{direction}_R@10"]) == 1.0


def test_the_logged_loss_is_the_loss(tmp_path: Path) -> None:
    """It is not divided by the number of processes."""
    model = wrapper(lr=1e-9)
    loader = pairs(4, 4)
    images, ids = next(iter(loader))
    with torch.no_grad():
        image, text = model(images, ids)
        logits = model.model.logit_scale.exp() * image @ text.T
        own = torch.arange(4)
        cross_entropy = torch.nn.functional.cross_entropy
        expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(model, loader)
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_scale_is_capped_at_100_and_may_fall(tmp_path: Path) -> None:
    """The logarithm is clamped from above only."""
    for start, settled in ((9.0, 100.0), (-9.0, math.exp(-9.0))):
        model = wrapper(lr=1e-9)
        with torch.no_grad():
            model.model.logit_scale.fill_(start)
        trainer(tmp_path, max_steps=1, enable_checkpointing=False).fit(model, pairs(4, 4))
        assert float(model.model.logit_scale.detach().exp()) == pytest.approx(settled, rel=1e-3)


def test_checkpoints_load_without_running_code(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(wrapper(), pairs(8, 4))
    (file,) = tmp_path.rglob("*.ckpt")
    content = torch.load(file, weights_only=True)
    assert content["lakeclip"]["model"]["name"] == "tiny-vit"
    progress = content["lakeclip"]["progress"]
    assert progress.pop("seconds") > 0
    assert progress == {"step": 2, "epoch": 0, "samples_seen": 8, "world_size": 1}
    restored = CLIPWrapper.load_from_checkpoint(file, weights_only=True)
    for key, value in restored.model.state_dict().items():
        assert isinstance(value, Tensor)
        torch.testing.assert_close(value, content["state_dict"][f"model.{key}"])


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(ModelError, match="ViT-B/32"):
        CLIPWrapper("ViT-B32")


def test_a_negative_minibatch_is_refused() -> None:
    with pytest.raises(ConfigError, match="minibatch_size"):
        wrapper(minibatch_size=-1)


def sigmoid_wrapper(**optimizer: Any) -> CLIPWrapper:
    torch.manual_seed(0)
    loss = LossConfig(objective="sigmoid")
    return CLIPWrapper("tiny-vit", CONFIGS["tiny-vit"], optimizer=OptimizerConfig(**optimizer), loss=loss)


def test_the_sigmoid_objective_trains_its_bias_and_validates(tmp_path: Path) -> None:
    model = sigmoid_wrapper(lr=1e-2, warmup_steps=0)
    assert model.model.logit_bias is not None
    assert float(model.model.logit_bias.detach()) == -10
    assert float(model.model.logit_scale.detach().exp()) == pytest.approx(10)
    with torch.no_grad():
        model.model.logit_scale.fill_(5.0)
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    fit.fit(model, pairs(8, 4), pairs(4, 4))
    assert float(model.model.logit_bias.detach()) != -10
    assert float(model.model.logit_scale.detach()) > MAX_LOGIT_SCALE, "the cap is the softmax's"
    with torch.no_grad():
        features = model(*next(iter(pairs(4, 4))))
        expected = dense_sigmoid(*features, model.model.logit_scale, model.model.logit_bias)
    assert float(fit.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_weight_decay_leaves_the_bias_alone() -> None:
    model = sigmoid_wrapper()
    decayed, others = model.make_optimizer().param_groups
    assert any(parameter is model.model.logit_bias for parameter in others["params"])
    assert not any(parameter is model.model.logit_bias for parameter in decayed["params"])


def test_a_sigmoid_checkpoint_loads_again(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(sigmoid_wrapper(lr=1e-2, warmup_steps=0), pairs(4, 4))
    (file,) = tmp_path.rglob("*.ckpt")
    bias = torch.load(file, weights_only=True)["state_dict"]["model.logit_bias"]
    assert float(bias) != -10
    assert build_model(read_checkpoint(file)).logit_bias == bias
    restored = CLIPWrapper.load_from_checkpoint(file, weights_only=True)
    assert restored.model.logit_bias == bias
    assert restored.loss_config.objective == "sigmoid"


def test_the_softmax_has_no_bias() -> None:
    assert "logit_bias" not in wrapper().model.state_dict()


def test_an_objective_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="sigmoid"):
        ContrastiveModule(CLIP(TINY), model_name="x", loss=LossConfig(objective="sigmoid"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shared_ids_and_smoothing_reach_the_step(smoothing: float, tmp_path: Path) -> None:
    """The ids in validation too; label smoothing in training alone."""
    images, ids = next(iter(pairs(4, 4)))
    batch = Batch(images, ids, torch.arange(4), torch.tensor([[3], [3], [0], [0]]))
    torch.manual_seed(0)
    model = CLIPWrapper(
        "tiny-vit",
        CONFIGS["tiny-vit"],
        optimizer=OptimizerConfig(lr=1e-9),
        loss=LossConfig(label_smoothing=smoothing),
    )
    with torch.no_grad():
        features = model(images, ids)
        expected = [
            dense_softmax(*features, model.model.logit_scale, batch.positive_ids, share) for share in (smoothing, 0.0)
        ]
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    loader = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    fit.fit(model, loader, loader)
    found = [float(fit.callback_metrics[name]) for name in ("train/loss", "val/loss")]
    assert found == pytest.approx([float(loss) for loss in expected], rel=1e-4)
