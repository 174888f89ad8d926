"""Values of settings: from text or YAML data to typed values, and back to text for people. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import MeshError

_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", Path: "a path"}
_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a field allows beside its type."""

    minimum: Any = None
    maximum: Any = None
    parse: Callable[[str], Any] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A value that was given.

    Attributes:
        where: for the error message.
        is_text: written as text (environment, command line); otherwise YAML data or a typed value.
        is_ready: already of the field's type.
    """

    value: Any
    where: str
    is_text: bool
    is_ready: bool = False


class Wrong(Exception):  # noqa: N818 - caught by the loader, which makes a Problem of it
    """A value that does not fit.

    Attributes:
        found: the value as people would write it.
        allowed: clause that says what is.
        index: of the item in a list, None when the value as a whole is wrong.
        is_type: False when the type is right and the value is not.
    """

    def __init__(self, found: Any, allowed: str, *, index: int | None = None, is_type: bool = True) -> None:
        super().__init__(allowed)
        self.found: str = found if isinstance(found, _Shown) else _Shown(show(found))
        self.allowed = allowed
        self.index = index
        self.is_type = is_type


class _Shown(str):
    """Text that has been made presentable."""

    __slots__ = ()


def show(value: Any) -> str:
    """A value in an error message: short, on one line, with its kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            text = repr(str(value))
            return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def parse_duration(text: str) -> dt.timedelta:
    """`24h`, `90s`, `1h30m`, `250ms`, `7d`.

    Raises:
        ValueError: when the text has another form, or the duration is longer than Python's.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError("a duration is written like 24h, 90s, 1h30m or 250ms")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    try:
        return dt.timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError("the duration is too long") from error


def format_duration(value: dt.timedelta) -> str:
    """The shortest text that `parse_duration` reads back, for durations of whole milliseconds."""
    millis = round(value / dt.timedelta(milliseconds=1))
    if millis <= 0:
        return "0s" if millis == 0 else f"-{format_duration(-value)}"
    text = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, millis = divmod(millis, size)
        text += f"{count}{unit}" if count else ""
    return text


def format_value(value: Any) -> str:
    """A value as it is written in a settings file."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case enum.Enum():
            return str(value.value)
        case dt.timedelta():
            return format_duration(value)
        case tuple():
            return f"[{', '.join(format_value(item) for item in value)}]"
        case str():
            return value or '""'
        case _:
            return str(value)


def item_type(hint: Any) -> Any:
    """`X` of `tuple[X, ...]`, else None."""
    arguments = typing.get_args(hint)
    is_list = typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is ...
    return arguments[0] if is_list else None


def allowed_text(hint: Any, bounds: Bounds) -> str:
    """What a field takes, as a phrase."""
    inner, optional = _without_none(hint)
    item = item_type(inner)
    if item is not None:
        text = (
            "a list of mappings"
            if dataclasses.is_dataclass(item) and bounds.parse is None
            else f"a list of: {allowed_text(item, bounds)}"
        )
    elif isinstance(inner, type) and issubclass(inner, enum.Enum):
        text = "one of " + ", ".join(str(member.value) for member in inner)
    elif inner is dt.timedelta:
        text = "a duration such as 24h, 90s or 1h30m"
    else:
        text = str(_NAMES.get(inner) or getattr(inner, "__name__", inner))
    if item is None:
        text += _range_text(bounds)
    return f"{text}, or none" if optional else text


def _range_text(bounds: Bounds) -> str:
    low, high = bounds.minimum, bounds.maximum
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {format_value(low)}"
    if low is None:
        return f", at most {format_value(high)}"
    return f", {format_value(low)} to {format_value(high)}"


def read(found: Found, hint: Any, bounds: Bounds) -> Any:
    """The typed value.

    Raises:
        Wrong: when the value does not fit the type or the bounds.
    """
    if found.is_ready:
        return found.value
    inner, optional = _without_none(hint)
    if optional and (found.value is None or (found.is_text and found.value in {"", "none"})):
        return None
    item = item_type(inner)
    if item is None:
        return _one(found.value, inner, bounds, is_text=found.is_text)
    return _list(found, item, bounds)


def _list(found: Found, item: Any, bounds: Bounds) -> tuple[Any, ...]:
    if dataclasses.is_dataclass(item) and bounds.parse is None:
        raise Wrong(found.value, "allowed is a list of mappings, in the file")
    values = found.value
    if found.is_text:
        values = [part.strip() for part in values.split(",")] if values.strip() else []
    if not isinstance(values, list | tuple):
        raise Wrong(values, f"allowed is {allowed_text(tuple[item, ...], bounds)}")
    result = []
    for index, value in enumerate(values):
        try:
            result.append(_one(value, item, bounds, is_text=found.is_text))
        except Wrong as wrong:
            raise Wrong(wrong.found, wrong.allowed, index=index, is_type=wrong.is_type) from wrong
    return tuple(result)


def _one(value: Any, hint: Any, bounds: Bounds, *, is_text: bool) -> Any:
    try:
        if bounds.parse is not None:
            result = bounds.parse(value) if isinstance(value, str) else _typed(value, hint)
        else:
            result = _from_text(value, hint) if is_text else _from_data(value, hint)
    except MeshError as error:
        raise Wrong(value, error.public, is_type=False) from error
    except ValueError as error:
        raise Wrong(value, f"allowed is {allowed_text(hint, bounds)} ({error})", is_type=False) from error
    except TypeError as error:
        raise Wrong(value, f"allowed is {allowed_text(hint, bounds)}") from error
    too_low = bounds.minimum is not None and result < bounds.minimum
    if too_low or (bounds.maximum is not None and result > bounds.maximum):
        raise Wrong(value, f"allowed is {allowed_text(hint, bounds)}", is_type=False)
    return result


def _typed(value: Any, hint: Any) -> Any:
    """The value, when a program gave it and it is of the type already."""
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise TypeError


def _from_text(text: str, hint: Any) -> Any:
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise TypeError
    if hint is int:
        if _INTEGER.fullmatch(text):
            return int(text)
        raise TypeError
    if hint is float:
        return _finite(text)
    return _from_data(text, hint)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise TypeError from error
    if not math.isfinite(value):
        raise TypeError
    return value


def _from_data(value: Any, hint: Any) -> Any:
    if isinstance(value, str):
        return _from_word(value, hint)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _typed(value, hint)


def _from_word(value: str, hint: Any) -> Any:
    if hint is str:
        return value
    if hint is Path:
        if not value or "\0" in value:
            raise ValueError("a path must not be empty")
        return Path(value)
    if hint is dt.timedelta:
        return parse_duration(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            if value in {member.value, member.name}:
                return member
    raise TypeError


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        rest = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False
