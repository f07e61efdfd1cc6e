"""Typed settings of an experiment: checked values, `key=value` overrides, and the hash that names a configuration."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown or has a value of the wrong type; the message says which and what was expected."""


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class the configuration of an experiment: a frozen dataclass whose values pydantic checks.

    Unknown keys, NaN and infinity are refused. Every field needs a type and a default.

    >>> @config
    ... class Config:
    ...     epochs: int = 30
    >>> Config(epochs="7").epochs
    7
    """
    return pydantic.dataclasses.dataclass(cls, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))  # pyrefly: ignore


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON values, in the order of the fields."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def config_hash(settings: Any) -> str:
    """Eight hexadecimal digits that name a configuration; the order of the fields does not matter.

    >>> @config
    ... class Config:
    ...     epochs: int = 30
    >>> config_hash(Config()) == config_hash(Config(epochs=30)) != config_hash(Config(epochs=31))
    True
    """
    return dict_hash(as_dict(settings))


def dict_hash(settings: Mapping[str, Any]) -> str:
    """The hash of settings that are plain JSON values already, as a record stores them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def override(settings: T, assignments: Sequence[str]) -> T:
    """The settings with `key=value` assignments applied, each value read as its field's type says.

    Numbers, booleans and words are written as they are; tuples, lists and null as JSON (`sizes=[64,32]`).

    Raises:
        ConfigError: an assignment without "=", an unknown key, or a value of the wrong type.

    >>> @config
    ... class Config:
    ...     epochs: int = 30
    >>> override(Config(), ["epochs=5"]).epochs
    5
    """
    fields = {field.name: field.type for field in dataclasses.fields(settings)}  # pyrefly: ignore[bad-argument-type]
    values: dict[str, Any] = {name: getattr(settings, name) for name in fields}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is not a setting; write key=value, for example {next(iter(fields))}=...")
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"there is no setting {key!r}{hint}; there are: {', '.join(fields)}")
        values[key] = _parse(type(settings), values, key, text)
    return type(settings)(**values)


def _parse(cls: type, values: Mapping[str, Any], key: str, text: str) -> Any:
    """`text` as the value of the field `key`: null where that is allowed, then as it is written, else as JSON."""
    candidates: list[Any] = [None, text] if text == "null" else [text]
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        value = json.loads(text)
        if not isinstance(value, bool):  # as text, true is a boolean and never the number 1
            candidates.append(value)
    message = ""
    for candidate in candidates:
        try:
            return getattr(cls(**{**values, key: candidate}), key)
        except ValidationError as error:
            message = message or error.errors()[0]["msg"]
    raise ConfigError(f"{key}={text}: {message[:1].lower()}{message[1:]}")
