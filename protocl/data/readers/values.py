"""The values of a column as what they stand for: numbers, classes, moments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NoReturn

import numpy as np

from protocl.errors import DataError

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
_MOST = 2**63
_DIGITS = 400
"""Of a whole number at the most: Python refuses longer ones than some thousand."""
_MISSING = ("", "na", "n/a", "nan", "null", "?")


def missing(value: Any) -> bool:
    """Whether a value stands for none."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and value.lower() in _MISSING)


def require_all(values: Sequence[Any], what: str) -> None:
    """Refuse a column with a value missing.

    Raises:
        DataError: it names the first row.
    """
    absent = [row for row, value in enumerate(values, start=1) if missing(value)]
    if absent:
        raise DataError(
            f"{what}: row {absent[0]} has no value ({len(absent)} of {len(values)} rows have none);"
            " fill them in, or leave these rows out"
        )


def numbers(values: Sequence[Any], what: str, *, decimal_comma: bool = False) -> np.ndarray:
    """A column as ``(N,)`` float64, or ``(N, K)`` where each value is a list of ``K`` numbers.

    Truth values are 1 and 0.

    Raises:
        DataError: a value is missing or no number, its thousands are separated, or lists differ in
            length.
    """
    require_all(values, what)
    written = values
    if decimal_comma:
        _refuse_points(values, what)
        values = [v.replace(",", ".") if isinstance(v, str) else v for v in values]
    truths = {"true": 1.0, "false": 0.0}
    if isinstance(values[0], str) and values[0].lower() in truths:
        values = [truths.get(str(v).lower(), v) for v in values]
    try:
        _refuse_underscores(values, what)
        return np.array(values).astype(np.float64)
    except (ValueError, TypeError) as error:
        row = next((r for r, v in enumerate(values, start=1) if not is_number(v)), None)
        if row is None:
            raise DataError(f"{what}: the lists of its rows differ in length") from error
        raise DataError(
            f"{what}: row {row} holds '{written[row - 1]}', which is no number; name the columns "
            "that are features in benchmark.columns.features=[A,B], or encode this one as numbers "
            "(docs/data.md does so with text)"
        ) from error


def has_decimal_comma(values: Sequence[Any]) -> bool:
    """Whether a value can only be read with a decimal comma: ``1,5``, but not ``1,138``."""
    commas = [v for v in values if isinstance(v, str) and v.count(",") == 1]
    return any(is_number(v.replace(",", ".")) and not _THOUSANDS.fullmatch(v) for v in commas)


def refuse_thousands(values: Sequence[Any], what: str) -> None:
    """Refuse a column that holds ``1,138`` beside whole numbers such as ``951``.

    Raises:
        DataError: it names the first row with a separator.
    """
    texts = [v if isinstance(v, str) else "" for v in values]
    rows = [row for row, text in enumerate(texts, start=1) if _THOUSANDS.fullmatch(text)]
    if rows and any(text.isdecimal() and len(text) >= 3 for text in texts):
        _refuse_separated(what, rows[0], values[rows[0] - 1])


def _refuse_points(values: Sequence[Any], what: str) -> None:
    for row, value in enumerate(values, start=1):
        if isinstance(value, str) and "." in value and is_number(re.sub("[.,]", "", value)):
            _refuse_separated(what, row, value)


def _refuse_separated(what: str, row: int, value: str) -> NoReturn:
    raise DataError(f"{what}: row {row} holds '{value}': thousands separators; remove them")


def _refuse_underscores(values: Sequence[Any], what: str) -> None:
    for row, value in enumerate(values, start=1):
        if isinstance(value, str) and "_" in value and is_number(value):
            raise DataError(f"{what}: row {row} holds '{value}': write numbers without '_'")


def is_number(value: Any) -> bool:
    """Whether a value, or each in a list of them, reads as a number."""
    try:
        np.asarray(value).astype(np.float64)
    except (ValueError, TypeError):
        return False
    return True


