"""Whole runs of `lakeclip finetune`: two towers and a whole CLIP, resumed, evaluated, and with what is kept."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTModel

import lakeclip
from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.cli.finetune import run
from lakeclip.config.schema import DataConfig, FinetuneConfig
from lakeclip.errors import LakeclipError
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.training.build import build_finetune_module, load_start
from tests import preloaded
from tests.integration.test_train import assert_same_weights, progress, start, stop_after, train_args


def finetune(*arguments: str) -> str:
    result = preloaded.run([preloaded.LAKECLIP, "finetune", *arguments], timeout=280)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "nothing but mistakes goes to a pipe"
    return result.stdout


def data(lake: Path, runs: Path, name: str) -> list[str]:
    return [
        *("--lake", str(lake), "--val-fraction", "0.1", "--batch-size", "16", "--num-workers", "0"),
        *("--runs", str(runs), "--name", name, "--accelerator", "cpu", "--max-epochs", "2"),
    ]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with its tokenizer and a vision model, as `save_pretrained` leaves them; small and random."""
    folder = tmp_path_factory.mktemp("hub")
    colours = ["a", "red", "blue", "green", "circle", "square", "triangle", "of", "photo", "on", "the", "and", "##s"]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *colours]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "words")
    BertModel(BertConfig(vocab_size=18, **sizes)).save_pretrained(folder / "words")
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder / "eyes")
    numbers = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    (folder / "eyes/preprocessor_config.json").write_text(json.dumps(numbers))
    return folder


