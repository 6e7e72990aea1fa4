"""Saving trees of arrays so that a kill loses at most the save under way.

A checkpoint is a folder written by orbax, with the checksum of each of its files beside
them: orbax notices a file that is cut short, but not a flipped bit, and this room
notices both before any value is used. Each folder is written under a hidden name and
renamed when complete. Where an older one has to make way it is first renamed to
`.NAME.previous`, which readers take while `NAME` is absent, so at every instant one
complete checkpoint is found. One process writes into a folder at a time. Where several are
one program (`processes`) all of them save and restore a run: the first reads and writes,
and tells the others.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from fdjax import checks, processes, sharding

Tree: TypeAlias = Any
"""A nest of dicts, tuples and NamedTuples with arrays, numbers or random keys as leaves."""

_CHECKSUMS = "checksums.json"


def save(folder: str | os.PathLike[str], step: int, tree: Tree, *, keep: int = 3) -> None:
    """Saves the state of a run after a step; returns when it is on disk.

    Args:
        folder: Checkpoints of this run; made if missing.
        step: Steps done so far, >= 0. A checkpoint of the same step is replaced.
        tree: What to save. Numbers are saved as arrays, typed random keys by their data.
        keep: Checkpoints to keep, the highest steps and always this one; >= 1.

    Raises:
        InputError: If a setting is wrong, a leaf is no array, or the folder cannot be written.
    """
    checks.require(
        isinstance(step, int | np.integer) and step >= 0,
        f"`step` must be an integer of at least 0, got {step!r}.",
    )
    checks.positive("keep", keep)
    folder = Path(os.path.abspath(folder))
    leaves = _by_path(tree)
    if not processes.is_first():
        return
    for left_by_a_kill in folder.glob(".*.new*"):
        shutil.rmtree(left_by_a_kill)
    _write(folder / str(step), leaves)
    others = sorted(other for other in _steps(folder) if other != step)
    for other in others[: max(0, len(others) - keep + 1)]:
        for path in (folder / str(other), _previous(folder / str(other))):
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: str | os.PathLike[str]) -> int | None:
    """The highest step saved in a folder, None if there is none or no such folder."""
    found = max(_steps(Path(os.path.abspath(folder))), default=-1)
    found = int(processes.from_first(np.int64(found)))
    return None if found < 0 else found


def restore(folder: str | os.PathLike[str], template: Tree, *, step: int | None = None) -> Tree:
    """The state saved after a step.

    Args:
        folder: As given to `save`.
        template: A tree of the structure, shapes and types that were saved, such as the
            state of a fresh run. JAX arrays come back as JAX arrays on the template's
            devices, random keys as random keys, all else as NumPy arrays.
        step: Which one; by default the highest.

    Raises:
        InputError: If there is no such checkpoint, it is damaged, or it holds another tree.
    """
    expected = _by_path(template)
    saved = processes.from_first(
        _saved(Path(os.path.abspath(folder)), step, expected) if processes.is_first() else expected
    )
    leaves, structure = jax.tree.flatten(template)
    restored = [_like(leaf, saved[name]) for name, leaf in zip(expected, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def save_tree(path: str | os.PathLike[str], tree: dict[str, Any]) -> None:
    """Saves nested dicts of arrays as one checkpoint without steps, replacing what was there.

    Empty dicts leave no trace.

    Args:
        path: Folder of the checkpoint; its parents are made if missing.
        tree: Such as a network's variables. Keys are strings without "/".

    Raises:
        InputError: If the tree holds anything else, or the folder cannot be written.
    """
    for keys, _ in jax.tree_util.tree_leaves_with_path(tree):
        fits = len(keys) > 0 and all(
            isinstance(key, jax.tree_util.DictKey)
            and isinstance(key.key, str)
            and "/" not in key.key
            for key in keys
        )
        checks.require(
            fits,
            "`tree` must be nested dicts whose keys are strings without '/', but it has a leaf at "
            f"{jax.tree_util.keystr(keys) or 'its root'}; "
            "save other trees with `save` and a template.",
        )
    _write(Path(os.path.abspath(path)), _by_path(tree))


def load_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nested dicts of NumPy arrays that `save_tree` saved.

    Raises:
        InputError: If there is no checkpoint or it is damaged.
    """
    leaves = _read(Path(os.path.abspath(path)), "restore it from a copy, or make it again")
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            checks.require(
                isinstance(branch, dict),
                f"the checkpoint {path} is damaged: {name!a} is in a leaf.",
            )
        branch[last] = leaf
    return tree


def put_folder(new: Path, target: Path) -> None:
    """Moves a complete folder into place, replacing what was there.

    Killed at any instant, `existing_folder(target)` still finds the old or the new one.
    """
    previous = _previous(target)
    if target.exists():
        # What an earlier kill left; `target` is complete, so nobody reads it.
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(target, previous)
    os.replace(new, target)
    shutil.rmtree(previous, ignore_errors=True)


def existing_folder(target: Path) -> Path | None:
    """Where the folder put at `target` is to be read, None if there never was one."""
    for path in (target, _previous(target)):
        if path.is_dir():
            return path
    return None


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _steps(folder: Path) -> set[int]:
    """Steps with a complete checkpoint; a folder that a kill left half-written has another name."""
    if not folder.is_dir():
        return set()
    matches = (re.fullmatch(r"(\d+)|\.(\d+)\.previous", path.name) for path in folder.iterdir())
    return {int(match[1] or match[2]) for match in matches if match}


