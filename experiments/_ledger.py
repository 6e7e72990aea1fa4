"""A growing file of finished jobs, so that a grid of many goes on where it was killed."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fdjax import checks


class Ledger:
    """Value of each finished job, a JSON line each, behind a first line with the flags."""

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
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # What follows the last line's end was cut off by a kill: that job is done again.
        lines = text.split("\n")[:-1]
        if not lines:
            return
        try:
            entries = [json.loads(line) for line in lines]
            known = entries[0]["flags"]
            for entry in entries[1:]:
                job = job_type(*(entry[key] for key in job_type._fields))
                self.values[job] = read(entry["value"])
        except (ValueError, KeyError, TypeError) as error:
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
        partial = self.path.with_name(f".{self.path.name}.tmp")
        partial.write_text("".join(f"{line}\n" for line in self._lines), encoding="utf-8")
        os.replace(partial, self.path)

    def add(self, job: Any, value: Any) -> None:
        """Writes down a finished job; several threads may do so at once."""
        line = json.dumps(job._asdict() | {"value": value})
        with self._lock:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            self.values[job] = value
