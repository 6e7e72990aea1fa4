"""Teachers on disk: making the folder, registering, listing and loading them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace as with_values
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fdjax import checkpoints, checks, locks, models
from fdjax.faculty import files, fitting, records
from fdjax.faculty.cards import ONNX, Card, from_json, is_name, preprocessing_of, to_json
from fdjax.types import Network, TeacherOutputs, Variables

Root = str | os.PathLike[str]

_FORMAT = 1


def create(root: Root) -> Path:
    """Makes an empty faculty; one that is there already stays as it is.

    Returns:
        Its absolute path.

    Raises:
        InputError: If the folder holds something else or cannot be written.
    """
    path = Path(os.path.abspath(root))
    with checks.writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if (path / files.MANIFEST).exists():
            _names(path)
            return path
        # Hidden files are no obstacle: an earlier kill may have left one of ours.
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name[0] != ".")
        checks.require(
            not foreign,
            f"{path} is not empty and no faculty (it holds {', '.join(foreign[:3])}); "
            "choose an empty folder.",
        )
        _write_manifest(path, ())
    return path


def register(
    root: Root,
    card: Card,
    variables: Variables,
    *,
    replace: bool = False,
    participation: records.Participation | None = None,
) -> Card:
    """Adds a trained teacher.

    Args:
        root: A faculty.
        card: What is known of it; `digest` and `num_parameters` are filled in.
        variables: Its weights, for the architecture and image size of the card.
        replace: Whether a teacher of this name makes way; otherwise the name is refused.
        participation: How often each image took part, if its training was self-regulated.

    Returns:
        The card as registered.

    Raises:
        InputError: If the name is taken, the weights do not fit the card, or the folder cannot
            be written. The faculty is then as before.
    """
    variables = jax.tree.map(np.asarray, variables)
    fitting.check_weights(card, variables, f"the variables handed in for teacher {card.name!r}")
    card = with_values(
        card, digest=_digest(variables), num_parameters=models.num_parameters(variables)
    )

    def write(folder: Path) -> None:
        checkpoints.save_tree(folder / files.VARIABLES, variables)
        if participation is not None:
            records.write(folder, participation, card.digest)

    return add(root, card, write, replace)


def register_outputs(
    root: Root,
    card: Card,
    outputs: TeacherOutputs | Mapping[str, Any],
    images_digest: str,
    *,
    replace: bool = False,
) -> Card:
    """Adds a teacher of which only its outputs on one set of images are known.

    Args:
        root: A faculty.
        card: What is known of it, without `preprocessing`; `digest` is filled in.
        outputs: "probabilities" and, where known, "features" and "class_vectors", as in
            `TeacherOutputs`; its other entries belong on the card.
        images_digest: `data.digest` of the images.
        replace: As in `register`.

    Returns:
        The card as registered.

    Raises:
        InputError: As in `register`.
    """
    checks.require(
        card.preprocessing is None,
        f"teacher {card.name!r} is known only by its outputs, so its card takes no "
        "`preprocessing`.",
    )
    given = outputs._asdict() if isinstance(outputs, TeacherOutputs) else dict(outputs)
    arrays = {
        name: np.asarray(given[name], np.float32)
        for name in ("probabilities", "features", "class_vectors")
        if given.get(name) is not None
    }
    fitting.check_outputs(card, arrays)
    arrays["images_digest"] = np.asarray(images_digest, np.str_)
    card = with_values(card, digest=files.digest(arrays))
    return add(
        root, card, lambda folder: files.write_arrays(folder / files.OUTPUTS, arrays), replace
    )


def add(root: Root, card: Card, write: Callable[[Path], Any], replace: bool) -> Card:
    """Adds a teacher whose card is complete; the other ways to register end here.

    Its folder is written under a hidden name and moved into place, then it is listed.

    Args:
        root: A faculty.
        card: With its digest.
        write: Puts all files but the card into the folder that it is given.
        replace: As in `register`.

    Raises:
        InputError: If the name is taken or the folder cannot be written.
    """
    path = Path(os.path.abspath(root))
    _names(path)
    target = path / "teachers" / card.name
    new = target.with_name(f".{card.name}.new")
    # Two at once would each write a manifest that lacks the other's teacher.
    with checks.writing(target), locks.held(path / files.LOCK):
        names = _names(path)
        checks.require(
            replace or card.name not in names,
            f"{path} has a teacher {card.name!r} already; choose another name or give "
            "`replace=True`.",
        )
        files.require_inside(path, target)
        if new.exists():  # left by a kill
            shutil.rmtree(new)
        new.mkdir(parents=True)
        try:
            write(new)
            (new / files.CARD).write_text(to_json(card), encoding="utf-8")
            checkpoints.put_folder(new, target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if card.name not in names:
            _write_manifest(path, (*names, card.name))
    return card


def cards(root: Root) -> tuple[Card, ...]:
    """The card of each teacher, in the order of registration.

    Raises:
        InputError: If there is no faculty, or its manifest or a card is broken.
    """
    path = Path(os.path.abspath(root))
    return tuple(_read_card(path, name) for name in _names(path))


def read_card(root: Root, name: str) -> Card:
    """The card of one teacher.

    Raises:
        InputError: If there is no such teacher or its card is broken.
    """
    path = Path(os.path.abspath(root))
    checks.choice("name of the teacher", name, _names(path))
    return _read_card(path, name)


def load(root: Root, name: str) -> tuple[Card, Network, Variables]:
    """A teacher with its weights.

    Args:
        root: A faculty.
        name: Of the teacher.

    Returns:
        Its card, the frozen network, and the weights as NumPy arrays.

    Raises:
        InputError: If there is no such teacher, only its outputs are known, or the weights are
            damaged, not those of the card, or not of its architecture and labels.
    """
    card = read_card(root, name)
    preprocessing_of(card)
    checks.require(
        card.architecture != ONNX,
        f"teacher {name!r} is an ONNX file: it can be observed, but its weights cannot be loaded.",
    )
    path = teacher_folder(root, name) / files.VARIABLES
    variables = checkpoints.load_tree(path)
    checks.require(
        _digest(variables) == card.digest,
        f"the weights of teacher {name!r} in {path} are not those of its card (their digest "
        "differs); restore them from a copy, or register the teacher again with `replace=True`.",
    )
    fitting.check_weights(card, variables, f"{path} of teacher {name!r}")
    return card, models.frozen(fitting.network(card)), variables


def load_outputs(root: Root, card: Card) -> dict[str, np.ndarray]:
    """What was handed to `register_outputs`, and "images_digest".

    Raises:
        InputError: If the file is missing, damaged or not that of the card.
    """
    path = teacher_folder(root, card.name) / files.OUTPUTS
    mend = "restore it from a copy, or register the teacher's outputs again with `replace=True`"
    try:
        arrays = files.read_arrays(path)
    except OSError as error:
        raise checks.InputError(
            f"cannot read {path} of teacher {card.name!r} ({error}); {mend}."
        ) from error
    checks.require(
        files.digest(arrays) == card.digest,
        f"{path} is not what the card of teacher {card.name!r} tells (the digest differs); {mend}.",
    )
    checks.require(
        arrays.get("images_digest", np.zeros(0)).dtype.kind == "U",
        f"{path} does not tell of which images it is; {mend}.",
    )
    given = {key: array for key, array in arrays.items() if key != "images_digest"}
    fitting.check_outputs(card, given)
    return arrays


def load_onnx(root: Root, card: Card) -> bytes:
    """The ONNX file of a teacher.

    Raises:
        InputError: If it is missing or not that of the card.
    """
    path = teacher_folder(root, card.name) / files.ONNX
    mend = "restore it from a copy, or register the file again with `replace=True`"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise checks.InputError(f"cannot read {path} ({error.strerror}); {mend}.") from error
    checks.require(
        file_digest(content) == card.digest,
        f"{path} is not the file of which the card of teacher {card.name!r} tells; {mend}.",
    )
    return content


def file_digest(content: bytes) -> str:
    """SHA-256 of a teacher that is one file, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def teacher_folder(root: Root, name: str) -> Path:
    """Where the files of a teacher are to be read."""
    target = Path(os.path.abspath(root)) / "teachers" / name
    return checkpoints.existing_folder(target) or target


