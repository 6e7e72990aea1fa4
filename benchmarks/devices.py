"""What does it bring to spread the teachers over devices?

    python -m benchmarks.devices --out=devices.json

Scores a faculty on 1, 2 and 4 simulated devices of one process, and on one device of each of two
processes joined over the loopback, and compares the scores with those of one device. Simulated
devices share the cores of the machine, and one device uses several of them already: what there is
to gain on a processor is what one device leaves idle, and what is measured beside is the price of
spreading. Each row is a fresh process (or two), as the number of devices is set once.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import _timing
from fdjax import checks, processes, reports, scores, selection, sharding
from fdjax.types import TeacherOutputs

COLUMNS = (
    *("score", "processes", "devices", "seconds", "teachers a second", "times one device"),
    "largest difference",
)

_LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1))
"""Processes, and devices of each."""

_PATIENCE = 600.0  # seconds
_THREADS = "8"  # of XLA, in every layout: two a device, see `sharding.short_of_threads`


class Config(NamedTuple):
    """Sizes of the benchmark; the last ones are those of a child of it."""

    teachers: int = 400
    examples: int = 500
    classes: int = 20
    labels: int = 100
    features: int = 64
    repeats: int = 7
    scores: tuple[str, ...] = ("transport_task", "leep", "logme")
    out: str | None = None
    coordinator: str | None = None
    processes: int = 1
    process: int = -1
    devices: int = 1


def _functions() -> dict[str, scores.ScoreFn]:
    def transport_task(outputs: TeacherOutputs, labels: Any, num_classes: int) -> Any:
        return scores.transport(outputs, labels, num_classes, level="task")

    return scores.SCORES | {"transport_task": transport_task}


def make_faculty(config: Config) -> tuple[TeacherOutputs, np.ndarray]:
    """Teachers that know something of the labels, and the labels."""
    random = np.random.default_rng(0)
    labels = np.arange(config.examples) % config.classes
    shape = (config.teachers, config.examples)
    logits = random.standard_normal((*shape, config.labels), np.float32)
    known = random.integers(config.labels, size=(config.teachers, config.classes))
    hot = known[:, labels]
    np.put_along_axis(logits, hot[..., None], 3.0, axis=2)
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    features = random.standard_normal((*shape, config.features), np.float32)
    features[..., : config.classes] += np.eye(config.classes, dtype=np.float32)[labels]
    vectors = random.standard_normal((config.teachers, config.labels, config.features), np.float32)
    mask = np.ones((config.teachers, config.labels), bool)
    arrays = map(jnp.asarray, (probabilities, features, vectors, mask))
    return TeacherOutputs(*arrays), labels


def part(config: Config) -> list[dict[str, Any]]:
    """Times the scores on the devices of this process, and of those joined with it."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_num_cpu_devices", config.devices)
    if config.coordinator is not None:
        processes.join(config.coordinator, config.processes, config.process)
    faculty, labels = make_faculty(config)
    mesh = sharding.device_mesh() if config.processes * config.devices > 1 else None
    functions, rows = _functions(), []
    for name in config.scores:
        seconds, values = [], np.zeros(0)
        for _ in range(config.repeats + 1):  # all processes do as many
            processes.meet(name)
            start = time.perf_counter()
            values = np.asarray(
                selection.score_faculty(functions[name], faculty, labels, config.classes, mesh=mesh)
            )
            seconds.append(time.perf_counter() - start)
        first, *timed = seconds  # the first one compiles
        rows.append(
            {
                "score": name,
                "seconds": statistics.median(timed),
                "all": timed,
                "first": first,
                "values": values.tolist(),
            }
        )
    processes.part()
    return rows


def _children(config: Config, processes: int, devices: int) -> list[dict[str, Any]]:
    """The rows that the first of some processes reports."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    own: dict[str, Any] = {"devices": devices, "processes": processes}
    own |= {"coordinator": address} if processes > 1 else {}
    settings = config._asdict() | own
    running = []
    with tempfile.TemporaryDirectory() as folder:
        for process in range(processes):
            out = Path(folder) / f"{process}.json"
            values = settings | {"process": process, "out": str(out)}
            command = [sys.executable, "-m", "benchmarks.devices"]
            command += [
                f"--{key}={','.join(value) if isinstance(value, tuple) else value}"
                for key, value in values.items()
                if value is not None
            ]
            running.append(subprocess.Popen(command, env=os.environ | {"NPROC": _THREADS}))
        try:
            codes = [child.wait(timeout=_PATIENCE) for child in running]
        finally:
            for child in running:
                child.kill()
        checks.require(not any(codes), f"a process of {processes} x {devices} devices failed.")
        return json.loads((Path(folder) / "0.json").read_text(encoding="utf-8"))


def run(config: Config, layouts: Sequence[tuple[int, int]] = _LAYOUTS) -> dict[str, Any]:
    """Times every layout, the first of which is one device; prints, writes, returns the rows."""
    measured = {layout: _children(config, *layout) for layout in layouts}
    rows = []
    for place, name in enumerate(config.scores):
        alone = measured[layouts[0]][place]
        for layout, found in measured.items():
            one = found[place]
            apart = np.abs(np.subtract(one["values"], alone["values"])).max()
            rows.append(
                {
                    "score": name,
                    "processes": layout[0],
                    "devices": layout[0] * layout[1],
                    "seconds": one["seconds"],
                    "teachers a second": config.teachers / one["seconds"],
                    "times one device": alone["seconds"] / one["seconds"],
                    "largest difference": float(apart),
                    "first": one["first"],
                    "all": one["all"],
                }
            )
    entry = {**_timing.surroundings(), "settings": config._asdict(), "rows": rows}
    print(reports.table(rows, columns=COLUMNS, digits=4))
    if config.out is not None:
        reports.write_json(config.out, entry)
    return entry


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    for name, value in Config._field_defaults.items():
        text = f"{name.capitalize()}; see the first lines of the module."
        if isinstance(value, int):
            flags.DEFINE_integer(name, value, text)
        elif isinstance(value, tuple):
            flags.DEFINE_list(name, list(value), text)
        else:
            flags.DEFINE_string(name, value, text)


def main(_: list[str]) -> None:
    """Runs the benchmark, or the part of one process of it."""
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    config = Config(**values | {"scores": tuple(values["scores"])})
    for name in config.scores:
        checks.choice("--scores", name, _functions())
    if config.process < 0:
        run(config)
    else:
        reports.write_json(str(config.out), part(config))


if __name__ == "__main__":
    define_flags()
    app.run(main)
