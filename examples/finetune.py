"""Bring a pretrained image tower and a pretrained text tower together on a folder of pairs.

    pip install -e '.[backbones]'
    python examples/finetune.py my-photos

Any module that turns images into features will do for the first, any Hugging Face `AutoModel` with its tokenizer for
the second. `lakeclip finetune` does the same from the command line.
"""

from __future__ import annotations

import sys

import lightning
import torch
from torchvision.models import resnet50
from transformers import AutoModel, AutoTokenizer

import lakeclip

TEXT_MODEL = "johngiorgi/declutr-sci-base"

tokenizer = AutoTokenizer.from_pretrained(TEXT_MODEL)
data = lakeclip.TextImageDataModule(sys.argv[1], batch_size=64, custom_tokenizer=tokenizer)

# avg_word_embs: a text is the mean of its words' vectors. A linear head takes the image features to the same width.
module = lakeclip.CustomCLIPWrapper(
    resnet50(weights="DEFAULT"), AutoModel.from_pretrained(TEXT_MODEL), minibatch_size=16, avg_word_embs=True
)
lightning.Trainer(max_epochs=1).fit(module, data)

# The pair, ready to encode: unit-length features of both sides lie near one another where image and text agree.
model = module.model.eval()
with torch.inference_mode():
    features = model.encode_text(tokenizer(["a dog on a beach", "two children"], padding=True, return_tensors="pt"))
print(f"{len(features)} texts as vectors of {features.shape[1]} numbers")