@pytest.fixture(scope="module")
def pretrained(pairs_lake: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny CLIP."""
    runs = tmp_path_factory.mktemp("pretrained")
    main(train_args(pairs_lake, tiny_models, runs, "clip", "--max-epochs", "1"))
    return runs / "clip"


@pytest.mark.slow
def test_two_towers_by_name(pairs_lake: Path, hub: Path, tmp_path: Path) -> None:
    """They train with a teacher; the run can be evaluated, as its checkpoint holds tokenizer and architecture."""
    towers = ["--image-encoder", f"hf:{hub}/eyes", "--text-encoder", f"hf:{hub}/words"]
    said = finetune(*towers, *data(pairs_lake, tmp_path, "towers"), "--minibatch-size", "5")
    assert "report: " in said
    folder = tmp_path / "towers"
    loaded = load(folder)
    assert isinstance(loaded.model, DualEncoder)
    assert isinstance(loaded.tokenize, HuggingFaceTokenizer)
    assert loaded.transform.image_size == 32
    torch.testing.assert_close(loaded.model.image_mean, torch.tensor([0.5, 0.4, 0.3]))
    with torch.no_grad():
        features = loaded.model.encode_text(loaded.tokenize(["a red circle", "the blue squares"]))
        assert features.shape == (2, 32)
        assert loaded.model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 32)
    kept = read_checkpoint(folder).lineage["tokenizer"]
    assert kept["fingerprint"] == loaded.tokenize.fingerprint
    scores = tmp_path / "scores.json"
    test = ["--checkpoint", str(folder), "--lake", str(pairs_lake), "--json", str(scores)]
    main(["evaluate", "zeroshot", *test, "--label-column", "label"])
    assert json.loads(scores.read_text())["top1"] >= 0
    main(["evaluate", "retrieval", *test])
    original = AutoModel.from_pretrained(hub / "words").embeddings.word_embeddings.weight
    assert not torch.equal(loaded.model.text_encoder.embeddings.word_embeddings.weight, original)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--lora-rank", "4", "--lr", "1e-3"],
        ["--lock-image", "all"],
        ["--precision", "bf16", "--targets", "softmax", "--checkpointing", "on"],
    ],
)
@pytest.mark.slow
def test_a_whole_clip(more: list[str], pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    main(["finetune", "--from", f"lakeclip:{pretrained}", *data(pairs_lake, tmp_path, "tuned"), *more])
    before, after = load(pretrained).model.state_dict(), load(tmp_path / "tuned").model.state_dict()
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    if "--lock-image" in more:
        assert {name for name in before if name.startswith("visual.")} <= same
    else:
        assert "visual.transformer.resblocks.0.mlp.c_fc.weight" not in same
    assert "transformer.resblocks.1.attn.in_proj_weight" not in same


def test_weights_in_openais_layout(pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    """CLIP's users ask most often about this case: their own pairs, from half-precision weights."""
    weights = {name: value.half() for name, value in load(pretrained).model.state_dict().items()}
    torch.save(weights, tmp_path / "clip.pt")
    settings = ["--lr", "1e-4", "--weight-decay", "0.1", "--layer-decay", "0.8", "--targets", "none"]
    main(["finetune", "--from", f"openai:{tmp_path}/clip.pt", *data(pairs_lake, tmp_path, "tuned"), *settings])
    assert load(tmp_path / "tuned").transform.image_size == 32


def test_a_longer_context_is_trained_resumed_and_exported(pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    more = ["--context-length", "120", "--max-steps", "2", "--targets", "none"]
    main(["finetune", "--from", f"lakeclip:{pretrained}", *data(pairs_lake, tmp_path, "long"), *more])
    main(["finetune", "--resume", str(tmp_path / "long"), "--max-steps", "3"])
    loaded = load(tmp_path / "long")
    ids = loaded.tokenize(["a red circle " * 30])
    assert ids.shape == (1, 120)
    with torch.no_grad():
        expected = loaded.model.encode_text(ids)
        for layout in ("openai", "open_clip", "huggingface"):
            result = lakeclip.export(tmp_path / "long", to=layout, out=tmp_path / layout)
            read = load(f"{layout}:{result.path}")
            assert torch.equal(read.tokenize(["a red circle " * 30]), ids)
            torch.testing.assert_close(read.model.encode_text(ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    """Teacher, temperatures and LoRA weights are compared too."""
    start_words = ["--from", f"lakeclip:{pretrained}", "--lora-rank", "4", "--lr", "1e-3", "--max-epochs", "4"]
    more = [*start_words, "--val-every-steps", "50"]
    main(["finetune", *data(pairs_lake, tmp_path, "whole"), *more])
    code, output, errors = stop_after(35, signal.SIGINT, ["finetune", *data(pairs_lake, tmp_path, "cut"), *more])
    assert code == 130, output + errors
    assert f"lakeclip finetune --resume {tmp_path / 'cut'}" in output
    assert 0 < progress(tmp_path / "cut")["step"] < progress(tmp_path / "whole")["step"]
    main(["finetune", "--resume", str(tmp_path / "cut")])
    assert_same_learning(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_equal_one(pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    """Optimal transport and all gradients are computed over the global batch."""
    more = ["--from", f"lakeclip:{pretrained}", "--algorithm", "sgd", "--lr", "0.1", "--max-steps", "4"]
    finetune(*data(pairs_lake, tmp_path, "one"), *more)
    two = [*data(pairs_lake, tmp_path, "two"), *more, "--devices", "2", "--strategy", "ddp", "--minibatch-size", "3"]
    two[two.index("--batch-size") + 1] = "8"
    with start(["finetune", *two]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    assert_same_learning(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_train_two_towers(pairs_lake: Path, hub: Path, tmp_path: Path) -> None:
    """Every parameter gets a gradient, which DistributedDataParallel requires."""
    towers = ["--image-encoder", f"hf:{hub}/eyes", "--text-encoder", f"hf:{hub}/words", "--max-steps", "2"]
    with start(
        ["finetune", *data(pairs_lake, tmp_path, "two"), *towers, "--devices", "2", "--strategy", "ddp"]
    ) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors


def assert_same_learning(run: Path, other: Path) -> None:
    assert_same_weights(run, other)
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (run, other)]
    assert int(states[0]["teacher.steps"]) == int(states[1]["teacher.steps"]) > 0
    for name in ("distillation_scale", "teacher.model.logit_scale", "teacher.model.text_projection"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_forgetting_is_scored_and_the_best_mix_saved(pairs_lake: Path, pretrained: Path, tmp_path: Path) -> None:
    keep = ["--keep-lake", str(pairs_lake), "--keep-label-column", "label", "--keep-rows", "40"]
    start = ["--from", f"lakeclip:{pretrained}", "--lr", "1e-3"]
    said = finetune(*start, *data(pairs_lake, tmp_path, "kept"), *keep)
    folder = tmp_path / "kept"
    found = json.loads((folder / "forgetting.json").read_text())
    assert [mix[0] for mix in found["mixes"]] == [pytest.approx(step / 10) for step in range(11)]
    # No new weights are those of the start, and all of them those of the end.
    assert found["mixes"][0][2] == pytest.approx(found["before"])
    assert "checkpoints/mixed.ckpt" in said
    start_weights, end = load(pretrained).model.state_dict(), load(folder / "checkpoints/last.ckpt").model.state_dict()
    mixed = load(folder / "checkpoints/mixed.ckpt").model.state_dict()
    for name, value in mixed.items():
        expected = start_weights[name].lerp(end[name], found["best"])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row for row in csv.DictReader(file) if row.get("val/kept_top1")], "scored during training too"
    assert "Interpolation between old and new weights" in (folder / "report.html").read_text()


def test_the_seed_determines_a_tower_from_scratch(pairs_lake: Path, hub: Path) -> None:
    config = FinetuneConfig(
        image_encoder="lakeclip:ViT-Ti/4-32px",
        text_encoder=f"hf:{hub}/words",
        data=DataConfig(lake=str(pairs_lake), batch_size=8, num_workers=0),
    )
    one, other = (build_finetune_module(config, load_start(config)).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--from", "openai:missing.pt"], "no weights at missing.pt"),
        (["--from", "closedai:x.pt"], "openai:FILE"),
        (["--image-encoder", "tim:x"], "timm:NAME"),
        (["--lock-image", "99", "--from", "CLIP"], "99 lower layers"),
        (["--keep-lake", "x.lake"], "--keep-label-column"),
        (["--strategy", "fsdp2"], "fsdp2"),
        (["--small-images", "16:0.5"], "one image size"),
        (["--epsilon", "0"], "epsilon"),
        (["--lora-rank", "0"], "lora_rank"),
        (["--context-length", "99"], "a context of their own"),
        (["--from", "CLIP", "--context-length", "2"], "8 to 4096"),
    ],
)
def test_invalid_flags_are_refused_before_the_run(
    words: list[str], what: str, pairs_lake: Path, pretrained: Path, hub: Path, tmp_path: Path
) -> None:
    words = [f"lakeclip:{pretrained}" if word == "CLIP" else word for word in words]
    towers = ["--text-encoder", f"hf:{hub}/words", *data(pairs_lake, tmp_path, "x")]
    with pytest.raises(LakeclipError, match=what):
        run([*towers, *words])
    assert not (tmp_path / "x").exists(), "nothing is made before the mistake is found"


@pytest.mark.slow
def test_a_fine_tuning_is_repeated_to_the_same_weights(
    pairs_lake: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has a teacher and LoRA. A repetition from other initial weights is refused."""
    start = tmp_path / "clip"
    shutil.copytree(pretrained, start)
    tuned = ["finetune", "--from", f"lakeclip:{start}", "--lora-rank", "4", *data(pairs_lake, tmp_path, "tuned")]
    main([*tuned, "--max-steps", "6"])
    capsys.readouterr()
    main(["finetune", "--repeat", str(tmp_path / "tuned"), "--name", "again"])
    assert "identical, bit for bit" in capsys.readouterr().out
    shutil.copy(start / "checkpoints/last.ckpt", start / "checkpoints/best.ckpt")
    content = torch.load(start / "checkpoints/best.ckpt", weights_only=True)
    content["state_dict"]["model.logit_scale"] += 1
    torch.save(content, start / "checkpoints/best.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--repeat", str(tmp_path / "tuned"), "--name", "other"])
    assert stopped.value.code == 2
    assert "the weights that it started from have changed" in capsys.readouterr().err
