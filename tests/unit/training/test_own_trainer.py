"""The modules in a user's own Trainer: optimisers and schedulers, stages, precisions, compilation, frozen parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

import lakeclip
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError, DataError
from lakeclip.lake.dataset import open_lake
from lakeclip.text.tokenizer import VOCAB_SIZE, tokenize
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import CLIPWrapper
from tests.conftest import TINY_MODELS
from tests.unit.checkpoints.test_save_load import towers
from tests.unit.training.test_module import CONFIGS, pairs, trainer, wrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|val_dataloader|LeafSpec|returned `None`|dataloader is not resumable)"
)


def sgd(module: L.LightningModule, lr: float = 1.0) -> Optimizer:
    return SGD([parameter for parameter in module.parameters() if parameter.requires_grad], lr=lr)


class Rates(L.Callback):
    """The learning rate with which each batch was trained."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def own(configure: Callable[[Any], Any], **settings: Any) -> CLIPWrapper:
    """A subclass that overrides `configure_optimizers`, as a user's."""

    class Own(CLIPWrapper):
        def configure_optimizers(self) -> Any:
            return configure(self)

    torch.manual_seed(0)
    return Own("tiny-vit", CONFIGS["tiny-vit"], **settings)


def rates(configure: Callable[[Any], Any], folder: Path, *, epochs: int = 3, **settings: Any) -> list[float]:
    """The learning rate of every batch: three epochs of four batches."""
    seen = Rates()
    fit = trainer(folder, max_epochs=epochs, enable_checkpointing=False, callbacks=[seen])
    fit.fit(own(configure, **settings), pairs(8, 2), pairs(4, 2))
    return seen.rates


def halving(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, 1, gamma=0.5)


def powers(exponents: list[int]) -> list[float]:
    return [0.5**exponent for exponent in exponents]


# ── schedulers ──────────────────────────────────────────────────────────────────────────────────────────────────────

EACH_EPOCH = powers([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
EACH_STEP = powers(list(range(12)))


def _two_lists(module: Any) -> Any:
    optimizer = sgd(module)
    return [optimizer], [halving(optimizer)]


def _dict(**scheduling: Any) -> Callable[[Any], Any]:
    def configure(module: Any) -> Any:
        optimizer = sgd(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving(optimizer), **scheduling}}

    return configure


@pytest.mark.parametrize(
    ("configure", "expected"),
    [
        (sgd, [1.0] * 12),
        (lambda module: [sgd(module)], [1.0] * 12),
        (_two_lists, EACH_EPOCH),
        (_dict(), EACH_EPOCH),
        (_dict(interval="epoch", frequency=2), powers([0] * 8 + [1] * 4)),
        (_dict(interval="step"), EACH_STEP),
        (_dict(interval="step", frequency=3), powers([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])),
    ],
    ids=["optimizer", "list", "two lists", "dict", "every 2 epochs", "steps", "every 3 steps"],
)
def test_schedulers_are_stepped_at_their_interval(
    configure: Callable[[Any], Any], expected: list[float], tmp_path: Path
) -> None:
    assert rates(configure, tmp_path) == pytest.approx(expected)


def test_a_step_of_several_batches_is_one_step(tmp_path: Path) -> None:
    """The last of the five batches of an epoch is a step of its own."""
    seen = Rates()
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False, callbacks=[seen])
    fit.fit(own(_dict(interval="step"), accumulate=2), pairs(10, 2))
    assert seen.rates == pytest.approx(powers([0, 0, 1, 1, 2, 3, 3, 4, 4, 5]))


