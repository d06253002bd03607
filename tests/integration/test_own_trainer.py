"""Runs in a user's own Trainer, on an own dataloader and with own towers: saved, loaded, scored, reported, resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lakeclip
from lakeclip.checkpoints.native import LoadedModel
from lakeclip.cli.app import main
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError
from lakeclip.lake.dataset import open_lake
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import CLIPWrapper
from tests.integration.processes import run_on_processes
from tests.unit.checkpoints.test_save_load import Texts
from tests.unit.training.test_module import CONFIGS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|LeafSpec|not empty|not resumable|.*ckpt_path)"
)

SIDE = 32


def hashed(texts: Any) -> Tensor:
    """A tokenizer of the user's own: a function, whose ids only the user can make again."""
    words = [[1 + sum(word.encode()) % 49 for word in text.split()][:6] for text in texts]
    return torch.tensor([row + [0] * (6 - len(row)) for row in words])


def own_module(**settings: Any) -> CustomCLIPWrapper:
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 8))
    return CustomCLIPWrapper(image, Texts(), image_size=SIDE, avg_word_embs=True, kl_coeff=0.0, **settings)


def clip_module(**settings: Any) -> CLIPWrapper:
    torch.manual_seed(0)
    return CLIPWrapper("tiny-vit", CONFIGS["tiny-vit"], **settings)


@pytest.fixture(scope="module")
def rows(pairs_lake: Path) -> list[tuple[Tensor, str]]:
    """Images and captions, as a user's own dataset has them."""
    transform = EvalTransform(SIDE)
    return [(transform(row.image), row.captions[0]) for row in open_lake(str(pairs_lake)).read(list(range(16)))]


def loader(rows: list[tuple[Tensor, str]], tokenize: Any) -> DataLoader[Any]:
    if tokenize is None:
        return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    ids = tokenize([caption for _, caption in rows])
    return DataLoader([(image, part) for (image, _), part in zip(rows, ids, strict=True)], batch_size=4)  # type: ignore[arg-type]


def fit(module: Any, data: DataLoader[Any], folder: Path, *, epochs: int = 2, resume: Path | None = None) -> L.Trainer:
    """Train as a user does; what remains is a folder with metrics.csv and checkpoints/."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[ModelCheckpoint(folder / "checkpoints", monitor="val/loss", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data, data, ckpt_path=resume)
    return trainer


def scored(model: Any, lake: Path) -> tuple[float, float]:
    labelled = lakeclip.evaluate_zeroshot(model, lake, label_column="label")
    retrieval = lakeclip.evaluate_retrieval(model, lake)
    return labelled.top1, retrieval.image_to_text.recall[1]


def test_own_towers_on_an_own_dataloader(
    rows: list[tuple[Tensor, str]], pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = own_module()
    fit(module, loader(rows, hashed), tmp_path)
    file = tmp_path / "checkpoints" / "last.ckpt"

    for use in (
        lambda: lakeclip.load(file),
        lambda: lakeclip.evaluate_retrieval(file, pairs_lake),
        lambda: lakeclip.make_report(tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"Sequential and Texts[\s\S]*model=YOUR_MODEL") as error:
            use()
        assert error.value.allowed
    with pytest.raises(CheckpointError, match="tokenize=YOUR_TOKENIZER"):
        lakeclip.load(file, model=own_module().model)

    loaded = lakeclip.load(file, model=own_module().model, tokenize=hashed)
    images = torch.stack([image for image, _ in rows])
    module.eval()
    torch.testing.assert_close(loaded.model.encode_image(images), module.model.encode_image(images))
    assert all(0 <= score <= 1 for score in scored(loaded, pairs_lake))

    test = lakeclip.evaluation.run.ZeroShotTest("Shapes", str(pairs_lake), "label")  # type: ignore[attr-defined]
    report = lakeclip.make_report(file, [test], model=loaded)
    assert report.page == tmp_path / "report.html"
    page = report.page.read_text()
    assert "own dataloader" in page
    assert "val/loss" in (tmp_path / "metrics.csv").read_text()

    capsys.readouterr()
    main(["inspect", str(file)])
    assert "model=YOUR_MODEL" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("make", [own_module, clip_module], ids=["own towers", "CLIP"])
def test_a_run_in_an_own_trainer_resumes(make: Any, rows: list[tuple[Tensor, str]], tmp_path: Path) -> None:
    """ModelCheckpoint's file leads to the same weights as without the interruption."""
    tokenize = hashed if make is own_module else lakeclip.tokenize
    whole, second = make(), make()
    data = loader(rows, tokenize)
    fit(whole, data, tmp_path / "whole", epochs=3)

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        default_root_dir=tmp_path,
        logger=False,
        callbacks=[ModelCheckpoint(tmp_path / "cut", save_last=True), Stop()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(make(), data, data)
    resumed = fit(second, data, tmp_path / "rest", epochs=3, resume=tmp_path / "cut" / "last.ckpt")
    assert resumed.global_step == 12
    assert second.samples_seen == whole.samples_seen == 48
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("captions", [True, False], ids=["captions", "ids"])
def test_a_recorded_tokenizer_needs_no_argument(
    captions: bool, rows: list[tuple[Tensor, str]], pairs_lake: Path, tmp_path: Path
) -> None:
    """Captions are tokenized by CLIP's tokenizer; for ids the module says by which they were made."""
    module = clip_module() if captions else clip_module(tokenizer=lakeclip.tokenize)
    fit(module, loader(rows, None if captions else lakeclip.tokenize), tmp_path)
    file = tmp_path / "checkpoints" / "last.ckpt"
    expected = scored(LoadedModel(module.model.eval(), lakeclip.load(file).tokenize, EvalTransform(SIDE)), pairs_lake)
    assert scored(file, pairs_lake) == expected
    assert lakeclip.make_report(tmp_path).page.is_file()
    assert lakeclip.export(file, to="open_clip", out=tmp_path / "exported").path.exists()


def test_ids_of_an_unknown_tokenizer(rows: list[tuple[Tensor, str]], pairs_lake: Path, tmp_path: Path) -> None:
    fit(clip_module(), loader(rows, lakeclip.tokenize), tmp_path)
    file = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match=r"tokenizer is unknown[\s\S]*tokenize=YOUR_TOKENIZER"):
        scored(file, pairs_lake)
    loaded = lakeclip.load(file, tokenize=lakeclip.tokenize)
    assert all(0 <= score <= 1 for score in scored(loaded, pairs_lake))
    assert lakeclip.make_report(tmp_path, model=loaded).card.is_file()
    saved = lakeclip.save(loaded.model, tmp_path / "saved.ckpt", tokenizer=lakeclip.tokenize)
    assert scored(saved, pairs_lake) == scored(loaded, pairs_lake)