def _saved(folder: Path, step: int | None, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Leaves of the checkpoint of a step, or the last one, after checking that all are there."""
    steps = _steps(folder)
    checks.require(
        bool(steps),
        f"there is no checkpoint in {folder}; start a fresh run, or give the folder of an "
        "earlier one.",
    )
    step = max(steps) if step is None else step
    listed = ", ".join(map(str, sorted(steps)))
    checks.require(
        step in steps, f"there is no checkpoint of step {step} in {folder}; it has steps {listed}."
    )
    path = folder / str(step)
    saved = _read(path, f"delete this folder to go on from an earlier step (saved: {listed})")
    _same_leaves(path, saved, expected)
    return saved


def _by_path(tree: Tree) -> dict[str, np.ndarray]:
    """Leaves on the host by their place in the tree, such as "params/head/bias"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): _on_host(keys, leaf)
        for keys, leaf in leaves
    }
    checks.require(len(leaves) > 0, "`tree` has no array to save.")
    checks.require(
        len(named) == len(leaves), "two leaves of `tree` have the same path; rename one."
    )
    return named


def _on_host(keys: tuple[Any, ...], leaf: Any) -> np.ndarray:
    if sharding.is_random_key(leaf):
        leaf = jax.random.key_data(leaf)
    array = sharding.on_host(leaf)
    name = jax.tree_util.keystr(keys)
    checks.require(
        array.dtype.kind not in "OSUMm",
        f"leaf {name} of `tree` must be an array or a number, got {type(leaf).__name__}.",
    )
    checks.require(array.size > 0, f"leaf {name} of `tree` is empty (shape {array.shape}).")
    return array


def _like(leaf: Any, value: np.ndarray) -> Any:
    """The saved value in the form of the template's leaf."""
    if sharding.is_random_key(leaf):
        data = _like(jax.random.key_data(leaf), value)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        # A leaf that was free to move stays so: pinned to a device it would compile anew.
        return jax.device_put(value, leaf.sharding if leaf.committed else None)
    return value


def _same_leaves(path: Path, saved: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Refuses a checkpoint whose leaves are not those of the template."""
    mend = "restore it with the settings it was saved with, or start in an empty folder"
    odd = sorted(set(saved) ^ set(expected))
    if odd:
        where = "the checkpoint" if odd[0] in saved else "the tree to restore"
        raise checks.InputError(
            f"{path} holds another tree: {odd[0]!r} is only in {where}"
            f" ({len(odd)} such leaves); {mend}."
        )
    for name, want in expected.items():
        have = saved[name]
        checks.require(
            have.shape == want.shape and have.dtype == want.dtype,
            f"{path} holds another tree: {name!r} is {have.dtype}{list(have.shape)} there, "
            f"{want.dtype}{list(want.shape)} was expected; {mend}.",
        )


def _checkpointer() -> Any:
    """Of orbax, for this process alone: by itself it waits for the others."""
    import orbax.checkpoint

    own = jax.process_index()
    options = orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
    )
    return orbax.checkpoint.StandardCheckpointer(multiprocessing_options=options)


def _write(path: Path, leaves: dict[str, np.ndarray]) -> None:
    """Writes a complete checkpoint at `path`; on failure what was there stays."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(new)  # left by a kill
        with _checkpointer() as writer:
            writer.save(new, leaves)
        (new / _CHECKSUMS).write_text(json.dumps(_checksums(new), indent=1))
        put_folder(new, path)
    except (
        Exception
    ) as error:  # of the disk, for which orbax and tensorstore have types of their own
        _remove_unfinished(new)
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0][:200]
        raise checks.InputError(
            f"cannot save to {path}: {reason}; choose a folder you may write to, with space left."
        ) from error


def _remove_unfinished(new: Path) -> None:
    """Removes a hidden folder, and what orbax has under way for it."""
    for path in new.parent.glob(f"{new.name}*"):
        shutil.rmtree(path, ignore_errors=True)


def _read(path: Path, mend: str) -> dict[str, np.ndarray]:
    """The leaves of the checkpoint put at `path`, after checking every file."""
    found = existing_folder(path)
    if found is None:
        raise checks.InputError(f"there is no checkpoint at {path}.")
    try:
        expected = json.loads((found / _CHECKSUMS).read_text())
        present = _checksums(found)
        for name, checksum in expected.items():
            checks.require(
                present.get(name) == checksum,
                f"the checkpoint {path} is damaged: its file {name} has changed; {mend}.",
            )
        with _checkpointer() as reader:
            leaves = reader.restore(found)
        if not all(hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves.values()):
            raise ValueError("it holds something else than arrays")
        return leaves
    except checks.InputError:
        raise
    except (
        Exception
    ) as error:  # whatever damage makes the parsers of JSON, orbax, tensorstore raise
        reason = str(error).split("\n")[0][:200]
        raise checks.InputError(f"the checkpoint {path} is damaged ({reason}); {mend}.") from error


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but the one that holds them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _CHECKSUMS:
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