def test_two_schedulers_of_one_optimizer(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = sgd(module)
        by_step = {"scheduler": LambdaLR(optimizer, lambda step: 1.0), "interval": "step"}
        return [optimizer], [by_step, {"scheduler": ExponentialLR(optimizer, 0.5), "interval": "epoch"}]

    found = rates(configure, tmp_path)
    assert found[3] == 1.0
    assert found[4] == 0.5


@pytest.mark.parametrize(
    "scheduling",
    [
        lambda plateau: {"lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}},
        lambda plateau: {"lr_scheduler": plateau, "monitor": "val/loss"},
        lambda plateau: {"lr_scheduler": {"scheduler": plateau, "monitor": "train/loss", "interval": "epoch"}},
    ],
    ids=["in the scheduler's dict", "beside it", "train/loss"],
)
def test_plateau_gets_its_metric_once_an_epoch(scheduling: Callable[[Any], Any], tmp_path: Path) -> None:
    metrics: list[float] = []

    class Plateau(ReduceLROnPlateau):
        def step(self, metrics_: Any, epoch: Any = None) -> None:  # type: ignore[override]
            metrics.append(float(metrics_))
            super().step(1.0)

    def configure(module: Any) -> Any:
        optimizer = sgd(module, 0.1)
        return {"optimizer": optimizer, **scheduling(Plateau(optimizer, factor=0.5, patience=0))}

    found = rates(configure, tmp_path)
    assert len(metrics) == 3
    assert all(0 < metric < 50 for metric in metrics)
    # The first metric is the best; each later one is no better.
    assert found == pytest.approx([0.1] * 8 + [0.05] * 4)


def test_plateau_by_steps(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = sgd(module, 0.0)  # the loss of the one batch does not change
        optimizer.param_groups[0]["lr"] = 1e-30
        plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, eps=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "train/loss", "interval": "step"},
        }

    seen = Rates()
    fit = trainer(tmp_path, max_epochs=4, enable_checkpointing=False, callbacks=[seen])
    fit.fit(own(configure), pairs(4, 4))
    assert [rate / 1e-30 for rate in seen.rates] == pytest.approx([1, 1, 0.5, 0.25])


def test_the_order_of_hooks_of_a_subclass_does_not_matter(tmp_path: Path) -> None:
    """`on_train_epoch_end` is overridden without super(), as Lightning allows."""

    class Own(CLIPWrapper):
        def configure_optimizers(self) -> Any:
            optimizer = sgd(self, 0.1)
            plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9)
            return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val/loss"}

        def on_train_epoch_end(self) -> None:
            pass

    seen = Rates()
    fit = trainer(tmp_path, max_epochs=3, enable_checkpointing=False, callbacks=[seen])
    fit.fit(Own("tiny-vit", CONFIGS["tiny-vit"]), pairs(4, 4), pairs(4, 4))
    assert seen.rates == pytest.approx([0.1, 0.05, 0.025])


def test_a_metric_that_nothing_logs_is_named(tmp_path: Path) -> None:
    def configure(strict: bool) -> Callable[[Any], Any]:
        def configured(module: Any) -> Any:
            optimizer = sgd(module)
            plateau = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val/los", "strict": strict}
            return {"optimizer": optimizer, "lr_scheduler": plateau}

        return configured

    with pytest.raises(ConfigError, match=r"monitors 'val/los'[\s\S]*val/loss"):
        rates(configure(True), tmp_path)
    assert rates(configure(False), tmp_path) == [1.0] * 12


def test_lr_scheduler_step_may_be_overridden(tmp_path: Path) -> None:
    steps: list[int] = []

    class Own(CLIPWrapper):
        def configure_optimizers(self) -> Any:
            return _dict(interval="step")(self)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            steps.append(self.trainer.global_step)

    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(Own("tiny-vit", CONFIGS["tiny-vit"]), pairs(8, 2))
    assert steps == [1, 2, 3, 4]