def labels(values: Sequence[Any], what: str) -> tuple[np.ndarray, list[str] | None]:
    """A column of classes as :func:`.to_class_ids` takes it, with names where numbers are none.

    Whole numbers stay numbers; texts, truth values, and numbers written otherwise than they are
    counted (``007``) are names. Negative whole numbers are names in their own order.

    Raises:
        DataError: a value is missing, or a number has a fraction.
    """
    require_all(values, what)
    plain = not all(map(is_number, values)) or isinstance(values[0], bool)
    if plain:
        return np.array([str(value) for value in values]), None
    whole = np.array([float(value) for value in values])
    if (whole != np.floor(whole)).any():
        row = int((whole != np.floor(whole)).argmax())
        raise DataError(
            f"{what}: row {row + 1} holds {values[row]}; classes are texts or whole numbers: cut "
            "numbers into classes first, or name another column in benchmark.columns.label"
        )
    if any(isinstance(value, str) and not _counted(value) for value in values):
        return np.array(values), None
    if whole.min() < 0:
        names = [str(int(value)) for value in np.unique(whole)]
        return np.array([str(int(value)) for value in whole]), names
    return _exact(values, what), None


def _exact(values: Sequence[Any], what: str) -> np.ndarray:
    """Whole numbers as they are: in floating point two large ones may become one."""
    numbers = [int(v.removesuffix(".0")) if isinstance(v, str) else int(v) for v in values]
    return np.array([_bounded(number, what) for number in numbers], dtype=np.int64)


Label = int | str
"""A class: a whole number, or a name."""


def label_of(value: Any, what: str) -> Label:
    """One class by itself, as :func:`labels` has it in a column: a whole number, or a name.

    Args:
        value: a number, truth value, text, or the bytes of one in UTF-8.
        what: whose class it is, for messages.

    Raises:
        DataError: there is none, it is no class, or a number has a fraction.

    >>> label_of("7", ""), label_of("007", ""), label_of(3.0, ""), label_of("otter", "")
    (7, '007', 3, 'otter')
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{what} has a label that is not UTF-8 ({error})") from error
    value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    if missing(value):
        raise DataError(f"{what} has no label")
    if isinstance(value, str) and _counted(value):
        return _bounded(int(value.removesuffix(".0")), what)
    if isinstance(value, bool) or (isinstance(value, str) and not _has_fraction(value)):
        return _readable(str(value), what)
    if not isinstance(value, int | float) or _has_fraction(value):
        raise DataError(f"{what} has the label {value!r}; expected a text or a whole number")
    return _bounded(int(value), what)


def _bounded(number: int, what: str) -> int:
    if abs(number) >= _MOST:
        raise DataError(
            f"{what} has the label {number}; expected whole numbers below 2^63: put a letter "
            "before larger ones, so that they are texts"
        )
    return number


def _readable(text: str, what: str) -> str:
    """A name as it can be kept: NumPy drops zero characters, of which two names may become one."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{what} has the label {text!r}; expected a text without zero characters and halves "
            "of surrogate pairs"
        )
    return text


def _has_fraction(value: str | float) -> bool:
    return is_number(value) and not float(value).is_integer()


def moments(values: Sequence[Any], what: str) -> np.ndarray:
    """A column of times ``(N,)`` that can be sorted: numbers, or dates as ISO 8601 writes them.

    Raises:
        DataError: a value is missing or neither, or some have a time zone and some have none.
    """
    require_all(values, what)
    if all(isinstance(value, str) and is_number(value) for value in values):
        return np.array([float(value) for value in values])
    try:
        read = [datetime.fromisoformat(v) if isinstance(v, str) else v for v in values]
        order = sorted(range(len(read)), key=lambda row: _comparable(read[row]))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{what}: {error}; expected numbers, or dates such as 2026-01-31 or "
            "2026-01-31T12:00:00, all of one kind"
        ) from error
    ranks = np.empty(len(read), dtype=np.int64)
    ranks[order] = np.arange(len(read))
    return ranks


def _comparable(value: Any) -> Any:
    plain_date = isinstance(value, date) and not isinstance(value, datetime)
    return datetime(value.year, value.month, value.day) if plain_date else value


def _counted(text: str) -> bool:
    """Whether a text is a whole number as one counts: ``7``, ``-1``, ``3.0``, but not ``007``."""
    whole = text.removesuffix(".0")
    if len(whole) > _DIGITS:
        return False
    return whole.removeprefix("-").isdecimal() and str(int(whole)) == whole
