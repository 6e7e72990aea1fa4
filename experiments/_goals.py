"""What a student may be taught by: every objective with what it is made of, and its own weight."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import _run, _settings, _student, _task
from fdjax import checks, costs, objectives, selection
from fdjax.objectives import Objective
from fdjax.types import Outputs

# In units of the transport score, which lies in [-1, 0]: a teacher whose score is this much worse
# than the best one's has e times less weight in a mixture.
MIXTURE_TEMPERATURE = 0.05

AUTO = "auto"
"""A weight that is found by cross-validation, see `_course.weighed`."""

FINE_TUNE = "fine_tune"
"""The goal whose students are the teacher's own network with a new last layer."""

Hears = Literal["nobody", "one", "namesake", "summed", "together"]


class Lesson(NamedTuple):
    """What a term is made of.

    Attributes:
        school: Of the student, with its task.
        seen: The faculty's outputs on the task.
        cost: Kind of ground cost, as for `_task.cost`.
        shares: The teachers to be heard, each with its share of the term.
        seed: Of the student.
    """

    school: _student.School
    seen: _task.Observed
    cost: str
    shares: Mapping[str, float]
    seed: int

    @property
    def only(self) -> str:
        """Name of the teacher, where there is one."""
        (name,) = self.shares
        return name


class Goal(NamedTuple):
    """How a term of what the student minimises comes about.

    Attributes:
        objective: Constructor; its keywords that are numbers, switches or names are settings.
        arrays: What else it takes, from the lesson.
        weight: Of the term beside cross-entropy, unless another is asked for.
        hears: "nobody"; "one" teacher; one "namesake", who knows the task's classes by name;
            one or several, a term for each being "summed"; or several "together" in one term.
        settings: Our own defaults where they differ from the constructor's.
    """

    objective: Callable[..., Objective]
    arrays: Callable[[Lesson], dict[str, Any]]
    weight: float
    hears: Hears
    settings: Mapping[str, Any] = {}


def _nothing(lesson: Lesson) -> dict[str, Any]:
    return {}


def _cost(lesson: Lesson) -> dict[str, Any]:
    return {"cost": _task.cost(lesson.seen, lesson.school.task, lesson.only, lesson.cost)}


def _centres(lesson: Lesson) -> dict[str, Any]:
    """Class centres of the task in the teacher's features; the objective refuses a black box."""
    features = _task.teaching(lesson.seen, lesson.only).features
    if features is None:
        return {}
    task = lesson.school.task
    labels = jnp.asarray(task.train.labels)
    return {"centres": costs.class_centres(features, labels, task.num_classes)}


def _observations(lesson: Lesson) -> dict[str, Any]:
    places = [lesson.seen.names.index(name) for name in lesson.shares]
    return {
        "probabilities": lesson.seen.outputs.probabilities[jnp.asarray(places)],
        "labels": jnp.asarray(lesson.school.task.train.labels),
        "log_beliefs": lesson.school.log_beliefs(lesson.seed),
    }


def _beliefs(lesson: Lesson) -> dict[str, Any]:
    # A teacher of one label has nothing to say.
    silence = jnp.ones((1, len(lesson.school.task.train), 1))
    return {
        "probabilities": silence,
        "labels": jnp.asarray(lesson.school.task.train.labels),
        "log_beliefs": lesson.school.log_beliefs(lesson.seed),
    }


