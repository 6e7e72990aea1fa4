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


def pairs(text: str, known: Mapping[str, Any]) -> dict[str, str]:
    """The settings that stand behind a name, as they stand there.

    Args:
        text: As on a command line, such as "transport:weight=1:epsilon=0.5".
        known: Settings that the name has, with their defaults.

    Raises:
        InputError: If a setting is unknown or has no value.
    """
    name, *found = text.split(":")
    settings = {}
    for pair in found:
        key, equals, word = pair.partition("=")
        checks.require(bool(equals), f"`{text}`: write a setting as name=value, not {pair!r}.")
        checks.choice(f"setting of {name}", key, known)
        settings[key] = word
    return settings


def value(text: str, value: str, default: Any) -> Any:
    """A setting's value, of the kind of its default.

    Raises:
        InputError: If it is of another kind.
    """
    if isinstance(default, bool):
        checks.choice(f"switch in {text}", value, ("true", "false"))
        return value == "true"
    if isinstance(default, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise checks.InputError(f"`{text}`: {value!r} is no number.") from None


def read(text: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that stand behind a name, of the kind of their defaults; see `pairs`."""
    return {key: value(text, word, known[key]) for key, word in pairs(text, known).items()}