def _read_card(root: Path, name: str) -> Card:
    path = teacher_folder(root, name) / files.CARD
    mend = f"restore it from a copy, or register teacher {name!r} again with `replace=True`"
    card = from_json(files.read_text(path, mend), path)
    checks.require(
        card.name == name, f"{path} is the card of teacher {card.name!r}, not of {name!r}; {mend}."
    )
    return card


def _write_manifest(root: Path, names: tuple[str, ...]) -> None:
    manifest = {"format": _FORMAT, "teachers": list(names)}
    files.write_text(root / files.MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _names(root: Path) -> tuple[str, ...]:
    """Names of the teachers, as the manifest lists them."""
    path = root / files.MANIFEST
    checks.require(
        path.exists(),
        f"no faculty at {root}; make one with `python -m experiments.build_faculty --root {root}`.",
    )
    mend = "restore it from a copy: it lists the folders under teachers"
    text = files.read_text(path, mend)
    try:
        manifest = files.parse_json(text)
    except checks.InputError as error:
        raise checks.InputError(f"{path}: {error} Please {mend}.") from error
    told = manifest if isinstance(manifest, dict) else {}
    version, names = told.get("format"), told.get("teachers", ())
    checks.require(
        version == _FORMAT,
        f"{path} has `format` {version!r}, this version of fdjax reads {_FORMAT}; {mend}.",
    )
    fits = isinstance(names, list) and all(is_name(name) for name in names)
    checks.require(
        fits and len(set(names)) == len(names),
        f"`teachers` in {path} must list different names of teachers, got {names!r}; {mend}.",
    )
    return tuple(names)


def _digest(variables: Variables) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return files.digest(
        {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
    )
