"""Peak memory of the losses beyond the features, measured in a subprocess."""

from __future__ import annotations

import subprocess
import sys

import pytest

BATCH, EMBED = 8192, 64
MATRIX_MIB = BATCH**2 * 4 / 2**20

MEASURE = f"""
import re, torch
from torch.nn import functional as F
from lakeclip.losses import contrastive_loss, sigmoid_loss

def mib(name):
    return int(re.findall(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[0]) / 1024

def step(batch):
    images, texts = (F.normalize(torch.randn(batch, {EMBED}), dim=-1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (2.6, -10.0))
    positive_ids = torch.randint(1, batch, (batch, 2))
    before = mib("VmRSS")
    LOSS.backward()
    return mib("VmHWM") - before

step(64)  # warm-up: what is loaded once does not count
print(step({BATCH}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "loss",
    [
        "contrastive_loss(images, texts, scale)",
        "contrastive_loss(images, texts, scale, positive_ids=positive_ids, label_smoothing=0.1)",
        "sigmoid_loss(images, texts, scale, bias, positive_ids=positive_ids)",
    ],
)
@pytest.mark.slow
def test_the_full_logit_matrix_is_never_in_memory(loss: str) -> None:
    """The dense logits take 256 MiB, and a dense loss with its gradient several times that."""
    code = MEASURE.replace("LOSS", loss)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < MATRIX_MIB / 4
