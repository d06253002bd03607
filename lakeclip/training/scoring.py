"""Validation, test and prediction of a LightningModule that embeds pairs."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.batches import (
    as_pairs,
    default_tokenizer,
    has_captions,
    is_captions,
    read_batch,
    tokenize_captions,
)
from lakeclip.types import Tokenize

Stage = Literal["val", "test"]


class ScoredModule(L.LightningModule):
    """LightningModule that validates and tests by loss and retrieval, and predicts features.

    Subclasses define `embed` and `compute_loss`.

    Attributes:
        model: the towers.
        tokenizer: function from captions to token ids, for dataloaders that yield captions.
        accumulate: batches per step.
    """

    model: CLIP | DualEncoder
    tokenizer: Tokenize | None
    accumulate: int

    def __init__(self) -> None:
        super().__init__()
        #: Features of the pairs so far, by number of the dataloader.
        self._features: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def embed(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        """Return unit-length image and text features, each (batch, embed)."""
        raise NotImplementedError

    def compute_loss(
        self, images: Tensor, texts: Tensor, *, positive_ids: Tensor | None, local_only: bool = False
    ) -> Tensor:
        """Return the loss of image and text features."""
        raise NotImplementedError

    def pairs_of(self, batch: Any) -> Any:
        """Return a batch as (images, texts, …); see `batches.as_pairs`. Captions without a tokenizer are CLIP's."""
        if self.tokenizer is None and has_captions(batch, text_encoder=self.model):
            # From now on checkpoints record it.
            self.tokenizer = default_tokenizer(self.model)
        return as_pairs(batch, text_encoder=self.model, tokenize=self.tokenizer)

    # Lightning calls the steps through the wrapper of `torch.compile`, if the module is compiled. Their logging cannot
    # be compiled; `embed` is.

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss of a batch, and keep its features for retrieval over the whole split."""
        self._score(batch, "val", batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the same as in validation, as test/…"""
        self._score(batch, "test", batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the unit-length `image_features` and `text_features` of a batch, and its `rows` if it names them.

        A batch may have only images or only texts; the result then has only their features.
        """
        found: dict[str, Tensor] = self._predict(batch)
        return found

    def on_validation_epoch_end(self) -> None:
        """Log retrieval in both directions over all validation rows of all processes."""
        if self.accumulate > 1:
            self.log("step", float(self.trainer.global_step - 1))
        self._log_retrieval("val")

    def on_test_epoch_end(self) -> None:
        """Log retrieval in both directions over all test rows of all processes."""
        self._log_retrieval("test")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _score(self, batch: Any, stage: Stage, batch_idx: int, dataloader_idx: int) -> None:
        if batch_idx == 0:
            # An earlier pass that was interrupted may have left some.
            self._features[dataloader_idx] = []
        pairs = self.pairs_of(batch)
        image_features, text_features = self.embed(pairs[0], pairs[1])
        # Processes may hold a different number of rows here, so each compares within its own batch.
        loss = self.compute_loss(
            image_features, text_features, positive_ids=getattr(pairs, "positive_ids", None), local_only=True
        )
        self.log(f"{stage}/loss", loss, batch_size=len(image_features), on_epoch=True, sync_dist=True, prog_bar=True)
        self._features.setdefault(dataloader_idx, []).append((image_features.cpu(), text_features.cpu()))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _predict(self, batch: Any) -> dict[str, Tensor]:
        pairs = read_batch(batch, text_encoder=self.model)
        images, texts = pairs[0], pairs[1]
        if is_captions(texts):
            texts = tokenize_captions(texts, text_encoder=self.model, tokenize=self.tokenizer, device=self.device)
        found: dict[str, Tensor] = {}
        if images is not None and texts is not None:
            found["image_features"], found["text_features"] = self.embed(images, texts)
        elif images is not None:
            found["image_features"] = l2_normalize(self.model.encode_image(images))
        else:
            found["text_features"] = l2_normalize(self.model.encode_text(texts))
        rows = getattr(pairs, "rows", None)
        return found if rows is None else {**found, "rows": rows}

    def _log_retrieval(self, stage: Stage) -> None:
        features, self._features = self._features, {}
        everyone: list[Any] = [features]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, features)
        loaders = sorted({loader for part in everyone for loader in part})
        for loader in loaders:
            pairs = [pair for part in everyone for pair in part.get(loader, [])]
            images, texts = (torch.cat(side) for side in zip(*pairs, strict=True))
            scores = retrieval_metrics(images, texts, torch.arange(len(images)))
            # Lightning adds the same to the loss.
            suffix = f"/dataloader_idx_{loader}" if len(loaders) > 1 else ""
            for direction, ranks in (("image_to_text", scores.image_to_text), ("text_to_image", scores.text_to_image)):
                for k, recall in ranks.recall.items():
                    name = f"{stage}/{direction}_R@{k}{suffix}"
                    # Every process has the same value, so callbacks of each of them may monitor it.
                    self.log(name, recall, add_dataloader_idx=not suffix)
