"""`Layout`, a way in which a JSON file holds images and their captions, and `Rows`, what each of them is read into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lakeclip.ingestion.sources.record import Record

#: Names of columns, which every reader of tables knows.
PATH, CAPTIONS = "filepath", "captions"
#: Number of rows from which the roles of columns are inferred.
_SAMPLE = 100


@dataclass
class Rows:
    """Rows of an annotation file in memory (a `Table`).

    Attributes:
        rows: column → value, or the reason why an item cannot become a row.
        unit: what messages call an item of the file, such as "image".
        remarks: what the file was understood as.
        num_captions: number of captions in the file, if they are counted apart from the items.
        dropped: reason → number of captions that are in no row.
    """

    rows: list[dict[str, object] | str]
    unit: str = "item"
    remarks: list[str] = field(default_factory=list)
    num_captions: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    size: int = 0
    position: int = 0
    is_complete: bool = True
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = column_types(row for row in self.rows if isinstance(row, dict))

    @property
    def sample(self) -> Sequence[Mapping[str, object]]:
        """The first rows."""
        return [row for row in self.rows[:_SAMPLE] if isinstance(row, dict)]

    def resolve(self, name: str) -> str:
        """Return the column that a user means."""
        return name

    def notes(self) -> list[str]:
        """Describe how the file was read."""
        return self.remarks

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        for number, row in enumerate(self.rows):
            self.position = self.size * (number + 1) // len(self.rows)
            values = row if isinstance(row, str) else {name: row[name] for name in row if name in columns}
            yield Record(str(number), f"{self.unit} {number}", values)


@dataclass(frozen=True)
class Layout:
    """A way in which a JSON file holds images and their captions.

    Attributes:
        name: name for messages, such as "COCO captions".
        matches: whether the content of a file is of this layout.
        read: function that converts the content to rows. It raises a `ValueError` with what the file holds instead of
            captions.
    """

    name: str
    matches: Callable[[dict[str, object]], bool]
    read: Callable[[dict[str, object]], Rows]


def column_types(rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Return column → type, as `column_roles.infer_roles` calls the types."""
    types: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            known = types.setdefault(name, set())
            if value is not None:
                known.add(_type_name(value))
    return {name: known.pop() if len(known) == 1 else _common_type(known) for name, known in types.items()}


def _type_name(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "list of text"
    return type(value).__name__


def _common_type(known: set[str]) -> str:
    """Return the type of a column whose values have several types; text holds any value."""
    return "list of text" if known == {"text", "list of text"} else "text"


def dicts_in(value: object) -> list[dict[str, object]]:
    """Return the dictionaries in a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts_in(value: object) -> list[str]:
    """Return the texts in a list, or a text as the only one, stripped, without empty ones."""
    items = value if isinstance(value, list) else [value]
    return [text for item in items if isinstance(item, str) and (text := item.strip())]