GOALS: dict[str, Goal] = {
    "cross_entropy": Goal(objectives.cross_entropy, _nothing, 0.0, "nobody"),
    FINE_TUNE: Goal(objectives.cross_entropy, _nothing, 0.0, "one"),
    "pseudo_labels": Goal(objectives.pseudo_labels, _nothing, 0.3, "nobody"),
    "beliefs": Goal(objectives.trusted_reference, _beliefs, 1.0, "nobody"),
    "reference": Goal(objectives.trusted_reference, _observations, 1.0, "together"),
    "transport": Goal(objectives.transport, _cost, 0.1, "summed", {"epsilon": 0.1}),
    "projected_kl": Goal(objectives.projected_kl, _cost, 0.3, "summed"),
    "kd": Goal(objectives.kd, _nothing, 1.0, "namesake"),
    "uld": Goal(objectives.uld, _nothing, 0.1, "one"),
    "extra_head": Goal(objectives.extra_head, _nothing, 3.0, "one"),
    "feature_matching": Goal(objectives.feature_matching, _nothing, 0.1, "one"),
    "refilled_relations": Goal(objectives.refilled_relations, _nothing, 10.0, "one"),
    "refilled_classifier": Goal(objectives.refilled_classifier, _centres, 100.0, "one"),
    "gkd_classifier": Goal(objectives.gkd_classifier, _centres, 10.0, "one"),
}
"""Every objective by name, and `beliefs`: those of `reference` without a teacher.

Weights are those with the largest gain from the chosen teacher on the tuning tasks of
experiments/README.md; `feature_matching` depends on the scale of features.
"""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(_student.BudgetConfig):
    """Flags of every experiment whose students minimise one objective."""

    objective: str = _run.flag(
        "reference",
        f"What is minimised beside cross-entropy: {', '.join(GOALS)}; with settings as "
        "name:setting=value:setting=value.",
    )
    weight: float | None = _run.flag(
        None, "Weight of that term; the objective's own if not given.", low=0.0
    )
    temperature: float | None = _run.flag(
        None, "Softening of the predictions; the objective's own if not given.", low=1e-3
    )
    epsilon: float | None = _run.flag(
        None,
        "Entropic regularisation, in nats of the cost; the objective's own if not given.",
        low=1e-3,
    )


class Choice(NamedTuple):
    """A goal with settings, as a flag names it.

    Attributes:
        text: As given, which is what reports call it.
        name: One of `GOALS`.
        settings: Of the objective; "weight" is that of the term, a number or `AUTO`.
    """

    text: str
    name: str
    settings: dict[str, Any]

    @property
    def goal(self) -> Goal:
        """Its row of the table."""
        return GOALS[self.name]


def settings_of(name: str) -> dict[str, Any]:
    """Settings of a goal and their defaults: numbers, switches and names."""
    goal = GOALS[name]
    found = _settings.defaults(goal.objective)
    return {"weight": goal.weight} | found | dict(goal.settings)


def parse(text: str, **overrides: Any) -> Choice:
    """A choice from "name" or "name:setting=value:setting=value".

    Args:
        text: As on a command line, such as "transport:weight=1:epsilon=0.5".
        **overrides: Settings that take precedence; None leaves one as it is.

    Raises:
        InputError: If goal or setting is unknown or a value is not of the setting's kind.
    """
    name = text.partition(":")[0]
    checks.choice("objective", name, GOALS)
    known, settings = settings_of(name), {}
    given = [f"--{key}" for key, override in overrides.items() if override is not None]
    checks.require(
        name != FINE_TUNE or not (text != name or given),
        f"the objective `{FINE_TUNE}` has no settings; leave out "
        f"{', '.join(given) or 'what stands behind the colon'}.",
    )
    for key, word in _settings.pairs(text, known).items():
        auto = (key, word) == ("weight", AUTO)
        settings[key] = AUTO if auto else _settings.value(text, word, known[key])
    for key, override in overrides.items():
        if override is not None:
            checks.choice(f"setting of {name}", key, known)
            settings[key] = override
    weight: Any = settings.get("weight", 0.0)
    checks.require(weight == AUTO or weight >= 0, f"`weight` must be >= 0, got {weight}.")
    return Choice(text, name, settings)


def chosen(config: ObjectiveConfig) -> Choice:
    """The goal that a config's flags describe; see `parse`."""
    return parse(
        config.objective,
        weight=config.weight,
        temperature=config.temperature,
        epsilon=config.epsilon,
    )


def check_teachers(choice: Choice, number: int) -> None:
    """Refuses several teachers where the goal hears one at a time."""
    able = [name for name, goal in GOALS.items() if goal.hears in ("summed", "together")]
    checks.require(
        number <= 1 or choice.name in able,
        f"the objective `{choice.name}` cannot hear several teachers at once; name one teacher, "
        f"or choose {' or '.join(able)}.",
    )


def check_copies(choice: Choice, config: _task.TaskConfig) -> None:
    """Refuses labelled copies where labels that were left out must judge."""
    judged = choice.name in ("reference", "beliefs") or choice.settings.get("weight") == AUTO
    checks.require(
        not (judged and config.varied and config.copies == "labelled"),
        f"{choice.text!r} judges by labels that were left out, of which a labelled copy would "
        "tell; use --copies=unlabelled.",
    )


