"""A teacher's card: what it is, what it was trained for, and how images are fed to it."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fdjax import checks, data
from fdjax.faculty import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a teacher besides its weights.

    Attributes:
        name: 1 to 100 letters, digits, ".", "_" and "-", not beginning with ".".
        architecture: One of `models.MODELS`, or `cards.ONNX`; for a teacher known only by its
            outputs, anything.
        options: Options of the architecture; of an ONNX file those of `onnx_files`.
        class_names: Name of each of its labels, all different.
        source_task: What it was trained for.
        preprocessing: How images are fed to it; None for a teacher known only by its outputs.
        num_parameters: Trained numbers; None where unknown.
        source_accuracy: Accuracy in [0, 1] on the source task; None where unknown.
        digest: SHA-256 of its weights (of its outputs, where only they are known) with
            their names, shapes and types; empty until registered.
        licence: Of the weights; None where unknown.

    Raises:
        InputError: If a value is not of this kind.
    """

    name: str
    architecture: str
    class_names: tuple[str, ...]
    source_task: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: data.Preprocessing | None = None
    num_parameters: int | None = None
    source_accuracy: float | None = None
    digest: str = ""
    licence: str | None = None

    def __post_init__(self) -> None:
        _check(vars(self))
        # JSON knows only lists, networks take only tuples.
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.options.items()
        }
        object.__setattr__(self, "options", options)


ONNX = "onnx"
"""Architecture of a teacher that is an ONNX file."""


def preprocessing_of(card: Card) -> data.Preprocessing:
    """How images are fed to a teacher that can be run.

    Raises:
        InputError: If the teacher is known only by its outputs.
    """
    if card.preprocessing is None:
        raise checks.InputError(
            f"the card of teacher {card.name!r} has no `preprocessing`, so it cannot be run; give "
            "it one, or use `register_outputs` and `observe` where only its outputs are known."
        )
    return card.preprocessing


def to_json(card: Card) -> str:
    """The card as it stands in card.json."""
    return json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, file: Path) -> Card:
    """The card written by `to_json`.

    Args:
        text: Contents of the file.
        file: Where it stands, for messages.

    Raises:
        InputError: If it is no card; the message names the file and the key.
    """
    try:
        return Card(**_values(text))
    except checks.InputError as error:
        raise checks.InputError(
            f"{file} is no valid card: {error} Mend the file or register the teacher again."
        ) from error


def _values(text: str) -> dict[str, Any]:
    """The values of a card by field."""
    values = files.parse_json(text)
    _same_keys("the card", values, Card)
    checks.require(values["digest"] != "", "`digest` is empty.")
    if values["preprocessing"] is not None:
        values["preprocessing"] = _preprocessing(values["preprocessing"])
    _check(values)
    accuracy = values["source_accuracy"]
    return values | {
        "class_names": tuple(values["class_names"]),
        "source_accuracy": None if accuracy is None else float(accuracy),
    }


def _check(values: Mapping[str, Any]) -> None:
    for key, (fits, meaning) in _RULES.items():
        value = values[key]
        checks.require(fits(value), f"`{key}` must be {meaning}, got {reprlib.repr(value)}.")


def _preprocessing(values: Any) -> data.Preprocessing:
    _same_keys("`preprocessing`", values, data.Preprocessing)
    sizes = all(_is_whole(values[key]) for key in ("height", "width", "channels"))
    moments = all(
        isinstance(values[key], list) and all(_is_number(entry) for entry in values[key])
        for key in ("mean", "std")
    )
    checks.require(
        sizes and moments,
        "`preprocessing` must give height, width and channels as integers, mean and std as lists "
        f"of numbers, got {reprlib.repr(values)}.",
    )
    try:
        return data.Preprocessing(**values)
    except checks.InputError as error:
        raise checks.InputError(f"`preprocessing`: {error}") from error


def _same_keys(what: str, values: Any, kind: type) -> None:
    """Refuses what is no JSON object with exactly the fields of a dataclass."""
    checks.require(
        isinstance(values, dict), f"{what} must be an object, got {reprlib.repr(values)}."
    )
    known = {field.name for field in dataclasses.fields(kind)}
    for key in sorted(set(values) ^ known):
        problem = "is missing" if key in known else "is unknown"
        raise checks.InputError(f"{what}: key `{key}` {problem}.")


def is_name(value: Any) -> bool:
    """True for the name of a teacher: safe as the name of a folder, so no path in disguise."""
    pattern = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or value == "":
        return False
    try:
        checks.text("text", value)
    except checks.InputError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_number(value: Any) -> bool:
    # NaN fails the comparison too, and no larger number can be meant.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


def _is_accuracy(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"([0-9a-f]{64})?", value) is not None


def _are_class_names(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and all(name == "" or _is_text(name) for name in value)
    return listed and 0 < len(value) == len(set(value))


def _are_options(value: Any) -> bool:
    # A network is traced before its weights are compared: one of a million layers would take days.
    def plain(entry: Any) -> bool:
        return _is_text(entry) or (isinstance(entry, int | float) and abs(entry) <= 2**16)

    def fits(entry: Any) -> bool:
        if isinstance(entry, list | tuple):
            return len(entry) <= 256 and all(map(plain, entry))
        return plain(entry)

    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(fits, value.values()))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_NAME = "1 to 100 letters, digits, '.', '_' or '-' not beginning with '.'"

_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_name, _NAME),
    "architecture": (_is_text, "the name of an architecture"),
    "options": (_are_options, "options by name, each a number, a text or a list of them"),
    "class_names": (
        _are_class_names,
        "a list of at least one name, all different and without control characters",
    ),
    "source_task": (_is_text, "the name of a task"),
    "preprocessing": (
        _or_none(lambda value: isinstance(value, data.Preprocessing)),
        "a data.Preprocessing or None",
    ),
    "num_parameters": (_or_none(_is_whole), "an integer of at least 0 or None"),
    "source_accuracy": (_or_none(_is_accuracy), "a number in [0, 1] or None"),
    "digest": (_is_digest, "64 hexadecimal digits"),
    "licence": (_or_none(_is_text), "a name or None"),
}
