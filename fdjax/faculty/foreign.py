"""Teachers out of files that other frameworks write: ONNX, and PyTorch's weights in safetensors."""

import os
from dataclasses import replace as with_values
from pathlib import Path

import numpy as np

from fdjax import checks
from fdjax.faculty import files, onnx_files, repository
from fdjax.faculty.cards import ONNX, Card
from fdjax.faculty.repository import Root
from fdjax.models import state_dicts


def register_onnx(
    root: Root, card: Card, path: str | os.PathLike[str], *, replace: bool = False
) -> Card:
    """Adds a teacher that is an ONNX file, of which the faculty keeps a copy.

    Needs the extra `onnx`, as does observing the teacher. Its features are known only if the file
    has an output for them, its class vectors never; it cannot be run inside a training step.

    Args:
        root: A faculty.
        card: What is known of it, with `preprocessing`; `architecture`, `digest`,
            `num_parameters` and those of the `options` that `onnx_files` tells of are filled in.
        path: The ONNX file: one input of images, whose weights are in it.
        replace: As in `register`.

    Returns:
        The card as registered.

    Raises:
        InputError: If the file is no such file or does not fit the card, the name is taken, or
            the folder cannot be written. The faculty is then as before.
    """
    path = Path(path)
    checks.require(path.is_file(), f"{path}: there is no such file.")
    content = path.read_bytes()
    card = onnx_files.completed(with_values(card, architecture=ONNX), content)
    card = with_values(
        card,
        digest=repository.file_digest(content),
        num_parameters=onnx_files.num_parameters(content),
    )
    return repository.add(
        root, card, lambda folder: (folder / files.ONNX).write_bytes(content), replace
    )


def register_state_dict(
    root: Root, card: Card, path: str | os.PathLike[str], *, replace: bool = False
) -> Card:
    """Adds a teacher whose weights PyTorch saved, as one of our own networks.

    Needs the extra `safetensors`; afterwards the teacher is like any other.

    Args:
        root: A faculty.
        card: As for `register`; its architecture is one of `state_dicts.architectures()`.
        path: A safetensors file of the network's `state_dict`.
        replace: As in `register`.

    Returns:
        The card as registered.

    Raises:
        InputError: If the file cannot be read or is not of the card's network, or as in
            `register`. The faculty is then as before.
    """
    arrays = read_safetensors(Path(path))
    try:
        variables = state_dicts.variables_of(card.architecture, arrays)
    except checks.InputError as error:
        raise checks.InputError(f"{os.fspath(path)}: {error}") from error
    return repository.register(root, card, variables, replace=replace)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file by name.

    Raises:
        InputError: If it is missing, damaged or no such file, or holds types that NumPy lacks; or
            the extra `safetensors` is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise checks.InputError(
            "safetensors files need the package safetensors; install it by "
            "`pip install 'fdjax[safetensors]'`."
        ) from error
    checks.require(path.is_file(), f"{path}: there is no such file.")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # whatever hostile bytes make the parser raise
        raise checks.InputError(
            f"{path} cannot be read as safetensors ({str(error)[:200]!a}); save the network's "
            "`state_dict()` by `safetensors.torch.save_file`, in float32."
        ) from error