def test_own_towers_on_lakeclips_data_module(pairs_lake: Path, tmp_path: Path) -> None:
    """The lineage has the data, so the report has retrieval on the rows that training never saw."""
    data = lakeclip.DeepLakeDataModule(
        str(pairs_lake), batch_size=16, image_size=SIDE, val_fraction=0.2, custom_tokenizer=hashed
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        callbacks=[ModelCheckpoint(tmp_path / "checkpoints", filename="only")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = own_module()
    trainer.fit(module, data)
    loaded = lakeclip.load(tmp_path, model=own_module().model, tokenize=hashed)
    report = lakeclip.make_report(tmp_path, model=loaded)
    assert report.retrieval is not None
    assert "Rows that training never saw" in report.page.read_text()


def test_a_model_with_other_settings_is_refused(rows: list[tuple[Tensor, str]], tmp_path: Path) -> None:
    """Its weights fit, but it would prepare images and pool texts in another way."""
    fit(own_module(image_mean=(0.5, 0.5, 0.5)), loader(rows, hashed), tmp_path, epochs=1)
    file = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match=r"other settings[\s\S]*image_mean"):
        lakeclip.load(file, model=own_module().model, tokenize=hashed)
    model = own_module(image_mean=(0.5, 0.5, 0.5)).model
    model.average_word_embeddings = False  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="average_word_embeddings False, not True"):
        lakeclip.load(file, model=model, tokenize=hashed)
    assert lakeclip.load(file, model=own_module(image_mean=(0.5, 0.5, 0.5)).model, tokenize=hashed)


def test_a_folder_with_several_checkpoints_names_them(rows: list[tuple[Tensor, str]], tmp_path: Path) -> None:
    fit(clip_module(tokenizer=lakeclip.tokenize), loader(rows, lakeclip.tokenize), tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").rename(folder / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"several checkpoints[\s\S]*a\.ckpt"):
        lakeclip.load(tmp_path)
    (folder / "a.ckpt").unlink()
    assert lakeclip.load(tmp_path).model


def test_compiled_parts_are_saved_under_their_plain_names(rows: list[tuple[Tensor, str]], tmp_path: Path) -> None:
    module = own_module()
    module.model.image_encoder = torch.compile(module.model.image_encoder, backend="eager")  # type: ignore[union-attr, assignment]
    fit(module, loader(rows, hashed), tmp_path, epochs=1)
    loaded = lakeclip.load(tmp_path, model=own_module().model, tokenize=hashed)
    image = EvalTransform(SIDE)(Image.new("RGB", (40, 40), "red"))[None]
    module.eval()
    torch.testing.assert_close(loaded.model.encode_image(image), module.model.encode_image(image))


def _train_rank(rank: int, world: int, folder: str) -> None:
    """One of two processes of a user's DDP run, each with half of every batch of ids."""
    images = torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, lakeclip.tokenize([f"photo {number}" for number in range(16)]))
    save = ModelCheckpoint(Path(folder) / "checkpoints", monitor="val/image_to_text_R@1", mode="max", save_last=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}

    class Own(CLIPWrapper):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9)
            return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val/loss"}

    torch.manual_seed(0)
    module = Own("tiny-vit", CONFIGS["tiny-vit"], tokenizer=lakeclip.tokenize)
    module.model.logit_scale.requires_grad_(False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        plugins=[LightningEnvironment()],
        max_epochs=2,
        logger=False,
        callbacks=[save],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data, batch_size=4)
    trainer.fit(module, loader, loader)
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2.5e-4)
    torch.save(module.model.state_dict(), Path(folder) / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Weights stay equal, and both processes have the metric that a checkpoint is kept by."""
    run_on_processes(_train_rank, 2, tmp_path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert lakeclip.load(tmp_path / "checkpoints" / "last.ckpt").model
