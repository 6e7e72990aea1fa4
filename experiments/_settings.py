"""What a flag names, with settings: name:setting=value:setting=value."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fdjax import checks


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keywords of a function that are numbers, switches or names, and their defaults."""
    return {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, bool | float | str)
    }


def read(text: str, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name in a text, and its settings as values of the kind of their defaults.

    Args:
        text: As on a command line, such as "transport:weight=1:epsilon=0.5".
        known: Settings that the name has, with their defaults.

    Raises:
        InputError: If a setting is unknown or a value is not of the setting's kind.
    """
    name, *pairs = text.split(":")
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        checks.require(bool(equals), f"`{text}`: write a setting as name=value, not {pair!r}.")
        checks.choice(f"setting of {name}", key, known)
        settings[key] = _value(text, value, known[key])
    return name, settings


def _value(text: str, value: str, default: Any) -> Any:
    """A setting's value, of the kind of its default."""
    if isinstance(default, bool):
        checks.choice(f"switch in {text}", value, ("true", "false"))
        return value == "true"
    if isinstance(default, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise checks.InputError(f"`{text}`: {value!r} is no number.") from None