def test_super_configure_optimizers_keeps_its_schedule(tmp_path: Path) -> None:
    """A subclass that changes the optimiser's groups keeps warm-up and cosine, one step each."""
    assert rates(lambda module: super(type(module), module).configure_optimizers(), tmp_path) == pytest.approx(
        rates(lambda module: CLIPWrapper.configure_optimizers(module), tmp_path)
    )
    seen = Rates()
    fit = trainer(tmp_path, max_epochs=3, enable_checkpointing=False, callbacks=[seen])
    fit.fit(wrapper(), pairs(8, 2))
    assert rates(lambda module: super(type(module), module).configure_optimizers(), tmp_path) == seen.rates


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda module: [sgd(module), sgd(module)], r"one optimiser[\s\S]*returned 2"),
        (lambda module: torch.optim.LBFGS(module.parameters()), "LBFGS"),
        (lambda module: ([sgd(module), sgd(module)], []), "returned 2"),
    ],
)
def test_optimizers_that_the_step_cannot_use_are_refused(
    configure: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        rates(configure, tmp_path)


def test_configure_optimizers_replaced_on_the_module_itself(tmp_path: Path) -> None:
    module = wrapper()
    module.configure_optimizers = lambda: _two_lists(module)  # type: ignore[method-assign]
    seen = Rates()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False, callbacks=[seen]).fit(module, pairs(4, 2))
    assert seen.rates == [1.0, 1.0, 0.5, 0.5]
    module.configure_optimizers = lambda: [sgd(module), sgd(module)]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="one optimiser"):
        trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(module, pairs(4, 2))


def test_without_an_optimizer_nothing_moves(tmp_path: Path) -> None:
    module = own(lambda _: None)
    before = module.model.visual.proj.clone()  # type: ignore[union-attr, operator]
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(module, pairs(4, 2))
    assert torch.equal(before, module.model.visual.proj)  # type: ignore[arg-type]
    assert "train/lr" not in fit.callback_metrics


def test_a_run_without_an_end_needs_no_schedule_of_ours(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_epochs=-1, max_time={"seconds": 1}, enable_checkpointing=False)
    fit.fit(own(sgd), pairs(4, 2))
    assert fit.global_step > 2


