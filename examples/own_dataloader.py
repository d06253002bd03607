"""Train on your own dataloader. This one generates squares of one colour, each with the colour's name as its caption.

    python examples/own_dataloader.py

The only rule is that item 0 of a batch is the images and item 1 the token ids. The model normalises uint8 images on its
device; it takes floating-point images as already normalised.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lakeclip

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 210), "white": (240, 240, 240)}
SIZE = 32


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of 1,024 noisy squares; replace it by a database, a stream or any folder layout."""

    def __len__(self) -> int:
        return 1_024

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name, colour = list(COLOURS.items())[index % len(COLOURS)]
        noise = torch.randint(-30, 31, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(index))
        image = (torch.tensor(colour)[:, None, None] + noise).clamp(0, 255).to(torch.uint8)
        return image, lakeclip.tokenize(f"a {name} square")[0]


# The loss compares the pairs of a batch with each other, so drop_last keeps all batches equally large.
loader = DataLoader(Squares(), batch_size=64, shuffle=True, drop_last=True)
module = lakeclip.CLIPWrapper("ViT-Ti/4-32px")
lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(module, loader)

model = module.model.eval()
images = torch.stack([Squares()[index][0] for index in range(len(COLOURS))])
with torch.inference_mode():
    logits, _ = model(images, lakeclip.tokenize([f"a {name} square" for name in COLOURS]))
for name, best in zip(COLOURS, logits.argmax(dim=-1).tolist(), strict=True):
    print(f"{name}: {list(COLOURS)[best]}")
