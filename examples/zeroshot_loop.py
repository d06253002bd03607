"""Score a model zero-shot on a labelled lake in a loop of your own: what `lakeclip evaluate zeroshot` does, opened up.

    python examples/zeroshot_loop.py runs/first shards.lake label

Take it where the score is not the end: to keep the images that are taken for another class, to weigh classes, or to
use another rule than the nearest text. Here it prints the mistakes that the model is surest of.
"""

from __future__ import annotations

import sys

import torch

import lakeclip
from lakeclip.evaluation.encode import encode_images
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.zeroshot import classifier_weights

checkpoint, path, column = sys.argv[1:]
model, tokenize, transform = lakeclip.load(checkpoint)
lake = lakeclip.open_lake(path, query=f"{column} != ''")
labels = read_labels(lake, column)

# One unit vector a class: the mean of its sentences. One unit vector an image; what cannot be decoded is left out.
weights = classifier_weights(model, tokenize, labels.classes, find_templates("openai-7").templates)
images = encode_images(model, lake, transform, positions=labels.positions, with_captions=False)
target_of = dict(zip(labels.positions, labels.targets, strict=True))
targets = torch.tensor([target_of[position] for position in images.positions])

logits = model.logit_scale.detach().exp() * images.features @ weights.T
confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
right = predicted == targets
print(f"{right.float().mean():.1%} of {len(targets)} images right; chance is {1 / len(labels.classes):.1%}")

for place in confidence.masked_fill(right, 0).argsort(descending=True)[:5].tolist():
    if not right[place]:
        true, taken = labels.classes[targets[place]], labels.classes[predicted[place]]
        row = lake.base_rows([images.positions[place]])[0]
        print(f"row {row}: {true} taken for {taken}, {confidence[place]:.0%} sure")
