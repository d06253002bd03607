"""Train on a dataloader of your own. Here it makes its pictures itself: squares of one colour, and the colour's name.

    python examples/own_dataloader.py

The one rule: item 0 of a batch is the images, item 1 the token ids. Images are uint8 as decoded, and the model
normalises them on its device; floating-point images are taken as normalised already.
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
    """1,024 noisy squares. Anything else will do as well: a database, a feed, a folder in a layout of its own."""

    def __len__(self) -> int:
        return 1_024

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name, colour = list(COLOURS.items())[index % len(COLOURS)]
        noise = torch.randint(-30, 31, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(index))
        image = (torch.tensor(colour)[:, None, None] + noise).clamp(0, 255).to(torch.uint8)
        return image, lakeclip.tokenize(f"a {name} square")[0]


# drop_last: a batch's loss compares its pairs with one another, so all batches should be equally large.
loader = DataLoader(Squares(), batch_size=64, shuffle=True, drop_last=True)
module = lakeclip.CLIPWrapper("ViT-Ti/4-32px")
lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(module, loader)

model = module.model.eval()
images = torch.stack([Squares()[index][0] for index in range(len(COLOURS))])
with torch.inference_mode():
    logits, _ = model(images, lakeclip.tokenize([f"a {name} square" for name in COLOURS]))
for name, best in zip(COLOURS, logits.argmax(dim=-1).tolist(), strict=True):
    print(f"{name}: {list(COLOURS)[best]}")
