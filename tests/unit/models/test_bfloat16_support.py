"""Tests of the speed of bfloat16 on processors and GPUs of every kind, and of what the user is told."""

from __future__ import annotations

import pytest

from lakeclip.config.schema import FinetuneConfig, FinetuneOptimizerConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.models import bfloat16_support as support_module
from lakeclip.models.bfloat16_support import (
    Bfloat16Support,
    bfloat16_support,
    cpu_flags,
    cpu_support,
    gpu_support,
    measure_ratio,
    measured_support,
    parse_cpuinfo,
    parse_sysctl,
    precision_warning,
)
from lakeclip.training.precision import auto_precision, precision_warnings, resolve_precision

HASWELL = ["fpu", "sse4_2", "fma", "avx", "f16c", "avx2", "bmi2"]
SKYLAKE_X = [*HASWELL, "avx512f", "avx512dq", "avx512bw", "avx512vl"]
ICE_LAKE = [*SKYLAKE_X, "avx512_vnni"]
COOPER_LAKE = [*ICE_LAKE, "avx512_bf16"]
SAPPHIRE_RAPIDS = [*COOPER_LAKE, "amx_tile", "amx_bf16", "amx_int8"]
CORTEX_A72 = ["fp", "asimd", "evtstrm", "aes", "crc32"]
GRAVITON_3 = [*CORTEX_A72, "sve", "i8mm", "bf16", "svebf16"]


@pytest.mark.parametrize(
    ("flags", "is_fast", "why"),
    [
        (HASWELL, False, "AVX2 but no bfloat16 instructions"),
        (["sse2"], False, "no bfloat16 instructions"),
        (SKYLAKE_X, False, "AVX-512 without avx512_bf16"),
        (ICE_LAKE, False, "two to three times as long"),
        (COOPER_LAKE, True, "avx512_bf16"),
        (SAPPHIRE_RAPIDS, True, "avx512_bf16"),
        ([*HASWELL, "amx_bf16"], True, "amx_bf16"),
        (CORTEX_A72, False, "no bfloat16 instructions"),
        ([*CORTEX_A72, "i8mm"], False, "no bfloat16 instructions"),
        (GRAVITON_3, True, "(bf16)"),
        ([*HASWELL, "avx_ne_convert"], None, "do not tell"),
        ([], None, "do not tell"),
    ],
)
def test_processors_are_decided_by_their_flags(flags: list[str], is_fast: bool | None, why: str) -> None:
    support = cpu_support(flags)
    assert support.is_fast is is_fast
    assert why in support.why


@pytest.mark.parametrize(
    ("capability", "is_fast"), [((6, 1), False), ((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_are_decided_by_their_generation(capability: tuple[int, int], is_fast: bool) -> None:
    support = gpu_support(capability, "Tesla")
    assert support.is_fast is is_fast
    assert support.why.startswith("Tesla")
    assert gpu_support(None).is_fast, "ROCm and MPS are not judged"


def test_unclear_processors_are_decided_by_a_measurement() -> None:
    assert measured_support(0.4, "x").is_fast
    slow = measured_support(55, "the flags do not tell")
    assert not slow.is_fast
    assert slow.why == "the flags do not tell, and a measured bfloat16 product takes 55 times as long as float32's"


def test_measurement_agrees_with_the_flags_of_this_machine() -> None:
    known = cpu_support(cpu_flags()).is_fast
    ratio = measure_ratio()
    assert ratio > 0
    if known is False:
        assert ratio > 1


def test_flags_are_read_from_the_system_s_lists() -> None:
    x86 = "processor\t: 0\nmodel name\t: AMD\nflags\t\t: fpu AVX2 fma\n\nprocessor\t: 1\nflags\t\t: other\n"
    assert parse_cpuinfo(x86) == {"fpu", "avx2", "fma"}
    assert parse_cpuinfo("processor: 0\nFeatures\t: fp asimd bf16 i8mm\n") == {"fp", "asimd", "bf16", "i8mm"}
    assert parse_cpuinfo("processor: 0\n") == frozenset()
    apple = "hw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.neon: 1\n"
    assert cpu_support(parse_sysctl(apple)).is_fast
    assert cpu_support(parse_sysctl(apple.replace("BF16: 1", "BF16: 0"))).is_fast is False
    assert "AVX2" in cpu_support(parse_sysctl("hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n")).why


def test_warning_names_the_right_flag() -> None:
    warning = precision_warning(cpu_support(HASWELL), "--precision bf16", "--precision 32", device="cpu")
    assert warning is not None
    assert warning.what.startswith("--precision bf16 is slow here: the processor has AVX2 but no bfloat16")
    assert warning.advice == "--precision 32"
    assert precision_warning(cpu_support(COOPER_LAKE), "x", "y", device="cpu") is None
    old = precision_warning(gpu_support((7, 5), "Tesla T4"), "--precision bf16", "--precision 32", device="gpu")
    assert old is not None
    assert "--precision 16" in old.advice


def test_auto_is_bfloat16_where_it_is_fast() -> None:
    assert auto_precision(cpu_support(SAPPHIRE_RAPIDS)) == "bf16"
    assert auto_precision(gpu_support((8, 0))) == "bf16"
    assert auto_precision(cpu_support(HASWELL)) == "32"
    assert auto_precision(gpu_support((7, 0))) == "32"


@pytest.fixture
def haswell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lakeclip read the flags of a processor with AVX2 only."""
    monkeypatch.setattr(support_module, "cpu_flags", lambda: frozenset(HASWELL))
    bfloat16_support.cache_clear()
    monkeypatch.setattr(support_module, "_LIMITS", ())


@pytest.mark.usefixtures("haswell")
def test_settings_that_compute_in_bfloat16_are_warned_about() -> None:
    try:
        trainer = TrainerConfig(accelerator="cpu", precision="bf16")
        (warning,) = precision_warnings(TrainConfig(trainer=trainer))
        assert warning.advice == "--precision 32"
        half = OptimizerConfig(text_weights="bf16")
        (warning,) = precision_warnings(TrainConfig(optimizer=half, trainer=TrainerConfig(accelerator="cpu")))
        assert warning.advice == "--text-weights 32"
        states = FinetuneOptimizerConfig(states="bf16")
        cpu = TrainerConfig(accelerator="cpu", precision="auto")
        assert precision_warnings(FinetuneConfig(optimizer=states, trainer=cpu)) == []
        assert resolve_precision(FinetuneConfig(trainer=cpu)).trainer.precision == "32"
        assert resolve_precision(TrainConfig(trainer=trainer)).trainer.precision == "bf16", "what was asked for"
    finally:
        bfloat16_support.cache_clear()


def test_limits_of_the_library_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_module, "cpu_flags", lambda: frozenset(COOPER_LAKE))
    monkeypatch.setattr(support_module, "measure_ratio", lambda: 55.0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bfloat16_support.cache_clear()
    try:
        support = bfloat16_support("cpu")
    finally:
        bfloat16_support.cache_clear()
    assert support == Bfloat16Support(
        False,
        "ONEDNN_MAX_CPU_ISA=AVX2 may switch the processor's instructions off, "
        "and a measured bfloat16 product takes 55 times as long as float32's",
    )
