"""A growing file of finished jobs, so that a grid of many goes on where it was killed."""

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fdjax import checks, processes, reports


class Ledger:
    """Value of each finished job, a JSON line each, behind a first line with the flags.

    Of several processes the first one reads and writes; the others know what it knows.
    """

    def __init__(
        self,
        path: Path,
        job_type: Any,
        flags: dict[str, Any],
        read: Callable[[Any], Any] = float,
    ):
        """Reads the file if there is one; nothing is written yet.

        Args:
            path: Of the file.
            job_type: NamedTuple that names a job.
            flags: All on which the values depend.
            read: Makes a value of what stands for it in the file; a NamedTuple stands as a list.

        Raises:
            InputError: If the file was begun with other flags or cannot be read.
        """
        self.path, self._lock = path, threading.Lock()
        self.values: dict[Any, Any] = {}
        self._lines = [json.dumps({"flags": flags})]
        try:
            mine = processes.is_first() and path.exists()
            text = path.read_text(encoding="utf-8") if mine else ""
        except (OSError, UnicodeDecodeError) as error:
            raise checks.InputError(
                f"{path} cannot be read ({error}); restore it or choose another --workdir."
            ) from error
        text = processes.text_of_first(text)
        # What follows the last line's end was cut off by a kill: that job is done again.
        lines = text.split("\n")[:-1]
        if not lines:
            return
        try:
            entries = [json.loads(line) for line in lines]
            known = dict(entries[0]["flags"])
            for entry in entries[1:]:
                job = job_type(*(entry[key] for key in job_type._fields))
                self.values[job] = read(entry["value"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise checks.InputError(
                f"{path} cannot be read ({error!r}); restore it or choose another --workdir."
            ) from error
        # As JSON has them: a tuple comes back as a list.
        flags = json.loads(self._lines[0])["flags"]
        for key in {**known, **flags}:
            checks.require(
                known.get(key) == flags.get(key),
                f"{path} was begun with another `{key}`: {known.get(key)} and not "
                f"{flags.get(key)}; repeat its flags or choose another --workdir.",
            )
        self._lines = lines

    def begin(self) -> None:
        """Writes the file anew, without a line that was cut off; its folder must exist."""
        if not processes.is_first():
            return
        reports.write_text(self.path, "".join(f"{line}\n" for line in self._lines))

    def add(self, job: Any, value: Any) -> None:
        """Writes down a finished job; several threads may do so at once.

        Raises:
            InputError: If it cannot be written; the file is then as before.
        """
        line = json.dumps(job._asdict() | {"value": value})
        if not processes.is_first():
            self.values[job] = value
            return
        with self._lock, checks.writing(self.path):
            with self.path.open("ab", buffering=0) as file:
                whole = file.seek(0, os.SEEK_END)
                try:
                    written = file.write(f"{line}\n".encode())
                    if written != len(line.encode()) + 1:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    # What another job writes must not stand behind half a line.
                    file.truncate(whole)
                    raise
            self.values[job] = value
