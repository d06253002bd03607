"""Registry of evaluations: the scores that training, `lakeclip.evaluate` and the command line can compute by name.

    def score(data: EvaluationData) -> dict[str, float]:
        return {"my_score": ...}

    EVALUATIONS["mine"] = Evaluation(score, about="My score.", needs=("labels",), curves={"my_score": "my score"})

From then on `--eval-scores mine`, `lakeclip.evaluate(…, scores=["mine"])` and `lakeclip evaluate mine` work. A package
that is installed beside lakeclip registers an evaluation with the entry point group `lakeclip.evaluations`.

This module does not import torch, so that the command line can list the names quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal

from lakeclip.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from lakeclip.data.transforms import EvalTransform
    from lakeclip.evaluation.labels import Labels
    from lakeclip.evaluation.prompts import TemplateSet
    from lakeclip.lake.rows import RowSource
    from lakeclip.models.clip import CLIP
    from lakeclip.models.dual_encoder import DualEncoder
    from lakeclip.types import Tokenize

#: Entry points of other packages: `name = "module:evaluation"`.
ENTRY_POINT_GROUP = "lakeclip.evaluations"


@dataclass(frozen=True)
class EvaluationRows:
    """Rows of a lake that a model is scored on.

    Attributes:
        positions: indices of the rows in the source.
        labels: class of each of these rows; None without a label column.
        templates: prompts for the class names.
    """

    source: RowSource
    positions: Sequence[int]
    labels: Labels | None
    templates: TemplateSet


@dataclass(frozen=True)
class EvaluationData:
    """A model and the encoded images that all evaluations share.

    Attributes:
        tokenize: texts to token ids.
        transform: an encoded image to (3, size, size) uint8.
        rows: the rows that were encoded, including those that could not be decoded.
        features: (images, embed) float32 of unit length, on the CPU; in a distributed run, the images of all processes.
        targets: (images,) classes, on the CPU; None without a label column.
        captions: of each image; empty unless an evaluation needs captions.
    """

    model: CLIP | DualEncoder
    tokenize: Tokenize
    transform: EvalTransform
    rows: EvaluationRows
    features: Float[Tensor, "images embed"]
    targets: Int64[Tensor, " images"] | None
    captions: Sequence[tuple[str, ...]]

    @property
    def labels(self) -> Labels:
        """Labels of the rows, for an evaluation that needs labels."""
        assert self.rows.labels is not None, "only for evaluations with needs=('labels',)"
        return self.rows.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, for an evaluation that needs labels."""
        return self.labels.classes


@dataclass(frozen=True)
class Evaluation:
    """One kind of score, in the registry `EVALUATIONS`.

    Attributes:
        score: computes named scores, shares in 0…1; called on every process of a distributed run with the same data.
        about: one sentence for the help of the command line.
        needs: what the lake must have: labels, captions, both, or only images.
        check: raises a `LakeclipError` if the rows do not suffice; called once, before training starts.
        curves: score → label of its curve in the chart of a run's report; scores without a label are not drawn.
    """

    score: Callable[[EvaluationData], dict[str, float]]
    about: str = ""
    needs: tuple[Literal["labels", "captions"], ...] = ()
    check: Callable[[EvaluationRows], None] | None = None
    curves: Mapping[str, str] = field(default_factory=dict)


class EvaluationRegistry(MutableMapping[str, Evaluation]):
    """Evaluations by name, imported on first use.

    Args:
        built_in: name → "module:attribute" of an `Evaluation`.
    """

    def __init__(self, built_in: Mapping[str, str]) -> None:
        self._entries: dict[str, Evaluation | str] = dict(built_in)

    def __getitem__(self, name: str) -> Evaluation:
        entry = self._entries[name] if name in self._entries else self._all()[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return entry

    def __setitem__(self, name: str, evaluation: Evaluation) -> None:
        self._entries[name] = evaluation

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def select(self, names: Sequence[str]) -> dict[str, Evaluation]:
        """Look up several evaluations.

        Raises:
            ConfigError: a name is not registered.
        """
        if unknown := [name for name in names if name not in self]:
            raise ConfigError(
                f"there is no evaluation {unknown[0]!r}",
                allowed=", ".join(self),
                next_step="import the module that registers it in EVALUATIONS, or fix --eval-scores",
            )
        return {name: self[name] for name in names}

    def _all(self) -> dict[str, Evaluation | str]:
        """Return what is registered here and, after it, the entry points of installed packages."""
        installed = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
        return self._entries | {name: value for name, value in installed.items() if name not in self._entries}


EVALUATIONS = EvaluationRegistry(
    {
        "zeroshot": "lakeclip.evaluation.zeroshot:EVALUATION",
        "probe": "lakeclip.evaluation.probe:EVALUATION",
        "robustness": "lakeclip.evaluation.robustness:EVALUATION",
        "retrieval": "lakeclip.evaluation.retrieval:EVALUATION",
    }
)
