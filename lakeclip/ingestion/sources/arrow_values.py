"""Convert Arrow columns of any type to Python values that a lake can hold: texts, numbers, lists, dictionaries."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

_MONTHS = ("months", "days", "nanoseconds")


def kind_of_type(dtype: pa.DataType) -> str:
    """Return the type of a column as `infer_roles` calls it."""
    types = pa.types
    if types.is_dictionary(dtype) or types.is_run_end_encoded(dtype):
        return kind_of_type(dtype.value_type)
    if isinstance(dtype, pa.BaseExtensionType):
        return str(dtype) if _is_uuid(dtype) else kind_of_type(dtype.storage_type)
    if is_text(dtype):
        return "text"
    if is_binary(dtype):
        return "bytes"
    if types.is_struct(dtype):
        fields = {field.name: field.type for field in dtype}
        return "image" if "bytes" in fields and kind_of_type(fields["bytes"]) == "bytes" else str(dtype)
    if is_list(dtype):
        inner = kind_of_type(dtype.value_type)
        return f"list of {inner}" if inner in ("text", "bytes", "image") else str(dtype)
    return str(dtype)


def is_text(dtype: pa.DataType) -> bool:
    """Return whether values of a type are texts."""
    types = pa.types
    return bool(types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype))


def is_binary(dtype: pa.DataType) -> bool:
    """Return whether values of a type are bytes that may be images. Short ones of a fixed size are codes."""
    types = pa.types
    return bool(
        types.is_binary(dtype)
        or types.is_large_binary(dtype)
        or types.is_binary_view(dtype)
        or (types.is_fixed_size_binary(dtype) and dtype.byte_width > 64)
    )


def is_list(dtype: pa.DataType) -> bool:
    """Return whether values of a type are lists."""
    types = pa.types
    return bool(
        types.is_list(dtype)
        or types.is_large_list(dtype)
        or types.is_fixed_size_list(dtype)
        or types.is_list_view(dtype)
        or types.is_large_list_view(dtype)
    )


def to_python(column: pa.Array) -> list[object]:
    """Return the values of a column: times as ISO 8601, durations as integers in the unit of the column.

    Raises:
        pa.ArrowException, ValueError, TypeError, NotImplementedError: the type cannot be converted.
    """
    dtype = column.type
    types = pa.types
    if types.is_timestamp(dtype) or types.is_time(dtype) or types.is_date(dtype):
        return _times(column)
    if types.is_duration(dtype):
        values: list[object] = column.cast(pa.int64()).to_pylist()
        return values
    if types.is_dictionary(dtype):
        return to_python(column.dictionary_decode())
    if types.is_run_end_encoded(dtype):
        return to_python(pc.run_end_decode(column))
    if isinstance(dtype, pa.BaseExtensionType):
        stored = to_python(column.storage)
        if not _is_uuid(dtype):
            return stored
        return [None if value is None else str(uuid.UUID(hex=str(value))) for value in stored]
    if types.is_fixed_size_binary(dtype) and not is_binary(dtype):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    if is_text(dtype):
        return _texts(column)
    if types.is_decimal(dtype):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if str(dtype) == "month_day_nano_interval":
        return [None if value is None else dict(zip(_MONTHS, value, strict=True)) for value in column.to_pylist()]
    if types.is_struct(dtype) or is_list(dtype) or types.is_map(dtype) or types.is_union(dtype):
        return _nested(column)
    return list(column.to_pylist())


def _times(column: pa.Array) -> list[object]:
    """Return times as text: Python's types have no nanoseconds, and no years beyond 9999."""
    dtype = column.type
    zone = ""
    if pa.types.is_timestamp(dtype) and dtype.tz is not None:
        # A cast to UTC works without a time zone database; local time would need one.
        column, zone = column.cast(pa.timestamp(dtype.unit)), "Z"
    texts = column.cast(pa.string()).to_pylist()
    if not any(text is not None and text.startswith("<") for text in texts):
        return [None if text is None else text + zone for text in texts]
    width = pa.int32() if dtype.bit_width == 32 else pa.int64()
    numbers = column.cast(width).to_pylist()
    unit = getattr(dtype, "unit", "days" if dtype.bit_width == 32 else "ms")
    return [
        None if text is None else f"{number} {unit} since 1970" if text.startswith("<") else text + zone
        for text, number in zip(texts, numbers, strict=True)
    ]


def _texts(column: pa.Array) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check that texts are UTF-8
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        values = [
            None if value is None else value.decode("utf-8", "replace") for value in column.cast(binary).to_pylist()
        ]
    return values


def _nested(column: pa.Array) -> list[object]:
    """Return nested values: those of plain types at once, others one by one."""
    if _is_plain(column.type):
        values: list[object] = column.to_pylist()
        return values
    return [_value(column[index]) for index in range(len(column))]


def _is_plain(dtype: pa.DataType) -> bool:
    """Return whether `to_pylist` converts values of a type without loss."""
    types = pa.types
    if is_list(dtype):
        return _is_plain(dtype.value_type)
    if types.is_struct(dtype):
        names = [field.name for field in dtype]
        return len(set(names)) == len(names) and all(_is_plain(field.type) for field in dtype)
    return bool(
        types.is_boolean(dtype)
        or types.is_integer(dtype)
        or types.is_floating(dtype)
        or is_text(dtype)
        or is_binary(dtype)
        or types.is_fixed_size_binary(dtype)
        or types.is_null(dtype)
    )


def _value(scalar: pa.Scalar) -> object:
    """Return the value of one scalar."""
    dtype, types = scalar.type, pa.types
    if not scalar.is_valid:
        return None
    if is_list(dtype):
        return [_value(part) for part in scalar.values] if not types.is_null(dtype.value_type) else [None] * len(scalar)
    if types.is_map(dtype):
        pairs = [(_value(entry[0]), _value(entry[1])) for entry in _entries(scalar)]
        keys = [key for key, _ in pairs]
        if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
            return dict(pairs)
        return [[key, value] for key, value in pairs]
    if types.is_struct(dtype):
        names = _distinct([field.name for field in dtype])
        return {name: _value(scalar[index]) for index, name in enumerate(names)}
    if types.is_union(dtype):
        return _value(scalar.value)
    (value,) = to_python(pa.repeat(scalar, 1))
    return value


def _entries(scalar: pa.Scalar) -> Iterable[tuple[pa.Scalar, pa.Scalar]]:
    entries = scalar.values
    return ((entries.field(0)[index], entries.field(1)[index]) for index in range(len(entries)))


def _is_uuid(dtype: pa.DataType) -> bool:
    return getattr(dtype, "extension_name", "") == "arrow.uuid"


def _distinct(names: list[str]) -> list[str]:
    found: list[str] = []
    for number, name in enumerate(names, 1):
        found.append(name if name not in found else f"{name} {number}")
    return found


def column_reader(dtype: pa.DataType) -> Callable[[pa.Array], list[object]] | None:
    """Return a function that converts columns of a type; None if there is none, as an empty column shows."""
    try:
        probe = pa.nulls(1, dtype)
    except (pa.ArrowException, NotImplementedError):
        return to_python  # no such column can be made here, but one that was read may be converted
    try:
        to_python(probe)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError, KeyError):
        return None
    return to_python
