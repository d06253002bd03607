"""Conversations about images, as for LLaVA: the caption is the model's first answer.

A row has an image and a list of turns: `conversations` of `from` and `value`, or `messages` of `role` and `content`
(https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from lakeclip.ingestion.sources.record import Record, Table
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, match_name

_TURNS = ("conversations", "conversation", "messages")
_MODELS = ("gpt", "assistant", "model", "chatgpt")
_CAPTION = "caption"


class ConversationTable:
    """A table with conversations, and a further column with the model's first answers (a `Table`).

    Args:
        table: the table.
        turns: its column with conversations.
    """

    def __init__(self, table: Table, turns: str) -> None:
        self._table = table
        self._turns = turns
        self._num_answers = 0
        # Some write the only image of a row as a list.
        self._lists = {
            name
            for name, kind in table.columns.items()
            if name.lower() in IMAGE_NAMES and kind in ("list of text", "list")
        }

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the table, and the one with the captions."""
        columns = {name: "text" if name in self._lists else kind for name, kind in self._table.columns.items()}
        return {**columns, _CAPTION: "text"}

    @property
    def position(self) -> int:
        """Bytes of the file that have been read."""
        return self._table.position

    @property
    def is_complete(self) -> bool:
        """Flag: the file could be read to its end."""
        return self._table.is_complete

    @property
    def unreadable(self) -> dict[str, str]:
        """The columns of the table that cannot be read, with their types."""
        return self._table.unreadable

    @property
    def sample(self) -> Sequence[Mapping[str, object]]:
        """Some rows."""
        return [self._convert(row) for row in self._table.sample]

    def resolve(self, name: str) -> str:
        """Return the column that a user means."""
        return name if name == _CAPTION else self._table.resolve(name)

    def notes(self) -> list[str]:
        """Describe how the file was read."""
        note = f"the caption is the first answer of the model in {self._turns}"
        if self._num_answers:
            note += f"; {self._num_answers:,} later answers are in no caption, but in the column {self._turns}"
        return [*self._table.notes(), note]

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        inner = {*columns, self._turns} - {_CAPTION}
        for record in self._table.read(inner, texts):
            if isinstance(record.values, dict):
                self._num_answers += max(len(_answers(record.values.get(self._turns))) - 1, 0)
                record = record._replace(values=self._convert(record.values))
            yield record

    def _convert(self, row: Mapping[str, object]) -> dict[str, object]:
        values = {**row, _CAPTION: next(iter(_answers(row.get(self._turns))), None)}
        for name in self._lists & row.keys():
            images = row[name]
            if isinstance(images, list) and len(images) == 1:
                values[name] = images[0]
        return values


def with_conversations(table: Table) -> Table:
    """Return a table with a column of captions if it has conversations and no captions; else the table itself."""
    if match_name(table.columns, CAPTION_NAMES) is not None:
        return table
    for name in _TURNS:
        if name in table.columns and any(_answers(row.get(name)) for row in table.sample):
            return ConversationTable(table, name)
    return table


def _answers(turns: object) -> list[str]:
    """Return what the model says in a conversation."""
    answers = []
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, Mapping) and str(turn.get("from", turn.get("role"))).lower() in _MODELS:
            text = turn.get("value", turn.get("content"))
            if isinstance(text, str) and text.strip():
                answers.append(text.strip())
    return answers
