"""Fine-tune a pretrained image tower and a pretrained text tower together on a folder of pairs.

    pip install -e '.[backbones]'
    python examples/finetune.py my-photos

The image tower may be any module from images to features, the text tower any Hugging Face `AutoModel` with its
tokenizer. `lakeclip finetune` does the same from the command line.
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

# With avg_word_embs, a text's feature is the mean of its token embeddings. A linear head maps the image features to the
# same width.
module = lakeclip.CustomCLIPWrapper(
    resnet50(weights="DEFAULT"), AutoModel.from_pretrained(TEXT_MODEL), minibatch_size=16, avg_word_embs=True
)
lightning.Trainer(max_epochs=1).fit(module, data)

# The trained model is ready to encode. Normalised features of matching images and texts are close to each other.
model = module.model.eval()
with torch.inference_mode():
    features = model.encode_text(tokenizer(["a dog on a beach", "two children"], padding=True, return_tensors="pt"))
print(f"{len(features)} texts as vectors of {features.shape[1]} numbers")
