"""The configuration as dataclasses: the keys of a recipe and the flags of the commands.

Nothing here imports torch, so `lakeclip train --help` starts quickly. Precedence: default < recipe < flag.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from lakeclip.errors import ConfigError

# pydantic, in `load.py`, reads `__pydantic_config__`, and rejects a recipe with a key that is not a field.


def check_setting(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise a ConfigError that names the setting, its value and the allowed ones, unless the value is allowed."""
    if not is_allowed:
        raise ConfigError(f"{name} cannot be {value}", allowed=allowed)


#: Mean and standard deviation of red, green and blue, in 0…1, with which OpenAI's models were trained.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and settings of one model, named as in OpenAI's constructor and in the YAML files of `models/configs`.

    With a `vision_patch_size`, the image tower is a vision transformer with `vision_layers` blocks. Without one it is
    the modified ResNet, and `vision_layers` counts the bottlenecks of its four stages. The settings that have a default
    are those of OpenAI's models; others are those of LAION, SigLIP and so on.
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
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    """Activation of the image transformer's MLPs, and of the text transformer's unless `text_activation` is set."""
    layer_norm_eps: float = 1e-5
    """Number that every layer norm adds to the variance."""
    vision_heads: int | None = None
    """Attention heads of the image transformer. Default: heads 64 wide."""
    vision_mlp_width: int | None = None
    """Width between the two layers of the image transformer's MLPs. Default: 4 times the tower's."""
    vision_pool: Literal["class", "average", "map"] = "class"
    """Image feature: that of the class token, the average of the patches, or the output of an attention layer with a
    learned query (multi-head attention pooling, as in SigLIP)."""
    vision_class_token: bool = True
    """Put a learned token before the patches."""
    vision_patch_bias: bool = False
    """Add a learned bias to every patch."""
    ln_pre: bool = True
    """Normalise the tokens of an image before the first block."""
    vision_projection: Literal["matrix", "none"] = "matrix"
    """Projection of the image feature to the shared space."""
    text_activation: Literal["quick_gelu", "gelu", "gelu_tanh"] | None = None
    """Activation of the text transformer's MLPs. Default: `activation`."""
    transformer_mlp_width: int | None = None
    """Width between the two layers of the text transformer's MLPs. Default: 4 times the tower's."""
    text_pool: Literal["eot", "last", "first"] = "eot"
    """Token at which the text feature is read: the end of text, the last of the context, or the first."""
    causal: bool = True
    """Let a text token attend to itself and earlier tokens only, instead of to all, padding included."""
    text_projection: Literal["matrix", "linear", "none"] = "matrix"
    """Projection of the text feature to the shared space; `linear` has a bias."""
    end_token: int | None = None
    """Token id of the end of text, whose first occurrence is read. Default: the highest id of each text."""
    pad_token: int = 0
    """Token id of padding."""
    image_mean: tuple[float, float, float] = IMAGE_MEAN
    """Mean of red, green and blue, in 0…1, which is subtracted from the pixels."""
    image_std: tuple[float, float, float] = IMAGE_STD
    """Standard deviation of red, green and blue, by which the pixels are divided."""
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    """Resizing to the model's square: of the shorter side, then a crop of the center; of both sides, which distorts; or
    of the longer side, then filling with black."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of resizing."""

    @property
    def ignores_padding(self) -> bool:
        """Flag: what follows the end of a text has no effect on its feature, so it need not be computed."""
        return self.causal and self.text_pool == "eot"


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data: where the pairs are read and how batches are made."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lake: str | None = None
    """Deep Lake dataset with the training pairs (a path, s3://…, hub://…). To mix several, give each its share of every
    batch: --lake a.lake:0.7 --lake b.lake:0.3, or `a.lake:0.7 + b.lake:0.3` in a recipe."""
    folder: str | None = None
    """Folder of image files and .txt captions with the same stem, instead of a lake."""
    val_lake: str | None = None
    """Lake to validate on. Default: a share of the training rows, --val-fraction, is held out."""
    val_fraction: float = 0.02
    """Share of rows to hold out for validation, chosen by a stable hash of the row; 0 for none."""
    max_val_rows: int = 5000
    """Validate on at most this many rows, because every image is compared with every text."""
    query: str | None = None
    """Rows to train on: the WHERE clause of a Deep Lake query, e.g. "width > 200", or a whole SELECT."""
    filter_nsfw: bool = False
    """Use only rows whose NSFW column says that they are safe (NSFW == 'UNLIKELY', in any capitalization)."""
    weights: str | None = None
    """Sampling weight of each row: a column, or an expression over columns. Default: each row once per epoch."""
    image_column: str | None = None
    """Column with the encoded images. Default: inferred from column names and types."""
    caption_column: str | None = None
    """Column with the captions, or several to join, separated by commas. Default: inferred from names and types."""
    caption_template: str | None = None
    """Template that makes captions from columns, e.g. "a photo of {label}, {text}"."""
    same_by: tuple[str, ...] = ()
    """Treat rows that share any of these as positives of each other: `image`, `caption`, or columns of the lake."""
    mark_unusable: bool = False
    """After the run, mark rows that could not be used in the lake's column `unusable`, so that later runs skip them."""
    batch_size: int = 256
    """Pairs per device and step."""
    image_size: int | None = None
    """Side of the square crop in pixels. Default: the model's input size."""
    small_images: str | None = None
    """Train on smaller images first (CLIPA): "112:0.6" means 112 pixels for the first 60% of the run, "112:0.4 160:0.4"
    two such phases."""
    resize_ratio: float = 0.75
    """Smallest share of the image's area that the random square crop may cover; 1 always takes the largest square."""
    shuffle: bool = True
    """Shuffle the rows in a new order each epoch."""
    num_workers: int = 2
    """Worker processes per device that read and decode images; 0 to do so in the training process."""
    seed: int = 0
    """Seed of the sample order, the crops and the initial weights."""

    def __post_init__(self) -> None:
        check_setting("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check_setting("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "at least 0 (none) and below 1")
        check_setting("max_val_rows", self.max_val_rows, self.max_val_rows >= 1, "at least 1")
        check_setting("resize_ratio", self.resize_ratio, 0 < self.resize_ratio <= 1, "above 0 and at most 1")
        check_setting("num_workers", self.num_workers, self.num_workers >= 0, "0 or more")
        check_setting("image_size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW with a warm-up and cosine schedule. Unset values are those of the paper for the model."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lr: float | None = None
    """Peak learning rate."""
    betas: tuple[float, float] | None = None
    """Adam's coefficients for the running averages of the gradient and its square (beta1, beta2)."""
    eps: float | None = None
    """Adam's epsilon, which is added to the denominator."""
    weight_decay: float = 0.2
    """Weight decay, for every parameter except gains and biases."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. Default: the paper's 2,000, or a tenth of the run if that is less."""

    states: Literal["32", "bf16", "8bit"] = "32"
    """Precision of Adam's running averages: float32, bfloat16 with stochastic rounding, or 8-bit blocks (torchao).
    8 bits follow too slowly if beta2 is 0.999, as for ResNets."""
    text_weights: Literal["32", "bf16"] = "32"
    """Precision of the text tower's weights: float32, or bfloat16 with stochastic rounding, as in the paper. With
    bfloat16 weights that tower computes in bfloat16 whatever --precision is."""
    max_grad_norm: float | None = None
    """Clip the gradients to this norm over all parameters. Default: no clipping."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average (EMA) of the weights, which validation and the best and last
    checkpoints then use. Default: no average."""

    def __post_init__(self) -> None:
        check_setting(
            "max_grad_norm", self.max_grad_norm, self.max_grad_norm is None or self.max_grad_norm > 0, "above 0"
        )
        check_setting(
            "ema_decay", self.ema_decay, self.ema_decay is None or 0 <= self.ema_decay < 1, "at least 0 and below 1"
        )
        check_setting("lr", self.lr, self.lr is None or self.lr > 0, "above 0")
        check_setting("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        check_setting("warmup_steps", self.warmup_steps, (self.warmup_steps or 0) >= 0, "0 or more")
        check_setting("eps", self.eps, self.eps is None or self.eps > 0, "above 0")
        check_setting(
            "betas", self.betas, all(0 <= beta < 1 for beta in self.betas or ()), "two numbers from 0 to below 1"
        )


@dataclass(frozen=True)
class LossConfig:
    """Settings of the contrastive objective."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    objective: str = "softmax"
    """Loss: softmax over the global batch (CLIP), sigmoid for each pair on its own (SigLIP), or another one that is
    registered in lakeclip.LOSSES."""
    label_smoothing: float = 0.0
    """Share of the softmax's target that is spread evenly over the batch."""

    def __post_init__(self) -> None:
        allowed = "at least 0 (none) and below 1"
        check_setting("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, allowed)


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of the training run: length, hardware, and checkpoints."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_epochs: int = 32
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many steps, even within an epoch; the learning-rate schedule ends there too."""
    minibatch_size: int | None = None
    """Embed at most this many pairs at once: the same gradients in less memory. Default: the whole batch."""
    accumulate: int = 1
    """Average the gradients of this many batches for each step. Each batch is compared only within itself."""
    patch_dropout: float = 0.0
    """Drop this share of each image's patches in training (FLIP); vision transformers only."""
    checkpointing: Literal["off", "selective", "on"] = "off"
    """Recompute activations in the backward pass instead of storing them: none (off), those between matrix products
    (selective), or all inside a block (on)."""
    compile: bool = False
    """Compile the image tower with torch.compile: faster steps, after about a minute of compilation."""
    max_skipped: int = 3
    """Skip steps whose loss or gradient is not finite or is an outlier; after this many in a row, roll back to the last
    good weights."""
    precision: Literal["32", "16", "bf16", "auto"] = "32"
    """Precision of the arithmetic: float32, float16 with loss scaling, or bfloat16. Auto: bfloat16 if the device has
    instructions for it, else float32. Without them, as on processors with AVX2 only, bfloat16 is many times slower."""
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"] = "auto"
    """Hardware to train on."""
    devices: int | None = None
    """Number of devices. Default: all that are available; one on the CPU."""
    num_nodes: int = 1
    """Number of machines."""
    strategy: str = "auto"
    """Lightning's name of the distributed strategy: auto, ddp, …"""
    val_every_steps: int | None = None
    """Validate after every this many steps. Default: at the end of each epoch."""
    save_every_minutes: float = 15.0
    """Save a checkpoint at least this often; also after each epoch, after each validation, and on a stop signal."""
    save_every_steps: int | None = None
    """Also save a checkpoint after every this many steps."""
    keep_last: int = 1
    """Number of recent checkpoints to keep: last.ckpt, and earlier ones as step-….ckpt."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Loggers for the curves, in addition to metrics.csv: tensorboard, wandb, mlflow, if installed."""
    runs: str = "runs"
    """Folder for the runs."""
    name: str | None = None
    """Name of this run's folder. Default: the model and the time."""

    def __post_init__(self) -> None:
        check_setting("patch_dropout", self.patch_dropout, 0 <= self.patch_dropout < 1, "at least 0 (none) and below 1")
        counts = ("max_epochs", "max_steps", "minibatch_size", "accumulate", "max_skipped", "devices", "num_nodes")
        check_setting("save_every_minutes", self.save_every_minutes, self.save_every_minutes > 0, "above 0")
        for name in (*counts, "val_every_steps", "save_every_steps", "keep_last"):
            value = getattr(self, name)
            check_setting(name, value, value is None or value >= 1, "at least 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the evaluation during training, in addition to the validation."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    eval_lake: str | None = None
    """Lake with images to evaluate the model on during training."""
    eval_label_column: str | None = None
    """Column of --eval-lake with the labels: texts, or integers together with --eval-classes."""
    eval_classes: str | None = None
    """Class names, separated by commas or in a file. Default: the labels found in the column."""
    eval_templates: str = "simple"
    """Prompt templates; `lakeclip evaluate zeroshot --help` lists them."""
    eval_scores: tuple[str, ...] = ("zeroshot",)
    """Evaluations to run: zeroshot, probe, robustness (these need labels), retrieval (needs captions), or others
    that are registered in lakeclip.EVALUATIONS."""
    eval_rows: int = 1000
    """Evaluate on at most this many images, the same ones each time."""
    eval_every_steps: int | None = None
    """Evaluate after every this many steps. Default: as often as keeps the cost at 2% of the run's time. Always at the
    end."""

    def __post_init__(self) -> None:
        check_setting("eval_rows", self.eval_rows, self.eval_rows >= 2, "at least 2")
        every = self.eval_every_steps
        check_setting("eval_every_steps", every, every is None or every >= 1, "at least 1")
        if self.eval_lake is None and any(getattr(self, known.name) != known.default for known in fields(self)):
            raise ConfigError("an evaluation during training needs a lake of images", next_step="--eval-lake LAKE")
        if self.eval_lake is not None and not self.eval_scores:
            raise ConfigError("--eval-lake is set, but --eval-scores is empty", next_step="--eval-scores zeroshot")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `lakeclip train`. Saved with the run as config.yaml; it holds no secrets."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: str = "ViT-B/32"
    """Model name; `lakeclip models` lists them."""
    model_config: str | None = None
    """YAML file with your own models, in the layout of lakeclip/models/configs."""
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """Settings of the optimiser for pretrained towers."""

    algorithm: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with momentum 0.9 (lr 3e-3, as OTTER trains two towers), or AdamW (lr 1e-5, as a whole CLIP is fine-tuned).
    Auto: SGD for two towers, AdamW for a whole CLIP."""
    weight_decay: float = 0.0
    """Weight decay, for every parameter except gains and biases."""
    layer_decay: float = 1.0
    """Layer-wise decay: each layer's learning rate is this factor times that of the layer above; 1 for equal rates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1 (equal rates)")


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of self-distillation: a teacher, a moving average of the model, scores all pairs of a batch."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    targets: Literal["transport", "softmax", "none"] = "transport"
    """Soft targets: the optimal transport between a batch's images and texts (OTTER), the teacher's own softmax, or
    none (only the given pairs)."""
    alpha: float = 0.5
    """Weight of the given pairs in the loss; the soft targets have the rest, 1 - alpha."""
    epsilon: float = 0.15
    """Entropy weight of the transport; towards 0 it becomes a one-to-one matching."""
    iterations: int = 5
    """Iterations of Sinkhorn's algorithm."""
    initial_scale: float | None = None
    """Initial logit scale (a logarithm) of both parts of the loss; OTTER's is 3.9. Default: the model's, which for new
    towers is CLIP's 2.66."""
    teacher_decay: float = 0.999
    """Decay per step of the teacher's moving average; lower at the start."""

    def __post_init__(self) -> None:
        check_setting("alpha", self.alpha, 0 <= self.alpha <= 1, "0 (only the teacher) to 1 (only the given pairs)")
        check_setting("epsilon", self.epsilon, self.epsilon > 0, "above 0")
        check_setting("iterations", self.iterations, self.iterations >= 1, "at least 1")
        check_setting("teacher_decay", self.teacher_decay, 0 <= self.teacher_decay < 1, "at least 0 and below 1")


@dataclass(frozen=True)
class KeepConfig:
    """Settings against forgetting: locked layers, LoRA, and an evaluation of what the model knew before."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    lock_image: int | Literal["all"] = 0
    """Number of lower layers of the image tower to freeze; the stem is the first. all freezes the whole tower (LiT)."""
    lock_text: int | Literal["all"] = 0
    """Number of lower layers of the text tower to freeze; the embeddings are the first. all freezes the whole tower."""
    lora_rank: int | None = None
    """Train low-rank updates (LoRA) of this rank instead of the weights; 8 is common. Default: train the weights."""
    lora_alpha: float | None = None
    """Scale of the LoRA update, which is multiplied by alpha / rank. Default: twice the rank."""
    keep_lake: str | None = None
    """Lake with labelled images to measure forgetting on. The model is evaluated on it before, during and after the
    run, and weights between start and end are tried for the best of both (WiSE-FT)."""
    keep_label_column: str | None = None
    """Column of --keep-lake with the labels."""
    keep_classes: str | None = None
    """Class names, separated by commas or in a file; needed if the column holds integers."""
    keep_templates: str = "simple"
    """Prompt templates for --keep-lake; `lakeclip evaluate zeroshot --help` lists them."""
    keep_rows: int = 2000
    """Evaluate on at most this many images of --keep-lake."""

    def __post_init__(self) -> None:
        for name in ("lock_image", "lock_text"):
            value = getattr(self, name)
            check_setting(name, value, value == "all" or value >= 0, "a number of layers, at least 0, or all")
        check_setting("lora_rank", self.lora_rank, self.lora_rank is None or self.lora_rank >= 1, "at least 1")
        check_setting("lora_alpha", self.lora_alpha, self.lora_alpha is None or self.lora_alpha > 0, "above 0")
        check_setting("keep_rows", self.keep_rows, self.keep_rows >= 1, "at least 1")
        if (self.keep_lake is None) != (self.keep_label_column is None):
            raise ConfigError(
                "measuring forgetting needs both a lake and its label column",
                found=f"keep_lake {self.keep_lake}, keep_label_column {self.keep_label_column}",
                next_step="--keep-lake LAKE --keep-label-column COLUMN",
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of `lakeclip finetune`: the pretrained model or towers, the data, and the training."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    start: str | None = None
    """A whole CLIP to fine-tune, instead of two towers: openai:FILE, open_clip:FILE, huggingface:FOLDER,
    huggingface:ORG/NAME (a model of the hub) or lakeclip:CHECKPOINT. Also written --from."""
    context_length: int | None = None
    """Longest caption in tokens, with --from: 248 for captions of several sentences. Position embeddings beyond the
    first 20 are stretched. Default: the model's own, mostly 77; longer captions are cut off."""
    image_encoder: str = "torchvision:resnet50"
    """Image tower: torchvision:NAME, timm:NAME, hf:NAME (all pretrained), openai:FILE, open_clip:FILE,
    lakeclip:CHECKPOINT, or lakeclip:NAME (from scratch)."""
    text_encoder: str = "hf:johngiorgi/declutr-sci-base"
    """Text tower: hf:NAME or hf:FOLDER, any Hugging Face AutoModel, with its own tokenizer; or openai:FILE,
    open_clip:FILE or lakeclip:CHECKPOINT."""
    embed_dim: int | None = None
    """Width of the shared embedding space. Default: the text tower's width."""
    average_word_embeddings: bool = True
    """Use the mean of the token features as the text feature, instead of the first token's."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
