"""Which teacher of a faculty suits a task, and how sure is that?

    python -m experiments.score_faculty --root=runs/faculty --dataset=digits

Scores every teacher of a faculty (see experiments.build_faculty) for a few-shot task in one
vectorised pass a score, from the labelled images alone, and prints the teachers best first, each
score with half of its 95 % interval, and whether the leaders can be told apart. No student is
trained: some ten seconds for a dozen teachers, most of them imports and compilation. Expect the
teachers of all ten digits first.

`--null` says what each score is worth against permuted labels, `--budget` how good the ranking
would be with fewer labelled examples, and `--eliminate` finds the best teacher without asking all
of them about every example. `--search=K` asks only the K teachers whose sketches are nearest to the
task's: every teacher is sketched once, in the first search, by what it says of probe images.

Over all devices, with `--shard`; over those of several hosts that share a disk, by one command a
host (0, 1, ...), of which the first writes the results:

    python -m experiments.score_faculty --root=SHARED --shard --coordinator=HOST0:1234 \
        --processes=2 --process=0

Teachers of any framework, `--outputs=DIR`: a file `labels.npz` and one npz file a teacher. With
PyTorch, for a network whose last layer is `net.fc` and whose features are that layer's inputs:

    kept = []
    net.fc.register_forward_hook(lambda layer, inputs, output: kept.append((inputs[0], output)))
    with torch.no_grad():
        for images, _ in loader:                     # in the order of the labels
            net.eval()(images)
    features, logits = (torch.cat(part) for part in zip(*kept))
    np.savez("DIR/my_net.npz", probabilities=logits.softmax(1).numpy(), features=features.numpy(),
             class_vectors=net.fc.weight.detach().numpy(), class_names=np.array(names))
    np.savez("DIR/labels.npz", labels=np.array(labels), class_names=np.array(task_names))

Only `probabilities` must be there (a black box); `source_accuracy` and `num_parameters` may be,
as numbers. `class_names` are texts, labels whole numbers, -1 where unknown.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments import _assessment, _outputs, _run, _shortlist, _task
from fdjax import checks, faculty, reports, scores, selection, sharding


@dataclasses.dataclass(frozen=True)
class Config(_task.TaskConfig, _run.HostsConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/score_faculty", "Folder of results and report.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    outputs: str | None = _run.flag(
        None, "Folder of outputs of any framework, in place of faculty and data set."
    )
    unlabelled: int = _run.flag(
        0, "Unlabelled images to observe as well, for a later distillation; -1 for all.", low=-1
    )
    scores: tuple[str, ...] = _run.flag(
        get_args(_task.Shown),
        f"Scores to compute, of {', '.join(scores.SCORES)}; teachers are ranked by the first.",
    )
    level: Literal["example", "task"] = _run.flag(
        "example", "One transport problem an example, or one a teacher."
    )
    smoothing: float = _run.flag(
        0.0, "Share of each target label spread over all.", low=0.0, high=1.0
    )
    epsilon: float = _run.flag(
        0.05, "Entropic regularisation, as a share of the largest cost.", low=1e-4
    )
    resamples: int = _run.flag(
        100, "Random halves of the examples, for the intervals; 0 for none.", low=0
    )
    null: bool = _run.flag(False, "Whether to score permuted labels, too, 99 times.")
    budget: bool = _run.flag(False, "Whether to draw the ranking's quality by examples.")
    eliminate: bool = _run.flag(
        False, "Whether to look for the best teacher only, by successive elimination."
    )
    questions: int | None = _run.flag(
        None,
        "Most pairs of teacher and example that --eliminate asks; no bound if not given.",
        low=1,
    )
    search: int | None = _run.flag(
        None,
        "How many teachers to score: those with the nearest sketches; all if not given.",
        low=1,
    )
    probes: int = _run.flag(
        500, "Images of the data set that each teacher is asked about for its sketch.", low=1
    )
    encoder: str | None = _run.flag(
        None, "Teacher whose features are the embedding of the sketches; pixels if not given."
    )
    teacher_batch: int | None = _run.flag(
        None, "Teachers scored at a time; by default by the memory they take.", low=1
    )
    keep: str = _run.flag(_task.KEEP, _task.KEEP_HELP)
    shard: bool = _run.flag(False, "Whether teachers are spread over all devices.")


NULLS = 99


class Question(NamedTuple):
    """The task and who is to be scored for it.

    Attributes:
        title: What the task is, in a sentence.
        class_names: Of the task.
        labels: Class of each example.
        names: Of the teachers.
        ask: What they say of examples.
        shortlist: How they were found, where they are not all.
    """

    title: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    ask: selection.Ask
    shortlist: _shortlist.Shortlist | None = None


def _question(config: Config, record: _run.Run) -> tuple[Question, tuple[int, ...]]:
    """The question, and how many labels each teacher has."""
    if config.outputs is not None:
        given = _outputs.read(config.outputs)
        title = f"Task: {', '.join(given.class_names)}; outputs of `{config.outputs}`."
        ask = selection.known(given.teachers)
        parts = (given.class_names, given.labels, given.names, ask)
        return Question(title, *parts), tuple(map(len, given.teacher_classes))
    keep = _task.keep_of(config.keep)
    task = _task.target(config)
    cards = faculty.cards(config.root)
    title = (
        f"Task: {', '.join(task.class_names)} of `{config.dataset}`, {config.shots} labelled "
        "images a class."
    )
    shortlist = None
    if config.search is not None:
        with record.stage("search"):
            shortlist = _shortlist.find(
                config.root,
                config,
                task,
                k=config.search,
                probes=config.probes,
                encoder=config.encoder,
            )
        print(shortlist.words)
        title = f"{title} {shortlist.words}"
        cards = tuple(card for card in cards if card.name in shortlist.names)
    names = tuple(card.name for card in cards)

    def ask_networks(positions: Any, rows: np.ndarray) -> Any:
        chosen = [names[position] for position in positions]
        images = task.train.images[rows]
        return _task.ask(config.root, images, chosen, keep=keep)

    question = Question(title, task.class_names, task.train.labels, names, ask_networks, shortlist)
    return question, tuple(len(card.class_names) for card in cards)


def run(config: Config) -> dict[str, Any]:
    """Scores and ranks the faculty; returns what results.json holds."""
    checks.require(
        config.shard or config.processes == 1, "--processes share the work of --shard; add it."
    )
    record = _run.Run(config)
    checks.require(bool(config.scores), "--scores is empty; name at least one.")
    for name in config.scores:
        checks.choice("--scores", name, scores.SCORES)
    functions = _task.score_functions(
        cost=config.cost,
        level=config.level,
        smoothing=config.smoothing,
        epsilon=config.epsilon,
    )
    checks.require(
        config.search is None or config.outputs is None,
        "--search needs teachers that can be asked about probe images; leave out --outputs.",
    )
    question, sizes = _question(config, record)
    command = f"`{_run.command_line('experiments.score_faculty', config)}`"
    if config.eliminate:
        return _eliminate(config, record, question, functions[config.scores[0]], command)
    settings: dict[str, Any] = {
        "batch_size": config.teacher_batch,
        "mesh": sharding.device_mesh() if config.shard else None,
    }
    everyone = range(len(question.names))
    with record.stage("observe"):
        seen = selection.bucket(question.ask(everyone, np.arange(len(question.labels))))
    judged = {}
    for name in config.scores:
        with record.stage(name):
            judged[name] = _assessment.judge(
                functions[name],
                seen,
                question.labels,
                len(question.class_names),
                seed=config.seed,
                resamples=config.resamples,
                nulls=NULLS if config.null else 0,
                **settings,
            )
    first = config.scores[0]
    ranking = _task.rank(judged[first].scores, question.names)
    rows = _assessment.rows(ranking, question.names, sizes, judged)
    cells = _assessment.cells(rows, config.scores)
    faults = {question.names[place]: words for place, words in selection.faults(seen).items()}
    notes = [_assessment.verdict(rows, first)]
    notes += [note for note in (_assessment.against_nulls(judged),) if note]
    notes += [f"{name} cannot be scored in full: {words}." for name, words in faults.items()]
    title = f"Teachers by {first} (higher is better; ± is half of the 95 % interval)"
    reports.print_table(cells, title)
    print(*notes, sep="\n")
    values = {name: one.scores for name, one in judged.items()}
    picture = reports.plot_ranking(record.workdir / "ranking.png", question.names, values)
    sections: list[str | Path] = [command, question.title, *notes, reports.table(cells), picture]
    results = {
        "chosen": ranking[0],
        "ranking": rows,
        "classes": question.class_names,
        "verdict": notes[0],
        "faults": faults,
        "search": question.shortlist and question.shortlist._asdict(),
    }
    if config.budget:
        with record.stage("budget"):
            chosen = {name: functions[name] for name in config.scores}
            curve = _assessment.budget(
                chosen,
                seen,
                question.labels,
                len(question.class_names),
                seed=config.seed,
                **settings,
            )
        sections += _show_budget(record.workdir, curve)
        results["budget"] = curve
    reports.write(record.workdir, title, sections)
    return record.finish(results)


def _show_budget(workdir: Path, curve: list[dict[str, Any]]) -> list[str | Path]:
    sections: list[str | Path] = []
    for key in _assessment.METRICS:
        table = _assessment.budget_table(curve, key)
        title = (
            f"Ranking by few examples against the one by all: {key} (mean ± standard error of "
            f"{_assessment.DRAWS} draws)"
        )
        reports.print_table(table, title)
        sections += [f"{title}:", reports.table(table)]
    lines: dict[str, list[Any]] = {}
    for row in curve:
        lines.setdefault(row["score"], []).append((row["examples a class"], row["tau"]))
    picture = reports.plot_curves(
        workdir / "budget.png", lines, "Kendall's tau", xlabel="labelled examples a class"
    )
    return [*sections, picture]


def _eliminate(
    config: Config,
    record: _run.Run,
    question: Question,
    function: scores.ScoreFn,
    command: str,
) -> dict[str, Any]:
    """The best teacher by successive elimination; returns what results.json holds."""
    checks.require(
        not (config.null or config.budget),
        "--eliminate scores no teacher on all examples; leave out --null and --budget.",
    )
    checks.require(config.resamples > 1, "--eliminate needs intervals; raise --resamples.")
    with record.stage("eliminate"):
        found = selection.eliminate(
            function,
            question.ask,
            question.labels,
            len(question.class_names),
            number=len(question.names),
            key=jax.random.key(config.seed),
            budget=config.questions,
            resamples=config.resamples,
            batch_size=config.teacher_batch,
        )
    rows = [
        {
            "examples": one.examples,
            "teachers": len(one.teachers),
            "kept": len(one.kept),
            "best": question.names[one.teachers[int(np.nanargmax(one.scores))]],
            "score": float(np.nanmax(one.scores)),
        }
        for one in found.rounds
    ]
    leaders = [question.names[position] for position in found.leaders]
    title = f"Best teacher by {config.scores[0]}, by elimination"
    note = (
        f"{leaders[0]} is left" if found.decided else f"Left, best first: {', '.join(leaders)}"
    ) + (
        f"; {found.questions} questions (a teacher, an example) of {found.full} in all, "
        f"{found.questions / found.full:.0%}."
    )
    reports.print_table(rows, title)
    print(note)
    reports.write(record.workdir, title, [command, question.title, note, reports.table(rows)])
    return record.finish(
        {
            "chosen": leaders[0],
            "leaders": leaders,
            "rounds": rows,
            "questions": found.questions,
            "full": found.full,
            "search": question.shortlist and question.shortlist._asdict(),
        }
    )


if __name__ == "__main__":
    _run.main(run, Config)
