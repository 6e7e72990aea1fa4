"""What every experiment does: flags from its Config, a checked workdir, the record of the run."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import jax
from absl import app, flags, logging

from fdjax import checks, locks, processes, reports

_PACKAGES = (
    *("fdjax", "jax", "jaxlib", "flax", "optax", "ott-jax", "orbax-checkpoint"),
    *("tensorflow-datasets", "numpy", "scipy", "scikit-learn"),
)


def flag(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of a Config: default, help text with its unit, and bounds of a number."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Flags of every experiment that several processes can run together, see `main`."""

    coordinator: str | None = flag(
        None, "HOST:PORT of process 0, where several processes do the work, one a host."
    )
    processes: int = flag(1, "How many processes there are.", low=1)
    process: int = flag(0, "Which of them this is; 0 writes the results.", low=0)


def check(config: Any) -> None:
    """Refuses values out of bounds, as flags or as arguments of a Config alike.

    Raises:
        InputError: Naming the field.
    """
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        low, high = field.metadata["low"], field.metadata["high"]
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or isinstance(number, str):
                continue
            too_low = low is not None and not number >= low
            if too_low or (high is not None and not number <= high):
                bounds = f"{'-inf' if low is None else low}, {'inf' if high is None else high}"
                raise checks.InputError(f"--{field.name} must lie in [{bounds}], got {number}.")
        options = _options(kinds[field.name])
        if options:
            checks.choice(f"--{field.name}", value, options)
    if isinstance(config, HostsConfig):
        processes.check(config.coordinator, config.processes, config.process)


def main(run: Callable[[Any], dict[str, Any]], config_type: type) -> None:
    """Runs an experiment as a command: flags in, `run(Config)`, a mistake as one sentence.

    By the flags of `HostsConfig` several processes run it together: all compute, the first writes,
    and they end together with one status, whoever of them fails.
    """
    _define_flags(config_type)

    def command(arguments: list[str]) -> int:
        if len(arguments) > 1:
            print(f"error: {arguments[1]!r} is no flag; see --help for the flags.", file=sys.stderr)
            return 2
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
        # On two cores XLA can wait for ever: a program that runs in one of its own two threads
        # waits for parts that would need both.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        names = [field.name for field in dataclasses.fields(config_type)]
        values = {name: getattr(flags.FLAGS, name) for name in names}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            config = config_type(**values)
            with_cache(Path(config.workdir).parent / "compiled")
            _together(config)
            run(config)
            processes.part()
        except checks.InputError as error:
            # A name out of a file that somebody else made must not steer the terminal.
            words = reports.printable(str(error))
            print(f"error: {words}", file=sys.stderr)
            processes.fail(words, 2)
            return 2
        except BaseException as error:
            if processes.are_several():
                traceback.print_exc()
                processes.fail(f"{error!r}"[:300], 1)
            raise
        return 0

    app.run(command)


