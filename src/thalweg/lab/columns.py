"""What the columns of published data must hold, and what is wrong with a value that does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar


def shown(value: Any) -> str:
    """A value in a message."""
    return f"{value!r:.60}"


def kind_of(type_: Any) -> str:
    """An Arrow type in a message; what may differ between files of one data set is left out."""
    import pyarrow

    if pyarrow.types.is_integer(type_):
        return "a whole number"
    if pyarrow.types.is_list(type_) or pyarrow.types.is_large_list(type_):
        return f"a sequence, each {kind_of(type_.value_type)}"
    if pyarrow.types.is_struct(type_):
        return f"a structure of {', '.join(sorted(field.name for field in type_))}"
    return str(type_).removeprefix("large_")


class Column(ABC):
    """What a column holds. ``classes`` are the names of its numbers, in the order of the task, where that matters."""

    classes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""

    def right(self, column: Any, feature: Any) -> bool:
        """Whether all values of an Arrow column are right, as far as this can be told at once."""
        return False


class TextColumn(Column):
    """A text in each row."""

    def problem(self, value: Any) -> str | None:
        """What is not a text."""
        if value is None:
            return "is null"
        return None if isinstance(value, str) else f"is {shown(value)}, not a text"

    def right(self, column: Any, feature: Any) -> bool:
        """Of strings all are, if none is null."""
        return getattr(feature, "dtype", None) in ("string", "large_string") and column.null_count == 0


class LabelColumn(Column):
    """A class in each row, as a whole number.

    Args:
        count: how many classes there are.
        classes: their names in the order that the task counts them, where a number of the task depends on it.
    """

    def __init__(self, count: int, classes: Sequence[str] = ()) -> None:
        self.count, self.names = count, tuple(classes)

    def problem(self, value: Any) -> str | None:
        """What is not a whole number from 0 to ``count - 1``."""
        if value is None:
            return "is null"
        if not isinstance(value, int) or isinstance(value, bool):
            return f"is {shown(value)}, not a whole number from 0 to {self.count - 1}"
        if 0 <= value < self.count:
            return None
        hidden = ", which stands for a label that is not published" if value == -1 else ""
        return f"is {value}{hidden}, not a whole number from 0 to {self.count - 1}"

    def right(self, column: Any, feature: Any) -> bool:
        """Of integers all are, if the least and the greatest are."""
        import pyarrow
        from pyarrow import compute

        if not pyarrow.types.is_integer(column.type) or column.null_count:
            return False
        bounds = compute.min_max(column).as_py()
        return not len(column) or (bounds["min"] >= 0 and bounds["max"] < self.count)


class ImageColumn(Column):
    """An image in each row, as bytes or the path of a file; whether it can be decoded shows when it is."""

    def problem(self, value: Any) -> str | None:
        """What has neither bytes nor a path."""
        if value is None or (isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None):
            return "is null"
        if isinstance(value, (dict, bytes, str)):
            return None
        return f"is {shown(value)}, not an image"

    def right(self, column: Any, feature: Any) -> bool:
        """Without reading any: all have bytes, or all have a path."""
        import pyarrow
        from pyarrow import compute

        if column.null_count:
            return False
        if not pyarrow.types.is_struct(column.type):
            return bool(pyarrow.types.is_binary(column.type) or pyarrow.types.is_string(column.type))
        fields = {field.name for field in column.type} & {"bytes", "path"}
        return any(not compute.struct_field(column, name).null_count for name in fields)


class SequenceColumn(Column):
    """A sequence in each row, of texts or, where ``tags`` is true, of texts or whole numbers."""

    def __init__(self, *, tags: bool = False) -> None:
        self.tags = tags

    def problem(self, value: Any) -> str | None:
        """What is not a sequence, or has an element that it should not have."""
        if value is None:
            return "is null"
        if not isinstance(value, (list, tuple)):
            return f"is {shown(value)}, not a sequence"
        kinds = (str, int) if self.tags else (str,)
        for place, one in enumerate(value):
            if not isinstance(one, kinds) or isinstance(one, bool):
                return f"has {shown(one)} at place {place}, not a {'tag' if self.tags else 'word'}"
        return None
