"""What the kept observations of a faculty take, and the removal of what nobody will read again."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from fdjax import checks, locks
from fdjax.faculty import files, kept, repository
from fdjax.faculty.repository import Root


class Holding(NamedTuple):
    """What lies in the folder of observations, one observation at best.

    Attributes:
        path: Of its folder or file.
        teacher: Name of the teacher; None if nobody will read it: the teacher is gone or has
            other weights or preprocessing now, or it was left by a kill or an older version.
        size: Bytes.
        seconds: Of the run that completed it; 0 for one under way.
    """

    path: Path
    teacher: str | None
    size: int
    seconds: float


def holdings(root: Root) -> tuple[Holding, ...]:
    """All that a faculty keeps of observations.

    Raises:
        InputError: If there is no faculty, or its manifest or a card is broken.
    """
    path = Path(os.path.abspath(root))
    known = {(card.name, card.digest): card for card in repository.cards(path)}
    found = []
    for entry in sorted((path / "outputs").glob("*/*")):
        seconds, (key, whole) = 0.0, kept.parsed(entry.name)
        card = known.get(key) if key else None
        if card is not None and entry.name == whole:
            seconds = kept.seconds(entry, card)
        elif card is not None and kept.seconds(entry.with_name(whole), card) >= 0:
            card = None  # parts that were put together already
        current = card is not None and seconds >= 0
        name = card.name if card is not None and current else None
        found.append(Holding(entry, name, _size(entry), max(seconds, 0.0)))
    return tuple(found)


def prune(root: Root) -> tuple[Holding, ...]:
    """Removes the observations that nobody will read again, and what kills have left.

    An observer at work meanwhile loses nothing but the copy for next time.

    Returns:
        What was removed of the observations.

    Raises:
        InputError: As `holdings`, or if the faculty cannot be written.
    """
    path = Path(os.path.abspath(root))
    stale = tuple(holding for holding in holdings(path) if holding.teacher is None)
    with checks.writing(path), locks.held(path / files.LOCK):
        for holding in stale:
            files.require_inside(path, holding.path.parent)
            _remove(holding.path)
        for folder in (path / "outputs").glob("*"):
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
        for left in (*path.glob(".*.new"), *(path / "teachers").glob(".*.new")):
            files.require_inside(path, left.parent)
            _remove(left)
    return stale


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size(path: Path) -> int:
    files_of = [path] if path.is_file() else list(path.rglob("*"))
    return sum(one.lstat().st_size for one in files_of if one.is_file())