class SaveAt(L.Callback):
    """A checkpoint after a step, in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    "configure", [_dict(interval="step", frequency=3), _dict(interval="epoch")], ids=["steps", "epochs"]
)
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_schedule_resumes(configure: Callable[[Any], Any], step: int, tmp_path: Path) -> None:
    """The curve after a resume is that of an uninterrupted run."""
    whole, rest = Rates(), Rates()
    quiet: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": False}
    save = SaveAt(step, tmp_path / "some.ckpt")
    trainer(tmp_path, callbacks=[whole, save], **quiet).fit(own(configure), pairs(8, 2))
    trainer(tmp_path, callbacks=[rest], **quiet).fit(own(configure), pairs(8, 2), ckpt_path=tmp_path / "some.ckpt")
    assert rest.rates == whole.rates[step:]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"gradient_clip_val": 0.5}, "max_grad_norm=0.5"),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, "on_before_optimizer_step"),
        ({"accumulate_grad_batches": 4}, "accumulate=4"),
    ],
)
def test_settings_of_automatic_optimisation_name_their_replacement(
    settings: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=advice):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False, **settings).fit(wrapper(), pairs(4, 2))
    trainer(tmp_path, **settings).validate(wrapper(), pairs(4, 2), verbose=False)


def test_the_replacements_work(tmp_path: Path) -> None:
    """`accumulate=2` on every module; `on_before_optimizer_step` sees the gradients that are applied."""
    norms: list[float] = []

    class Own(CustomCLIPWrapper):
        def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
            nn.utils.clip_grad_value_(self.parameters(), 1e-3)
            norms.append(max(float(p.grad.abs().max()) for p in self.parameters() if p.grad is not None))

    module = Own(*towers(), image_size=16, avg_word_embs=True, accumulate=2)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(module, custom_pairs(8, 2))
    assert fit.global_step == 2
    assert norms
    assert max(norms) <= 1e-3 + 1e-9


# ── stages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_test_logs_what_validation_does(tmp_path: Path) -> None:
    (validated,) = trainer(tmp_path).validate(wrapper(), pairs(6, 4), verbose=False)
    (tested,) = trainer(tmp_path).test(wrapper(), pairs(6, 4), verbose=False)
    assert {name.replace("val/", "test/"): value for name, value in validated.items()} == tested
    assert set(tested) >= {"test/loss", "test/image_to_text_R@1", "test/text_to_image_R@10"}


def test_several_dataloaders_are_scored_apart(tmp_path: Path) -> None:
    module, fit = wrapper(), trainer(tmp_path)
    fit.validate(module, [pairs(6, 3), pairs(3, 3)], verbose=False)
    for number, loader in enumerate((pairs(6, 3), pairs(3, 3))):
        (alone,) = trainer(tmp_path).validate(module, loader, verbose=False)
        found = {name: float(fit.callback_metrics[f"{name}/dataloader_idx_{number}"]) for name in alone}
        assert found == pytest.approx(alone)


def test_prediction_returns_features_of_unit_length(tmp_path: Path) -> None:
    module = wrapper()
    found: Any = trainer(tmp_path).predict(module, pairs(5, 2))
    assert [set(part) for part in found] == [{"image_features", "text_features"}] * 3
    images, ids = next(iter(pairs(5, 5)))
    with torch.no_grad():
        expected = module(images, ids)
    for name, features in zip(("image_features", "text_features"), expected, strict=True):
        joined = torch.cat([part[name] for part in found])
        torch.testing.assert_close(joined, features)
        torch.testing.assert_close(joined.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("form", ["images", "texts", "captions", "tuple of images", "dict of images"])
def test_prediction_of_one_side(form: str, tmp_path: Path) -> None:
    images, ids = next(iter(pairs(4, 4)))
    captions = [f"photo number {index}" for index in range(4)]
    data: Any = {
        "images": images,
        "texts": ids,
        "captions": captions,
        "tuple of images": [(image,) for image in images],
        "dict of images": [{"pixel_values": image} for image in images],
    }[form]
    module = wrapper()
    found: Any = trainer(tmp_path).predict(module, DataLoader(data, batch_size=2))
    side = "image_features" if "images" in form else "text_features"
    assert [set(part) for part in found] == [{side}, {side}]
    with torch.no_grad():
        expected = dict(zip(("image_features", "text_features"), module(images, ids), strict=True))[side]
    torch.testing.assert_close(torch.cat([part[side] for part in found]), expected)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return dict(yaml.safe_load(TINY_MODELS)["tiny-vit"])


def test_every_stage_works_on_lakeclips_data_module(pairs_lake: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    lake = open_lake(str(pairs_lake))
    data = PairDataModule(lake, batch_size=64, image_size=32, val_fraction=0.1)
    module = CLIPWrapper("tiny-vit", tiny)
    (validated,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    (tested,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert tested["test/loss"] == validated["val/loss"]
    found: Any = trainer(tmp_path).predict(module, datamodule=data)
    assert torch.cat([part["rows"] for part in found]).tolist() == list(range(len(lake)))
    assert sum(len(part["image_features"]) for part in found) == len(lake)
    without = PairDataModule(lake, batch_size=64, image_size=32)
    with pytest.raises(ConfigError, match=r"no rows to test on[\s\S]*val_fraction"):
        trainer(tmp_path).test(module, datamodule=without, verbose=False)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _losses(module: Any, loader: Any, folder: Path) -> list[float]:
    fit = trainer(folder, max_epochs=1, enable_checkpointing=False)
    fit.fit(module, loader, loader)
    return [float(fit.callback_metrics[name]) for name in ("train/loss", "val/loss")]


@pytest.mark.parametrize(
    "names",
    [("images", "texts"), ("image", "caption"), ("pixel_values", "input_ids"), (None, "captions")],
    ids=["dicts", "captions", "Hugging Face's names", "tuples of captions"],
)
def test_dicts_and_captions_are_batches_too(names: tuple[str | None, str], tmp_path: Path) -> None:
    images, ids = next(iter(pairs(4, 4)))
    captions = [f"photo number {index}" for index in range(4)]
    texts: Any = captions if "caption" in names[1] else ids
    rows = [
        (image, text) if names[0] is None else {names[0]: image, names[1]: text}
        for image, text in zip(images, texts, strict=True)
    ]
    assert _losses(wrapper(), DataLoader(rows, batch_size=4), tmp_path) == pytest.approx(  # type: ignore[arg-type]
        _losses(wrapper(), pairs(4, 4), tmp_path)
    )


def test_captions_for_own_towers_need_their_tokenizer(tmp_path: Path) -> None:
    rows = [(torch.rand(3, 16, 16), text) for text in ("red", "green", "blue", "white")]
    loader = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"cannot be tokenized[\s\S]*tokenizer=YOUR_TOKENIZER"):
        _losses(CustomCLIPWrapper(*towers(), image_size=16, avg_word_embs=True), loader, tmp_path)

    def short(texts: Any) -> Tensor:
        return tokenize(texts, 5) % 49

    module = CustomCLIPWrapper(*towers(), image_size=16, avg_word_embs=True, tokenizer=short)
    assert all(loss > 0 for loss in _losses(module, loader, tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"photo": torch.rand(3, 32, 32), "texts": torch.zeros(77)}, r"no images[\s\S]*photo, texts"),
        ({"images": torch.rand(3, 32, 32)}, "no texts"),
        (torch.rand(3, 32, 32), r"no texts[\s\S]*a tensor"),
        (("a.jpg", "a dog"), "images of a batch are not a tensor"),
    ],
)
def test_a_batch_of_another_form_is_described(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _losses(wrapper(), DataLoader([row] * 4, batch_size=2), tmp_path)  # type: ignore[list-item]


# ── precision, compilation, frozen parts ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("precision", "minibatch_size"),
    [
        ("bf16-true", None),
        ("16-true", 3),
        ("64-true", None),
        ("bf16-mixed", 3),
        pytest.param("bf16-true", 3, marks=pytest.mark.slow),
        pytest.param("16-true", None, marks=pytest.mark.slow),
        pytest.param("64-true", 3, marks=pytest.mark.slow),
        pytest.param("bf16-mixed", None, marks=pytest.mark.slow),
    ],
)
def test_precisions(precision: str, minibatch_size: int | None, tmp_path: Path) -> None:
    losses = {}
    for chosen in ("32-true", precision):
        fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False, precision=chosen)
        fit.fit(wrapper(minibatch_size=minibatch_size, lr=1e-3), pairs(8, 4), pairs(4, 2))
        losses[chosen] = [float(fit.callback_metrics[name]) for name in ("train/loss", "val/loss")]
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.1)


def test_states_of_bfloat16_weights_are_float32_and_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"precision": "bf16-true", "enable_checkpointing": False}
    whole, part, rest = (wrapper(lr=1e-2) for _ in range(3))
    fit = trainer(tmp_path, max_steps=4, **settings)
    fit.fit(whole, pairs(8, 4))
    states = fit.optimizers[0].state
    assert {value.dtype for state in states.values() for value in state.values()} == {torch.float32}

    trainer(tmp_path, max_steps=4, callbacks=[SaveAt(2, tmp_path / "two.ckpt")], **settings).fit(part, pairs(8, 4))
    trainer(tmp_path, max_steps=4, **settings).fit(rest, pairs(8, 4), ckpt_path=tmp_path / "two.ckpt")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


@pytest.fixture
def graphs() -> Iterator[list[Any]]:
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def custom(**settings: Any) -> CustomCLIPWrapper:
    torch.manual_seed(0)
    return CustomCLIPWrapper(*towers(), image_size=16, avg_word_embs=True, **settings)


def custom_pairs(num: int, batch: int) -> DataLoader[Any]:
    images = torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = [(image, torch.tensor([index + 1, 2])) for index, image in enumerate(images)]
    return DataLoader(rows, batch_size=batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("minibatch_size", [None, 2])
def test_a_compiled_module_trains_like_another(minibatch_size: int | None, graphs: list[Any], tmp_path: Path) -> None:
    """With towers of the user's own: the tests check the types of ours in a way that cannot be compiled."""

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    plain, compiled = custom(minibatch_size=minibatch_size), custom(minibatch_size=minibatch_size)
    results = []
    for module in (plain, torch.compile(compiled, backend=backend)):
        fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
        fit.fit(module, custom_pairs(8, 4), custom_pairs(4, 4))  # type: ignore[arg-type]
        results.append({name: float(value) for name, value in fit.callback_metrics.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    code = "\n".join(str(graph.code) for graph in graphs)
    assert "linear" in code, "the image tower is compiled"
    fit.save_checkpoint(tmp_path / "compiled.ckpt")
    again: Any = torch.compile(compiled, backend=backend)
    assert trainer(tmp_path).test(again, custom_pairs(4, 4), verbose=False)
    assert trainer(tmp_path).predict(again, custom_pairs(4, 4))
    loaded = lakeclip.load(tmp_path / "compiled.ckpt", model=custom().model, tokenize=tokenize).model
    torch.testing.assert_close(dict(loaded.state_dict()), dict(compiled.model.state_dict()))


@pytest.mark.parametrize("minibatch_size", [None, 3])
@pytest.mark.parametrize(
    "frozen",
    [
        ("logit_scale",),
        ("visual",),
        ("logit_scale", "visual"),
        ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"),
        ("visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"),
    ],
)
def test_what_is_frozen_stays(frozen: tuple[str, ...], minibatch_size: int | None, tmp_path: Path) -> None:
    module = wrapper(minibatch_size=minibatch_size, lr=1e-2, warmup_steps=0)
    with torch.no_grad():
        module.model.logit_scale.fill_(5.0)  # above the limit of a learned one
    for name in frozen:
        getattr(module.model, name).requires_grad_(False)
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(module, pairs(8, 4), pairs(4, 2))
    for name, value in module.model.named_parameters():
        assert value.requires_grad != any(name == part or name.startswith(f"{part}.") for part in frozen), name
        if not value.requires_grad:
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in module.model.named_parameters())


def test_a_frozen_scale_of_fine_tuning(tmp_path: Path) -> None:
    module = custom()
    module.model.logit_scale.requires_grad_(False)
    module.distillation_scale.requires_grad_(False)
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(module, custom_pairs(8, 4))
    assert float(module.model.logit_scale) == pytest.approx(2.6593, abs=1e-3)


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    module = wrapper()
    module.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(module, pairs(4, 2))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"max_epochs": 2, "overfit_batches": 1}, 2),
        ({"max_epochs": 1, "limit_train_batches": 0.5}, 2),
        ({"max_epochs": 1, "max_time": "00:00:01:00"}, 4),
        ({"max_epochs": 1, "inference_mode": False}, 4),
        ({"max_epochs": 1, "detect_anomaly": True}, 4),
        ({"max_epochs": 1, "val_check_interval": 0.5}, 4),
        ({"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, 8),
        (
            {
                "max_epochs": 1,
                "barebones": True,
                "logger": None,
                "enable_progress_bar": None,
                "enable_model_summary": None,
            },
            4,
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) and len(value) == 1 else str(value)[:40],
)
@pytest.mark.filterwarnings("ignore")
def test_other_settings_of_a_trainer(settings: dict[str, Any], steps: int, tmp_path: Path) -> None:
    fit = trainer_of(tmp_path, **settings)
    fit.fit(wrapper(), pairs(8, 2), pairs(4, 2))
    assert fit.global_step == steps


def trainer_of(folder: Path, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **settings})


def test_vocabulary_of_the_tests_is_clips() -> None:
    """Captions are tokenized for models with CLIP's vocabulary only."""
    assert wrapper().model.config.vocab_size == VOCAB_SIZE  # type: ignore[union-attr]
