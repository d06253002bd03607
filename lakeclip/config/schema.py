"""The configuration, as dataclasses: what a recipe may say and what the flags are made from.

Nothing here imports torch, so `lakeclip train --help` answers at once. Precedence: default < recipe < flag.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from lakeclip.errors import ConfigError

# `__pydantic_config__` is read in `load.py`: a recipe with a key that is not a field is refused.


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name} cannot be {value}", allowed=allowed)


@dataclass(frozen=True)
class ModelConfig:
    """One CLIP model, by the argument names of OpenAI's constructor (and of the YAML files in `models/configs`).

    A `vision_patch_size` makes the image tower a vision transformer with `vision_layers` blocks; without one it is the
    modified ResNet, and `vision_layers` counts the bottlenecks of its four stages. Image attention heads are 64 wide.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int


@dataclass(frozen=True)
class DataConfig:
    """Where the pairs come from and how they become batches."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lake: str | None = None
    """Deep Lake dataset with the training pairs (a path, s3://…, hub://…). Several with their shares of every batch,
    --lake a.lake:0.7 --lake b.lake:0.3, are mixed; in a recipe, `a.lake:0.7 + b.lake:0.3`."""
    folder: str | None = None
    """Folder of pairs instead of a lake: images and .txt captions that share a stem."""
    val_lake: str | None = None
    """Lake to validate on. Without it, a share of the training rows is held out (--val-fraction)."""
    val_fraction: float = 0.02
    """Share of rows held out for validation by a stable hash of the row; 0 for none."""
    max_val_rows: int = 5000
    """Score at most this many validation rows: every row is compared with every other."""
    query: str | None = None
    """Which rows to train on: the WHERE clause of a Deep Lake query, e.g. "width > 200", or a SELECT of rows."""
    filter_nsfw: bool = False
    """Only rows that are safe by their NSFW column: NSFW == 'UNLIKELY', in the column's own spelling."""
    weights: str | None = None
    """How often to draw each row: a column, or an expression over columns. Default: each once an epoch."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    caption_column: str | None = None
    """Column with the captions; several, with commas between them, are joined. Default: found by its name and type."""
    caption_template: str | None = None
    """Captions made from columns, e.g. "a photo of {label}, {text}"."""
    same_by: tuple[str, ...] = ()
    """Rows that share any of these are right answers for each other: `image`, `caption`, or columns of the lake."""
    mark_unusable: bool = False
    """After the run, mark in the lake the rows that could not be used (column `unusable`), for later runs to skip."""
    batch_size: int = 256
    """Pairs per device and step."""
    image_size: int | None = None
    """Side of the square crop in pixels. Default: the model's."""
    small_images: str | None = None
    """Smaller images first (CLIPA): "112:0.6" for 112 pixels in the first 60% of the run, "112:0.4 160:0.4" for two."""
    resize_ratio: float = 0.75
    """Smallest share of the image's area that the random square crop may keep; 1 for the largest square."""
    shuffle: bool = True
    """Visit the rows in a new order each epoch."""
    num_workers: int = 2
    """Processes that read and decode, per device; 0 to do it in the training process."""
    seed: int = 0
    """Seed of the sample order, the crops and the initial weights."""

    def __post_init__(self) -> None:
        _require("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _require("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "0 (none) up to 1")
        _require("max_val_rows", self.max_val_rows, self.max_val_rows >= 1, "at least 1")
        _require("resize_ratio", self.resize_ratio, 0 < self.resize_ratio <= 1, "above 0, up to 1")
        _require("num_workers", self.num_workers, self.num_workers >= 0, "0 or more")
        _require("image_size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay on a warm-up and cosine schedule. Unset values are the paper's for the model."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lr: float | None = None
    """Peak learning rate."""
    betas: tuple[float, float] | None = None
    """Adam's running-average coefficients."""
    eps: float | None = None
    """Adam's denominator term."""
    weight_decay: float = 0.2
    """Decay of every weight that is not a gain or a bias."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. Default: the paper's 2,000, or a tenth of the run where that is less."""

    states: Literal["32", "bf16", "8bit"] = "32"
    """Bits of Adam's running averages: float32, bfloat16 rounded stochastically, or 8 bits a block (torchao), which
    follow too slowly where beta2 is 0.999, as for ResNets."""
    text_weights: Literal["32", "bf16"] = "32"
    """The text tower's weights: float32, or bfloat16 rounded stochastically, as in the paper. That tower then computes
    in bfloat16 under any precision."""
    max_grad_norm: float | None = None
    """Scale gradients down to this norm over all parameters. Default: as they are."""
    ema_decay: float | None = None
    """Keep an average of the weights that decays by this a step; validation, best and last checkpoints use it."""

    def __post_init__(self) -> None:
        _require("max_grad_norm", self.max_grad_norm, self.max_grad_norm is None or self.max_grad_norm > 0, "above 0")
        _require("ema_decay", self.ema_decay, self.ema_decay is None or 0 <= self.ema_decay < 1, "0 up to, not with, 1")
        _require("lr", self.lr, self.lr is None or self.lr > 0, "above 0")
        _require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("warmup_steps", self.warmup_steps, (self.warmup_steps or 0) >= 0, "0 or more")
        _require("eps", self.eps, self.eps is None or self.eps > 0, "above 0")
        _require("betas", self.betas, all(0 <= beta < 1 for beta in self.betas or ()), "two numbers from 0 up to 1")


@dataclass(frozen=True)
class LossConfig:
    """What the two towers are asked to agree on."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    objective: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax: pick each other out of the global batch (CLIP). Sigmoid: tell each pair on its own (SigLIP)."""
    label_smoothing: float = 0.0
    """Share of the softmax's answer that is spread evenly over the batch."""

    def __post_init__(self) -> None:
        allowed = "0 (none) up to, not with, 1"
        _require("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, allowed)
        fits = self.objective == "softmax" or not self.label_smoothing
        _require("label_smoothing", self.label_smoothing, fits, "0 with the sigmoid, which has no batch to spread over")


@dataclass(frozen=True)
class TrainerConfig:
    """How long, on what, and what is kept."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_epochs: int = 32
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many steps, even within an epoch; the schedule ends there too."""
    minibatch_size: int | None = None
    """Embed at most this many pairs at once, for the same gradients in less memory. Default: the whole batch."""
    accumulate: int = 1
    """Add up the gradients of this many batches before a step. Each batch is compared within itself."""
    patch_dropout: float = 0.0
    """Leave out this share of each image's patches in training (FLIP), for vision transformers."""
    checkpointing: Literal["off", "selective", "on"] = "off"
    """Activations computed again instead of kept: none, those between matrix products, or all inside a block."""
    compile: bool = False
    """Compile the image tower: faster steps, after a minute or so at the start, which is shown."""
    max_skipped: int = 3
    """Skip a step whose loss or gradient is not finite or far off; after so many in a row go back to good weights."""
    precision: Literal["32", "16", "bf16"] = "32"
    """Arithmetic: full, float16 with loss scaling, or bfloat16."""
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"] = "auto"
    """Hardware to train on."""
    devices: int | None = None
    """How many of them. Default: all there are; one on the CPU."""
    num_nodes: int = 1
    """Machines in the run."""
    strategy: str = "auto"
    """Lightning's name of the parallel strategy: auto, ddp, …"""
    val_every_steps: int | None = None
    """Validate every this many steps. Default: at the end of each epoch."""
    save_every_minutes: float = 15.0
    """Write a checkpoint at least so often; also each epoch, after each validation, and when asked to stop."""
    save_every_steps: int | None = None
    """Write one every this many steps as well."""
    keep_last: int = 1
    """Keep so many of them: last.ckpt, and the ones before as step-….ckpt."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the curves go besides metrics.csv: tensorboard, wandb, mlflow, each where it is installed."""
    runs: str = "runs"
    """Folder that holds the runs."""
    name: str | None = None
    """Name of this run's folder. Default: the model and the time."""

    def __post_init__(self) -> None:
        _require("patch_dropout", self.patch_dropout, 0 <= self.patch_dropout < 1, "0 (none) up to, not with, 1")
        counts = ("max_epochs", "max_steps", "minibatch_size", "accumulate", "max_skipped", "devices", "num_nodes")
        _require("save_every_minutes", self.save_every_minutes, self.save_every_minutes > 0, "above 0")
        for name in (*counts, "val_every_steps", "save_every_steps", "keep_last"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """Scores that are taken while the model trains, besides those on the validation rows."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    eval_lake: str | None = None
    """Lake with images to score the model on while it trains."""
    eval_label_column: str | None = None
    """Its column with the labels: texts, or integers together with --eval-classes."""
    eval_classes: str | None = None
    """Names of its classes, between commas or in a file. Default: the labels that there are."""
    eval_templates: str = "simple"
    """Prompts; `lakeclip evaluate zeroshot --help` names them."""
    eval_scores: tuple[Literal["zeroshot", "retrieval", "probe", "robustness"], ...] = ("zeroshot",)
    """Which scores: zeroshot, probe and robustness need labels, retrieval needs captions."""
    eval_rows: int = 1000
    """Score at most this many of its images, always the same ones."""
    eval_every_steps: int | None = None
    """Score every this many steps. Default: as often as takes 2% of the time. Always at the end."""

    def __post_init__(self) -> None:
        _require("eval_rows", self.eval_rows, self.eval_rows >= 2, "at least 2")
        every = self.eval_every_steps
        _require("eval_every_steps", every, every is None or every >= 1, "at least 1")
        if self.eval_lake is None and any(getattr(self, known.name) != known.default for known in fields(self)):
            raise ConfigError("scores while training need images", next_step="--eval-lake LAKE")
        if self.eval_lake is not None and not self.eval_scores:
            raise ConfigError("no scores are asked for on --eval-lake", next_step="--eval-scores zeroshot")
        if self.eval_lake is not None and self.eval_label_column is None and set(self.eval_scores) - {"retrieval"}:
            raise ConfigError(
                "scores while training need labels",
                found=f"eval_scores {' '.join(self.eval_scores)}, and no eval_label_column",
                next_step="--eval-label-column COLUMN, or --eval-scores retrieval",
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything `lakeclip train` needs. Saved with the run as config.yaml; holds no secret."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: str = "ViT-B/32"
    """Name of the model; `lakeclip models` lists them."""
    model_config: str | None = None
    """YAML file with models of your own, in the layout of lakeclip/models/configs."""
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """The optimiser for towers that have learned already."""

    algorithm: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with momentum 0.9, as OTTER brings two towers together (lr 3e-3), or AdamW, as a whole CLIP is tuned (lr
    1e-5). Auto: that of the start."""
    weight_decay: float = 0.0
    """Decay of every weight that is not a gain or a bias."""
    layer_decay: float = 1.0
    """Each layer of a tower learns by this factor slower than the one above it; 1 for all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0, up to 1 (all layers alike)")


@dataclass(frozen=True)
class TeacherConfig:
    """Self-distillation: a teacher, an average of the model itself, says which pairs of a batch match as well."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    targets: Literal["transport", "softmax", "none"] = "transport"
    """What the student is taught: the optimal transport between a batch's images and texts (OTTER), the teacher's own
    softmax, or nothing but the given pairs."""
    alpha: float = 0.5
    """Share of the given pairs in the loss; the rest is the teacher's."""
    epsilon: float = 0.15
    """Entropy of the transport: towards 0 it is a matching of one to one."""
    iterations: int = 5
    """Of Sinkhorn's algorithm."""
    initial_scale: float | None = None
    """Logarithm of the factor on similarities that both parts of the loss begin with; OTTER's is 3.9. Default: what the
    model has, which for new towers is CLIP's 2.66."""
    teacher_decay: float = 0.999
    """The teacher's weights decay by this a step, and faster at the start."""

    def __post_init__(self) -> None:
        _require("alpha", self.alpha, 0 <= self.alpha <= 1, "0 (the teacher alone) to 1 (the given pairs alone)")
        _require("epsilon", self.epsilon, self.epsilon > 0, "above 0")
        _require("iterations", self.iterations, self.iterations >= 1, "at least 1")
        _require("teacher_decay", self.teacher_decay, 0 <= self.teacher_decay < 1, "0 up to, not with, 1")


@dataclass(frozen=True)
class KeepConfig:
    """Keeping what the towers know: what of them is locked, and a test of what they are not to forget."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lock_image: int | Literal["all"] = 0
    """Lower layers of the image tower that stay as they are, its stem counted as the first; all for the whole (LiT)."""
    lock_text: int | Literal["all"] = 0
    """Lower layers of the text tower that stay as they are, its embeddings counted as the first; all for the whole."""
    lora_rank: int | None = None
    """Train low-rank additions (LoRA) to the towers' weights instead of the weights: 8 is a usual rank."""
    lora_alpha: float | None = None
    """Factor on what LoRA adds, divided by the rank. Default: twice the rank."""
    keep_lake: str | None = None
    """Lake with labelled images: what the model can tell before must not be forgotten. It is scored before, during and
    after, and the weights between start and end are tried for the best of both (WiSE-FT)."""
    keep_label_column: str | None = None
    """Column of --keep-lake with the labels."""
    keep_classes: str | None = None
    """Names of its classes, between commas or in a file, where the column has numbers."""
    keep_templates: str = "simple"
    """Prompts of that test; `lakeclip evaluate zeroshot --help` names them."""
    keep_rows: int = 2000
    """Score at most this many of its images."""

    def __post_init__(self) -> None:
        for name in ("lock_image", "lock_text"):
            value = getattr(self, name)
            _require(name, value, value == "all" or value >= 0, "a number of layers, or all")
        _require("lora_rank", self.lora_rank, self.lora_rank is None or self.lora_rank >= 1, "at least 1")
        _require("lora_alpha", self.lora_alpha, self.lora_alpha is None or self.lora_alpha > 0, "above 0")
        _require("keep_rows", self.keep_rows, self.keep_rows >= 1, "at least 1")
        if (self.keep_lake is None) != (self.keep_label_column is None):
            raise ConfigError(
                "a test of what is kept needs a lake and its label column",
                found=f"keep_lake {self.keep_lake}, keep_label_column {self.keep_label_column}",
                next_step="--keep-lake LAKE --keep-label-column COLUMN",
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `lakeclip finetune` needs: what has learned already, and the data to go on with."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    start: str | None = None
    """A whole CLIP to go on from, instead of two towers: openai:FILE, open_clip:FILE,
    huggingface:FOLDER or lakeclip:CHECKPOINT. Also written --from."""
    image_encoder: str = "torchvision:resnet50"
    """Image tower: torchvision:NAME, timm:NAME, hf:NAME (all pretrained), openai:FILE, open_clip:FILE,
    lakeclip:CHECKPOINT, or lakeclip:NAME (from scratch)."""
    text_encoder: str = "hf:johngiorgi/declutr-sci-base"
    """Text tower: hf:NAME or hf:FOLDER, any Hugging Face AutoModel, with its own tokenizer; or openai:FILE,
    open_clip:FILE or lakeclip:CHECKPOINT."""
    embed_dim: int | None = None
    """Width of the shared space. Default: the text tower's."""
    average_word_embeddings: bool = True
    """Represent a text by the mean of its words' vectors instead of the first token's."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
