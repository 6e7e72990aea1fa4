"""How much faster are the nearest teachers found than by solving transport for all of them?

    python -m benchmarks.search --faculty=clustered --out=search.json

Synthetic faculties of 1,000, 10,000 and 100,000 teachers of 20 to 100 labels, tasks of 20 classes,
vectors of 32 dimensions. `search` is `scores.nearest` for the ten nearest teachers, `full` is
`scores.sketch_costs`, the same solver on everyone, in the same batches, which suit the search (a
full pass by itself would be somewhat faster in larger ones); both answers are compared.
The sketches are of one of three kinds:

* clustered: 20 domains of 25 groups of 40 classes. A teacher's labels are of two groups of one
  domain mostly, the rest of the domain, or of anything; a fifth of the teachers are generalists,
  whose labels are of anything. The classes of a task are of two groups.
* loose: the same with all that is not of the class itself half as large, and twice the noise.
* unstructured: every label of every teacher and task has a direction of its own, at random. There
  is nothing to find, and no bound can be of much use.

Each time is the median over tasks of the median of some calls, after one that is not counted and
may compile.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from absl import app, flags

from benchmarks import _timing
from fdjax import reports, scores, selection

Kind = Literal["clustered", "loose", "unstructured"]

COLUMNS = (
    *("faculty", "teachers", "full seconds", "search seconds", "slowest search", "times faster"),
    *("looked at %", "bounded %", "solved %", "same answer", "index seconds", "megabytes"),
)

_DOMAINS, _GROUPS, _CLASSES = 20, 25, 40
_PART = 2000  # teachers whose vectors are drawn at once


class Config(NamedTuple):
    """Sizes of the benchmark."""

    faculty: Kind = "clustered"
    teachers: tuple[int, ...] = (1_000, 10_000, 100_000)
    fewest: int = 20
    most: int = 100
    classes: int = 20
    dimensions: int = 32
    tasks: int = 3
    repeats: int = 3
    k: int = 10
    epsilon: float = 0.05
    seed: int = 0
    out: str | None = None


class World(NamedTuple):
    """All classes that there are, and how much a sketch of one differs from another's of it."""

    classes: np.ndarray
    noise: float


def make_world(config: Config) -> World:
    """Classes of groups of domains, or nothing of the kind."""
    random = np.random.default_rng(config.seed)
    shared, noise = {"clustered": (1.0, 0.3), "loose": (0.5, 0.6), "unstructured": (0.0, 0.0)}[
        config.faculty
    ]
    size = config.dimensions

    def spread(*counts: int) -> np.ndarray:
        return random.normal(size=(*counts, size))

    domains = shared * spread(_DOMAINS, 1, 1)
    groups = 0.7 * shared * spread(_DOMAINS, _GROUPS, 1)
    classes = domains + groups + 0.5 * spread(_DOMAINS, _GROUPS, _CLASSES)
    return World(classes.reshape(-1, size).astype(np.float32), noise)


def _labels(random: np.random.Generator, teachers: int, labels: int) -> np.ndarray:
    """Classes of some specialists and generalists."""
    domain = random.integers(_DOMAINS, size=(teachers, 1))
    pair = random.integers(_GROUPS, size=(teachers, 2))
    of_pair = np.take_along_axis(pair, random.integers(2, size=(teachers, labels)), axis=1)
    of_domain = random.integers(_GROUPS, size=(teachers, labels))
    draw = random.uniform(size=(teachers, labels))
    group = np.where(draw < 0.75, of_pair, of_domain)
    anything = (draw > 0.95) | (random.uniform(size=(teachers, 1)) < 0.2)
    near = (domain * _GROUPS + group) * _CLASSES + random.integers(_CLASSES, size=draw.shape)
    return np.where(anything, random.integers(_DOMAINS * _GROUPS * _CLASSES, size=draw.shape), near)


def _seen(
    config: Config, world: World, random: np.random.Generator, labels: np.ndarray
) -> np.ndarray:
    """Vectors of classes as one encoder sees the images of one teacher or task."""
    shape = (*labels.shape, config.dimensions)
    fresh = random.standard_normal(shape, np.float32)
    if config.faculty == "unstructured":
        return fresh
    return world.classes[labels] + np.float32(world.noise) * fresh