def with_cache(folder: Path) -> None:
    """Keeps compiled programs on disk, so that a second run compiles nothing anew.

    The environment variable JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


_OF_A_HOST = ("process", "workdir", "root", "data_dir", "dataset")
"""Flags that may differ between processes: paths may be others on another host."""


def _together(config: Any) -> None:
    """Joins this process with the others, if there are any, and sees that all do the same."""
    check(config)
    if not isinstance(config, HostsConfig) or config.coordinator is None:
        return
    processes.join(config.coordinator, config.processes, config.process)
    same = dataclasses.asdict(config)
    same = {name: value for name, value in same.items() if name not in _OF_A_HOST}
    processes.agree("flags", str(same))


class Run:
    """The record of one run: its workdir, its flags and versions, and seconds by stage.

    Of several processes the first one has the workdir, and its lock. The others write what they
    write into a folder that is gone when they end.
    """

    def __init__(self, config: Any):
        """Checks the config and the workdir before any work is done.

        Raises:
            InputError: If a value is out of bounds, the workdir cannot be written, or a run of
                another process is at work in it.
        """
        check(config)
        self.flags: dict[str, Any] = dataclasses.asdict(config)
        self.workdir = Path(config.workdir).resolve()
        checks.require(
            jax.process_count() == self.flags.get("processes", 1),
            "several processes must join before anything else: start each by its command, with "
            "--coordinator, --processes and --process.",
        )
        if not processes.is_first():
            self._own = tempfile.TemporaryDirectory(prefix="fdjax-")
            self.workdir = Path(self._own.name)
        self.seconds: dict[str, float] = {}
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            _lock(self.workdir)
        except OSError as error:
            raise checks.InputError(
                f"cannot write to the workdir {self.workdir}: {error.strerror}; choose another "
                "folder with --workdir."
            ) from error
        lines = [
            f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}\n"
            for k, v in self.flags.items()
            if v is not None
        ]
        reports.write_text(self.workdir / "flags.txt", "".join(lines))
        reports.write_json(self.workdir / "versions.json", versions())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to the stage's."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes results.json, with the record of the run beside the results."""
        record = {"seconds": self.seconds, "flags": self.flags, "versions": versions()}
        results = results | record
        reports.write_json(self.workdir / "results.json", results)
        if self.workdir in _locks:
            os.close(_locks.pop(self.workdir))
        return results


_LOCK = ".run.lock"
_locks: dict[Path, int] = {}
"""Workdirs in which this process is at work, and what holds their locks."""


def _lock(workdir: Path) -> None:
    """Keeps other processes out of a workdir; a run that failed here does not keep the next out."""
    if workdir in _locks:
        return
    lock = locks.acquire(workdir / _LOCK, wait=False)
    if lock is None:
        raise checks.InputError(
            f"another run is at work in {workdir}; wait for its end, or choose another folder with "
            "--workdir."
        )
    _locks[workdir] = lock
    for left_by_a_kill in workdir.glob(".*.tmp"):
        left_by_a_kill.unlink()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the device."""
    known = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    device = jax.devices()[0]
    return known | {
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def command_line(module: str, config: Any) -> str:
    """The command that repeats a run: the module with the flags that differ from the default."""
    changed = [
        f"--{field.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default and value is not None
    ]
    return " ".join(["python -m", module, *map(shlex.quote, changed)])


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _define_flags(config_type: type) -> None:
    """One absl flag for each field of a Config, by the type of the field."""
    kinds = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        name, text, kind = field.name, field.metadata["help"], kinds[field.name]
        default: Any = field.default
        if isinstance(kind, UnionType):  # "X | None"
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        bounds = {"lower_bound": field.metadata["low"], "upper_bound": field.metadata["high"]}
        if _options(kind):
            flags.DEFINE_enum(name, default, list(_options(kind)), text)
        elif kind is bool:
            flags.DEFINE_bool(name, default, text)
        elif kind is int:
            flags.DEFINE_integer(name, default, text, **bounds)
        elif kind is float:
            flags.DEFINE_float(name, default, text, **bounds)
        elif typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is not str:
            whole = typing.get_args(kind)[0] is int
            part = flags.IntegerParser() if whole else flags.FloatParser()
            serialiser: Any = flags.ListSerializer(",")
            flags.DEFINE(_ListOf(part), name, list(default), text, serializer=serialiser)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(name, list(default), text)
        else:
            flags.DEFINE_string(name, default, text)
        # Flags of this file would be hidden from --help: they are those of the command.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


class _ListOf(flags.ArgumentParser):
    """Parses "1,2,3" by the parser of its parts."""

    def __init__(self, part: Any):
        self.part = part
        self.syntactic_help = f"comma-separated list of {part.syntactic_help}s"

    def parse(self, argument: Any) -> list[Any]:
        """The parts; an empty text is an empty list."""
        parts = argument.split(",") if isinstance(argument, str) else argument
        return [self.part.parse(part) for part in parts if part != ""]

    def flag_type(self) -> str:
        """Shown by absl in XML help."""
        return "list"
