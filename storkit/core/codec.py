"""Records to and from plain JSON values, checked against their type hints.

One mechanism for the agent's wire, the journal, sidecars, the inventory and guests' files: unknown keys, missing keys,
wrong types and what an identity may not be (storkit.core.identities) are all reported, each with the path of its key.
What another host says may come from a newer storkit: there unknown keys of records are left out (`strict` false).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any, TypeVar

from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.model import Secret

T = TypeVar("T")


def dump(value: Any, *, reveal: bool = False) -> Any:
    """`value` as JSON-able data. Secrets become stars unless `reveal` (only for the agent's pipe and 0600 files)."""
    if isinstance(value, Secret):
        return value.reveal() if reveal else "***"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: item if type(item) in _PLAIN else dump(item, reveal=reveal)
            for name in _fields(type(value))
            for item in (getattr(value, name),)
        }
    if isinstance(value, dict):
        return {key: item if type(item) in _PLAIN else dump(item, reveal=reveal) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [dump(item, reveal=reveal) for item in items]
    raise TypeError(f"no JSON form for {type(value).__name__}")


def text(record: object) -> str:
    """A record as the text of its file, secrets included: for 0600 files."""
    import json

    return json.dumps(dump(record, reveal=True), indent=1, sort_keys=True) + "\n"


def load(cls: type[T], data: Any, where: str = "", *, strict: bool = True) -> T:
    """`data` as a `cls`; every problem at once otherwise.

    `where` names the source in messages: a file, a verb. Raises UsageError or Problems.
    """
    problems: list[StorkitError] = []
    value = convert(cls, data, where, "", problems, strict)
    raise_problems(problems)
    return typing.cast(T, value)


def convert(hint: Any, data: Any, where: str, key: str, problems: list[StorkitError], strict: bool = True) -> Any:
    """`data` as the type `hint`, adding what is wrong to `problems` (the result is then not to be used)."""

    def wrong(message: str) -> None:
        place = ": ".join(part for part in (where, key) if part)
        problems.append(UsageError(f"{place}: {message}" if place else message))

    origin, args = _parts(hint)
    if hint is Any:
        return data
    if origin is typing.Annotated:
        count = len(problems)
        value = convert(args[0], data, where, key, problems, strict)
        for check in args[1:] if len(problems) == count else ():
            try:
                check(value)
            except UsageError as error:
                wrong(error.message)
        return value
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return convert(inner, data, where, key, problems, strict)
    if origin is typing.Literal:
        if data not in args:
            wrong(f"{data!r} is not one of {', '.join(repr(arg) for arg in args)}")
        return data
    if origin in (list, tuple, set, frozenset):
        if not isinstance(data, list):
            wrong(f"a list is wanted, not {_name(data)}")
            return None
        return origin(convert(args[0], item, where, f"{key}[{n}]", problems, strict) for n, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            wrong(f"a table is wanted, not {_name(data)}")
            return None
        kind, inner = args
        return {
            convert(kind, name, where, key, problems, strict): convert(
                inner, item, where, _join(key, name), problems, strict
            )
            for name, item in data.items()
        }
    if dataclasses.is_dataclass(hint):
        if not isinstance(data, dict):
            wrong(f"a table is wanted, not {_name(data)}")
            return None
        return _record(hint, data, where, key, problems, strict)
    if hint is Secret:
        hint = str
        secret = convert(str, data, where, key, problems)
        return Secret(secret) if isinstance(secret, str) else None
    if hint is float and type(data) in (int, float):
        if not -_LARGEST < data < _LARGEST:  # JSON has neither NaN nor infinity (RFC 8259, 6), and Python reads both
            wrong("a number is wanted, and not one without end")
            return None
        return float(data)
    if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
        wrong(f"{_name(hint)} is wanted, not {data!r}")
    return data


def _record(cls: Any, data: dict[str, Any], where: str, key: str, problems: list[StorkitError], strict: bool) -> Any:
    fields = _fields(cls)
    place = ": ".join(part for part in (where, key) if part)
    for name in data.keys() - fields.keys() if strict else ():
        known = ", ".join(sorted(fields))
        problems.append(UsageError(f"{place}: unknown key {name!r}".lstrip(": "), f"known here: {known}"))
    values: dict[str, Any] = {}
    count = len(problems)
    for name, (hint, required) in fields.items():
        if name in data:
            value = data[name]
            # Nearly all there is: text and numbers that are just what is wanted.
            plain = type(value) is hint is not float or _is_good(hint, value)
            values[name] = value if plain else convert(hint, value, where, _join(key, name), problems, strict)
        elif required:
            problems.append(UsageError(f"{place}: {name!r} is missing".lstrip(": ")))
    return cls(**values) if len(problems) == count else None


def _is_good(hint: Any, value: Any) -> bool:
    """Whether a value is text, or a number, that its checks let pass: what `convert` finds out at greater length."""
    kind, checks = _checked(hint)
    if type(value) is not kind:
        return False
    try:
        for check in checks:
            check(value)
    except UsageError:
        return False
    return True


@cache
def _checked(hint: Any) -> tuple[type | None, tuple[Any, ...]]:
    """The type and the checks of annotated text, or a number; None: it is something else."""
    origin, args = _parts(hint)
    if origin is typing.Annotated and args[0] in (str, int):
        return args[0], args[1:]
    return None, ()


_PLAIN = frozenset({str, int, bool, float, type(None)})
_LARGEST = 1e300


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """A record's fields: the type of each, and whether it must be there."""
    hints = typing.get_type_hints(cls, include_extras=True)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
    }


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _name(value: Any) -> str:
    names = {str: "a string", int: "a whole number", bool: "true or false", dict: "a table", list: "a list"}
    return names.get(value if isinstance(value, type) else type(value), repr(value))