def make_teachers(config: Config, world: World, teachers: int) -> Iterator[selection.Sketch]:
    """Sketches of a faculty; the first ones are the same whatever its size."""
    for part in range(-(-teachers // _PART)):
        random = np.random.default_rng([config.seed, 1, part])
        size = min(_PART, teachers - part * _PART)
        numbers = random.integers(config.fewest, config.most + 1, size=_PART)
        vectors = _seen(config, world, random, _labels(random, _PART, config.most))
        masses = random.gamma(2.0, size=(_PART, config.most)).astype(np.float32)
        for row in range(size):
            some = slice(numbers[row])
            yield selection.Sketch(vectors[row, some], masses[row, some])


def make_task(config: Config, world: World, seed: int) -> selection.Sketch:
    """A task of classes of two groups of one domain."""
    random = np.random.default_rng([config.seed, 2, seed])
    groups = random.integers(_DOMAINS) * _GROUPS + random.permutation(_GROUPS)[:2]
    options = (groups[:, None] * _CLASSES + np.arange(_CLASSES)).reshape(-1)
    labels = random.permutation(options)[: config.classes]
    masses = np.full(config.classes, 1 / config.classes, np.float32)
    return selection.Sketch(_seen(config, world, random, labels), masses)


def one_size(config: Config, world: World, teachers: int) -> dict[str, Any]:
    """A row of the table."""
    sketches = list(make_teachers(config, world, teachers))
    start = time.perf_counter()
    index = selection.index(sketches)
    index_seconds = time.perf_counter() - start
    del sketches
    full: list[float] = []
    search: list[float] = []
    found, same = [], True

    def everyone(task: selection.Sketch) -> np.ndarray:
        return scores.sketch_costs(index, task, epsilon=config.epsilon)

    def nearest(task: selection.Sketch) -> selection.Found:
        return scores.nearest(index, task, config.k, epsilon=config.epsilon)

    for task in (make_task(config, world, seed) for seed in range(config.tasks)):
        calls: list[tuple[Any, ...]] = [(everyone, task), (nearest, task)]
        timings = _timing.measure_together(calls, repeats=config.repeats)
        for seconds, timing in zip((full, search), timings, strict=True):
            seconds.append(timing.seconds)
        costs, one = (timing.result for timing in timings)
        found.append(one)
        expected = np.argsort(costs, kind="stable")[: config.k]
        same &= one.positions == tuple(expected.tolist())
        same &= bool((one.costs == costs[expected]).all())
    return {
        "faculty": config.faculty,
        "teachers": teachers,
        "full seconds": float(np.median(full)),
        "search seconds": float(np.median(search)),
        "slowest search": max(search),
        "times faster": float(np.median(np.divide(full, search))),
        "looked at %": 100 * float(np.mean([one.bounded[0] / one.total for one in found])),
        "bounded %": 100 * float(np.mean([one.bounded[1] / one.total for one in found])),
        "solved %": 100 * float(np.mean([one.share for one in found])),
        "same answer": same,
        "index seconds": index_seconds,
        "megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(index.shelves)) / 1e6,
        "full": full,
        "search": search,
        "solved": [one.solved for one in found],
        "bounded": [one.bounded for one in found],
        "costs": [[float(cost) for cost in one.costs] for one in found],
    }


def run(config: Config) -> dict[str, Any]:
    """Times every size; prints, writes and returns the rows."""
    world = make_world(config)
    rows: list[dict[str, Any]] = []
    entry = {**_timing.surroundings(), "settings": config._asdict(), "rows": rows}
    for teachers in sorted(config.teachers):
        rows.append(one_size(config, world, teachers))
        print(reports.table(rows, columns=COLUMNS), flush=True)
        if config.out is not None:
            reports.write_json(config.out, entry)
    return entry


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    defaults = Config()
    flags.DEFINE_enum("faculty", defaults.faculty, list(get_args(Kind)), "Kind of the sketches.")
    sizes = [str(size) for size in defaults.teachers]
    flags.DEFINE_list("teachers", sizes, "Sizes of the faculties.")
    for name in ("fewest", "most", "classes", "dimensions", "tasks", "repeats", "k"):
        text = f"{name.capitalize()}; see the first lines of the module."
        flags.DEFINE_integer(name, getattr(defaults, name), text, lower_bound=1)
    flags.DEFINE_integer("seed", defaults.seed, "Seed of everything that is drawn.", lower_bound=0)
    flags.DEFINE_float("epsilon", defaults.epsilon, "In units of the cost, of [0, 2].")
    flags.DEFINE_string("out", None, "JSON file to write.")


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    run(Config(**values | {"teachers": tuple(map(int, values["teachers"]))}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
