"""lakeclip trains CLIP on your own data, from a Deep Lake dataset.

    result = lakeclip.ingest(["photos/"], "pairs.lake")                   # images and captions into a lake
    config = lakeclip.TrainConfig(model="ViT-B/32", data=lakeclip.DataConfig(lake="pairs.lake"))
    run = lakeclip.train(config)                                          # a folder with checkpoints and curves
    model, tokenize, transform = lakeclip.load(run.folder)                # ready to encode
    scores = lakeclip.evaluate_zeroshot(run.folder, "test.lake", label_column="label")
    lakeclip.export(run.folder, to="open_clip")                           # for other libraries

    model = lakeclip.create_model("ViT-B/32")                             # nn.Module: encode_image, encode_text
    ids = lakeclip.tokenize(["a photo of a dog"])                         # (1, 77) int64
    lake = lakeclip.open_lake(path, query=None)                           # length, columns, rows

This is the whole of the public API. Names are imported when first used, so `import lakeclip` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakeclip.checkpoints.exports import ExportResult as ExportResult
    from lakeclip.checkpoints.exports import export as export
    from lakeclip.checkpoints.layouts import load as load
    from lakeclip.checkpoints.native import save as save
    from lakeclip.compat.train_clip_data import DeepLakeDataModule as DeepLakeDataModule
    from lakeclip.compat.train_clip_data import TextImageDataModule as TextImageDataModule
    from lakeclip.config.schema import DataConfig as DataConfig
    from lakeclip.config.schema import EvaluationConfig as EvaluationConfig
    from lakeclip.config.schema import FinetuneConfig as FinetuneConfig
    from lakeclip.config.schema import FinetuneOptimizerConfig as FinetuneOptimizerConfig
    from lakeclip.config.schema import KeepConfig as KeepConfig
    from lakeclip.config.schema import LossConfig as LossConfig
    from lakeclip.config.schema import ModelConfig as ModelConfig
    from lakeclip.config.schema import OptimizerConfig as OptimizerConfig
    from lakeclip.config.schema import TeacherConfig as TeacherConfig
    from lakeclip.config.schema import TrainConfig as TrainConfig
    from lakeclip.config.schema import TrainerConfig as TrainerConfig
    from lakeclip.data.datamodule import PairDataModule as PairDataModule
    from lakeclip.errors import LakeclipError as LakeclipError
    from lakeclip.evaluation.evaluator import evaluate as evaluate
    from lakeclip.evaluation.registry import EVALUATIONS as EVALUATIONS
    from lakeclip.evaluation.registry import Evaluation as Evaluation
    from lakeclip.evaluation.registry import EvaluationData as EvaluationData
    from lakeclip.evaluation.run import EncodeConfig as EncodeConfig
    from lakeclip.evaluation.run import evaluate_probe as evaluate_probe
    from lakeclip.evaluation.run import evaluate_retrieval as evaluate_retrieval
    from lakeclip.evaluation.run import evaluate_robustness as evaluate_robustness
    from lakeclip.evaluation.run import evaluate_zeroshot as evaluate_zeroshot
    from lakeclip.ingestion.download.options import DownloadOptions as DownloadOptions
    from lakeclip.ingestion.repair import repair_lake as repair_lake
    from lakeclip.ingestion.result import IngestResult as IngestResult
    from lakeclip.ingestion.run import ingest as ingest
    from lakeclip.lake.dataset import open_lake as open_lake
    from lakeclip.losses.registry import LOSSES as LOSSES
    from lakeclip.losses.registry import Loss as Loss
    from lakeclip.losses.registry import register_loss as register_loss
    from lakeclip.models.zoo import available_models as available_models
    from lakeclip.models.zoo import create_model as create_model
    from lakeclip.report.compare_runs import compare_runs as compare_runs
    from lakeclip.report.run import make_report as make_report
    from lakeclip.text.tokenizer import tokenize as tokenize
    from lakeclip.training.callbacks.evaluation import EvaluationCallback as EvaluationCallback
    from lakeclip.training.finetune import CustomCLIPWrapper as CustomCLIPWrapper
    from lakeclip.training.module import CLIPWrapper as CLIPWrapper
    from lakeclip.training.run import TrainResult as TrainResult
    from lakeclip.training.run import finetune as finetune
    from lakeclip.training.run import train as train

#: Name → the module that defines it.
_HOME = {
    "CLIPWrapper": "lakeclip.training.module",
    "CustomCLIPWrapper": "lakeclip.training.finetune",
    "DataConfig": "lakeclip.config.schema",
    "DeepLakeDataModule": "lakeclip.compat.train_clip_data",
    "DownloadOptions": "lakeclip.ingestion.download.options",
    "EVALUATIONS": "lakeclip.evaluation.registry",
    "EncodeConfig": "lakeclip.evaluation.run",
    "Evaluation": "lakeclip.evaluation.registry",
    "EvaluationCallback": "lakeclip.training.callbacks.evaluation",
    "EvaluationConfig": "lakeclip.config.schema",
    "EvaluationData": "lakeclip.evaluation.registry",
    "ExportResult": "lakeclip.checkpoints.exports",
    "FinetuneConfig": "lakeclip.config.schema",
    "FinetuneOptimizerConfig": "lakeclip.config.schema",
    "IngestResult": "lakeclip.ingestion.result",
    "KeepConfig": "lakeclip.config.schema",
    "LOSSES": "lakeclip.losses.registry",
    "LakeclipError": "lakeclip.errors",
    "Loss": "lakeclip.losses.registry",
    "LossConfig": "lakeclip.config.schema",
    "ModelConfig": "lakeclip.config.schema",
    "OptimizerConfig": "lakeclip.config.schema",
    "PairDataModule": "lakeclip.data.datamodule",
    "TeacherConfig": "lakeclip.config.schema",
    "TextImageDataModule": "lakeclip.compat.train_clip_data",
    "TrainConfig": "lakeclip.config.schema",
    "TrainResult": "lakeclip.training.run",
    "TrainerConfig": "lakeclip.config.schema",
    "available_models": "lakeclip.models.zoo",
    "compare_runs": "lakeclip.report.compare_runs",
    "create_model": "lakeclip.models.zoo",
    "evaluate": "lakeclip.evaluation.evaluator",
    "evaluate_probe": "lakeclip.evaluation.run",
    "evaluate_retrieval": "lakeclip.evaluation.run",
    "evaluate_robustness": "lakeclip.evaluation.run",
    "evaluate_zeroshot": "lakeclip.evaluation.run",
    "export": "lakeclip.checkpoints.exports",
    "finetune": "lakeclip.training.run",
    "ingest": "lakeclip.ingestion.run",
    "load": "lakeclip.checkpoints.layouts",
    "make_report": "lakeclip.report.run",
    "open_lake": "lakeclip.lake.dataset",
    "register_loss": "lakeclip.losses.registry",
    "repair_lake": "lakeclip.ingestion.repair",
    "save": "lakeclip.checkpoints.native",
    "tokenize": "lakeclip.text.tokenizer",
    "train": "lakeclip.training.run",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lakeclip' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
