"""Evaluate a model zero-shot on a labelled lake in your own loop, as `lakeclip evaluate zeroshot` does internally.

    python examples/zeroshot_loop.py runs/first shards.lake label

Start from this example if you need more than the score, for instance to collect misclassified images, to weight
classes, or to use another rule than the nearest text. It prints the most confident mistakes.
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

# One unit vector per class, the mean of its prompts, and one per image. Images that cannot be decoded are skipped.
weights = classifier_weights(model, tokenize, labels.classes, find_templates("openai-7").templates)
images = encode_images(model, lake, transform, positions=labels.positions, with_captions=False)
target_of = dict(zip(labels.positions, labels.targets, strict=True))
targets = torch.tensor([target_of[position] for position in images.positions])

logits = model.logit_scale.detach().exp() * images.features @ weights.T
confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
correct = predicted == targets
print(f"{correct.float().mean():.1%} of {len(targets)} images correct; chance is {1 / len(labels.classes):.1%}")

for index in confidence.masked_fill(correct, 0).argsort(descending=True)[:5].tolist():
    if not correct[index]:
        label, prediction = labels.classes[targets[index]], labels.classes[predicted[index]]
        row = lake.base_rows([images.positions[index]])[0]
        print(f"row {row}: {label} predicted as {prediction}, confidence {confidence[index]:.0%}")