def mixture(values: np.ndarray, names: Sequence[str], number: int) -> dict[str, float]:
    """The leading teachers, best first, each with its share.

    Args:
        values: Transport score of each teacher; one with NaN is left out.
        names: Of the teachers.
        number: Of teachers to take, at most.
    """
    known = int((~np.isnan(values)).sum())
    leading = _task.rank(values, names)[: min(number, known)]
    chosen = jnp.asarray([values[names.index(name)] for name in leading])
    shares = selection.mixture(chosen, temperature=MIXTURE_TEMPERATURE)
    return {name: float(share) for name, share in zip(leading, shares, strict=True)}


def make(choice: Choice, lesson: Lesson) -> tuple[Objective, Outputs]:
    """What the student minimises, and what its teachers say of every training image.

    Raises:
        InputError: If the goal cannot hear these teachers, or a setting is out of range.
    """
    weight = choice.settings.get("weight", choice.goal.weight)
    terms = (1.0, objectives.cross_entropy()), (weight, term(choice, lesson))
    return objectives.weighted_sum(*terms), speech(choice, lesson)


def speech(choice: Choice, lesson: Lesson) -> Outputs:
    """What the teachers of a lesson say of every training image, as the goal hears it."""
    return _SPEECH[choice.goal.hears](lesson)


def term(choice: Choice, lesson: Lesson) -> Objective:
    """What stands beside cross-entropy in what the student minimises.

    Raises:
        InputError: If the goal cannot hear these teachers, or a setting is out of range.
    """
    goal = choice.goal
    check_teachers(choice, len(lesson.shares))
    settings = {**goal.settings, **choice.settings}
    settings.pop("weight", None)
    if goal.hears == "summed" and len(lesson.shares) > 1:
        parts = [
            (
                share,
                goal.objective(**goal.arrays(lesson._replace(shares={name: share})), **settings),
            )
            for name, share in lesson.shares.items()
        ]
        return _sum_over_teachers(parts)
    return goal.objective(**goal.arrays(lesson), **settings)


def _sum_over_teachers(parts: list[tuple[float, Objective]]) -> Objective:
    """Sum of terms of which each hears one of the teachers whose logits stand side by side."""

    def hearing(term: Objective, place: int) -> Objective:
        def one(teacher: Outputs) -> Outputs:
            logits = teacher.logits.reshape(teacher.logits.shape[0], len(parts), -1)
            return Outputs(logits[:, place])

        return Objective(
            lambda key, batch, student, teacher: term.init(key, batch, student, one(teacher)),
            lambda params, state, key, batch, student, teacher: term.loss(
                params, state, key, batch, student, one(teacher)
            ),
            term.listens,
        )

    return objectives.weighted_sum(
        *((share, hearing(term, place)) for place, (share, term) in enumerate(parts))
    )


def _of_nobody(lesson: Lesson) -> Outputs:
    return Outputs(jnp.zeros((len(lesson.school.task.train), 1)))


def _of_one(lesson: Lesson) -> Outputs:
    return _task.teaching(lesson.seen, lesson.only)


def _of_namesake(lesson: Lesson) -> Outputs:
    """Logits for the task's classes of a teacher who knows them by name."""
    names = lesson.seen.class_names[lesson.seen.names.index(lesson.only)]
    wanted = lesson.school.task.class_names
    for name in wanted:
        checks.require(
            name in names,
            f"the objective `kd` needs a teacher who knows every class of the task by name, but "
            f"{lesson.only!r} has no {name!r}; choose an objective across labels.",
        )
    logits = _of_one(lesson).logits[:, jnp.asarray([names.index(name) for name in wanted])]
    # A probability that underflowed is small and not zero: all of them may have.
    return Outputs(jnp.maximum(logits, jnp.log(jnp.finfo(logits.dtype).tiny)))


def _of_several(lesson: Lesson) -> Outputs:
    return _task.teaching_together(lesson.seen, list(lesson.shares))


_SPEECH: dict[Hears, Callable[[Lesson], Outputs]] = {
    "nobody": _of_nobody,
    "one": _of_one,
    "namesake": _of_namesake,
    "summed": _of_several,
    "together": _of_several,
}
"""What is said of every training image, by how a goal hears it."""
