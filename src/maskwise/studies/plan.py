"""Runs and plans of a study.

An arm is one way to pre-train. A run trains one arm with one seed and evaluates the checkpoint. It
consists of stages, such as preparing a text. A plan is a list of runs that may run at the same
time. The reference arm is the model that the baseline arm starts from, evaluated without training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, product, takewhile
from pathlib import Path

from maskwise.base.constants import NEXT_TOKEN, REFERENCE, WITHOUT_RATIO
from maskwise.base.errors import MaskwiseError, require_known
from maskwise.base.specs import leaves, of_run
from maskwise.evaluation.evaluate import measure_of
from maskwise.evaluation.settings import fixed_policies
from maskwise.models.decoders import is_causal
from maskwise.models.loading import has_head, load_config
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.results.files import Record
from maskwise.samplers import sampler
from maskwise.studies.stages import (
    CHECKPOINT,
    KINDS,
    TEXT,
    Stage,
    evaluate_stage,
    finetune_stage,
    learn_stage,
    named,
    overlap_stage,
    prepare_stage,
    pretrain_stages,
)
from maskwise.tasks.loading import load_task
from maskwise.text.settings import CorpusSettings
from maskwise.training.tracking import Tracked, id_of


@dataclass(frozen=True)
class Run:
    """One arm with one seed: the stages that train a checkpoint and the stages that evaluate it.

    Attributes:
        arm: the name of the arm.
        seed: the seed of the pre-training run.
        recipe: the arm's recipe with the seed, the settings that a search chose (``study.search``)
            and the number of steps after matching (``study.equal_by``).
        chain: the stages that prepare texts, learn masking policies and train, in topological
            order. A run that is not trained has no training stage, or only those that train a new
            head on the frozen encoder (``_head_only``).
        evaluated: the stage that evaluates the checkpoint without fine-tuning. None if the run is
            not evaluated in this way, for example because the reference cannot fill masks.
        tasks: the fine-tuning stages, keyed by the task's name in the recipe.
        overlaps: the stages that search the training texts for test items of the tasks.
        setting: the values of the searched settings, keyed by dotted name. A search run tries these
            values; for other runs, the search chose them.
        trained: whether the run pre-trains. If not, it is the model from which the baseline starts.
        role: "search" for a run of the search, "gate" for an extra run that only the gate compares
            (the contrast that is tested first), "" for all others.
    """

    arm: str
    seed: int
    recipe: Recipe
    chain: tuple[Stage, ...]
    evaluated: Stage | None = None
    tasks: dict[str, Stage] = field(default_factory=dict)
    overlaps: tuple[Stage, ...] = ()
    setting: Plain = field(default_factory=dict)
    trained: bool = True
    role: str = ""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in topological order."""
        stages = list(self.chain)
        if self.evaluated:
            stages.append(self.evaluated)
        return (*stages, *self.tasks.values(), *self.overlaps)

    @property
    def trainings(self) -> list[Stage]:
        """The training stages of the chain."""
        return [stage for stage in self.chain if KINDS[stage.kind].output == CHECKPOINT]

    @property
    def phases(self) -> list[tuple[Stage, ...]]:
        """The training stages of each phase, of which the last has its checkpoint."""
        phases = []
        stages: list[Stage] = []
        for stage in self.trainings:
            stages.append(stage)
            if "part" not in stage.what:
                phases.append(tuple(stages))
                stages = []
        return phases

    @property
    def pretrained(self) -> Stage | None:
        """The last training stage; None for an untrained run that needs no new head."""
        return next(reversed(self.trainings), None)

    @property
    def texts(self) -> list[Stage]:
        """The stages that prepare the training texts, in the order of the training phases.

        For a run that is not trained, the list contains only the text that provides the tokenizer.
        """
        by_name = named(self.chain)
        texts = [by_name[stages[-1].needs[0]] for stages in self.phases]
        return texts or [self.chain[0]]

    @property
    def prepared(self) -> Stage:
        """The stage that prepares the text of the last training phase."""
        return self.texts[-1]

    @property
    def title(self) -> str:
        """The arm, seed, setting and role of the run, for progress displays."""
        parts = [self.arm, f"seed {self.seed}"]
        # Settings are named by the last part of their dotted names, because displays are narrow.
        parts += [f"{key.split('.')[-1]}={value}" for key, value in self.setting.items()]
        if self.role:
            parts.append(self.role)
        return ", ".join(parts)

    def tracked(self, out: Path, training: Stage | None) -> Tracked:
        """Return what trackers are told of a training of the run.

        Args:
            out: the folder of the study, or of a single run.
            training: one of the trainings; None for a run that is only measured.
        """
        name = self.title
        if training is not None and len(self.tracked_stages) > 1:
            number = self.tracked_stages.index(training) + 1
            name += f", {training.kind} {number} of {len(self.tracked_stages)}"
        return Tracked(
            group=_study_at(out, self.recipe.name),
            name=name,
            id=id_of(out, name, training.name if training else ""),
            config=dict(leaves(self.recipe.model_dump(mode="json", exclude={"study"}))),
            folder=out / "trackers",
        )

    @property
    def tracked_stages(self) -> list[Stage]:
        """The stages that learn policies and train, each of which is a run for trackers."""
        return [stage for stage in self.chain if KINDS[stage.kind].on_ranks]

    @property
    def who(self) -> Record:
        """The fields that identify the run in records."""
        who: Record = {"arm": self.arm, "seed": self.seed}
        if self.role:
            who["role"] = self.role
        return who

    @property
    def compared(self) -> bool:
        """Whether this is a run of the main plan, which the study's contrasts compare."""
        return not self.role


@dataclass(frozen=True)
class Plan:
    """Runs that can be executed at the same time.

    Attributes:
        runs: the runs in starting order. Every arm starts its first run before any arm starts its
            second run.
        purpose: "texts" (prepare texts only), "search" (try settings) or "main".
    """

    runs: tuple[Run, ...]
    purpose: str = "main"

    def stages(self) -> list[Stage]:
        """List every stage once, in topological order, with texts first."""
        # A text with two needs is scored by a masking policy, which another stage learns first.
        # Such a text cannot be among the first stages.
        every = dict.fromkeys(chain.from_iterable(run.stages for run in self.runs))

        def is_later(stage: Stage) -> bool:
            return KINDS[stage.kind].output != TEXT or len(stage.needs) > 1

        return sorted(every, key=is_later)


def stages_of(plans: Iterable[Plan]) -> dict[str, Stage]:
    """Collect the stages of several plans, keyed by name."""
    return named(chain.from_iterable(plan.stages() for plan in plans))


def _study_at(out: Path, name: str) -> str:
    """Return what a study is called among those of other folders, which may have the same name.

    >>> _study_at(Path("runs/adapt-letters"), "adapt"), _study_at(Path("runs/mine"), "decay")
    ('adapt-letters', 'decay, mine')
    """
    folder = out.resolve().name
    return folder if name in folder else f"{name}, {folder}"


def make_plan(recipe: Recipe) -> Plan:
    """Plan the full runs of a recipe, without ``study.search`` and ``study.equal_by``.

    >>> from maskwise.recipe import read_recipe
    >>> plan = make_plan(read_recipe("quick-start", ["study.seeds=1"]))
    >>> len(plan.runs), [stage.kind for stage in plan.stages()][:2]
    (3, ['prepare', 'pretrain'])

    Raises:
        MaskwiseError: the recipe has no arms.
    """
    require_arms(recipe)
    contents = task_contents(recipe)
    runs = []
    # The outer loop is over seeds, because an interrupted study then has complete pairs of runs.
    for seed, arm in product(recipe.study.seed_list, arms_of(recipe, contents)):
        runs.append(make_run(recipe, arm, seed, contents=contents))
    return Plan(tuple(runs))


def require_arms(recipe: Recipe) -> None:
    """Raise an error if a recipe has no arms, or does not measure its ``study.outcome``."""
    if not recipe.study.arms:
        raise MaskwiseError(
            f"recipe {recipe.name!r} has no arms to compare",
            do="add study.arms, or use maskwise pretrain",
        )
    if recipe.chooses:
        _require_equal_terms(recipe)
    last = recipe.links()[-1]
    # For encoder–decoders, names of held-out losses end with the output format of the decoder.
    formats = [""]
    if last.kind != "encoder":
        formats = [" sentinels", " spans", " full"]
    ratios = ["", *map("@{:g}".format, last.evaluation.ratios)]
    parts = [*product(fixed_policies(last.evaluation.masks), formats, ratios)]
    parts += [(name, "", "") for name in last.evaluation.masks if name in WITHOUT_RATIO]
    outcome = recipe.study.outcome
    if outcome == "tasks" and not recipe.tasks:
        raise MaskwiseError("study.outcome=tasks, but there are no tasks", do="add tasks=[FILE]")
    if outcome not in (None, "tasks"):
        measured = ["tasks"] if recipe.tasks else []
        measured += ["heldout:" + "".join(part) for part in parts]
        require_known("outcome in study.outcome", outcome, measured)


def _require_equal_terms(recipe: Recipe) -> None:
    """Raise an error if a study cannot compare arms that choose their best state."""
    if recipe.study.equal_by != "steps":
        raise MaskwiseError(
            "runs that choose their length do not use equal compute",
            got=f"study.equal_by={recipe.study.equal_by}",
            do="remove study.equal_by, or training.patience and training.lengths",
        )
    for name in recipe.study.arms:
        for link in recipe.arm(name, seed=recipe.study.first_seed).links():
            if link.training.chooses or not link.objectives:
                continue
            if sampler(link.sampling, list(link.objectives)).every:
                raise MaskwiseError(
                    f"the sampler of arm {name!r} would choose by documents that judge it",
                    got=f"{link.sampler} without training.patience, which another arm has",
                    do="set training.patience for all arms",
                )


def arms_of(recipe: Recipe, contents: Mapping[str, str]) -> list[str]:
    """List the arms, and the reference arm if it can be evaluated."""
    arms = list(recipe.study.arms)
    # Any model can be fine-tuned on tasks, but only a model with a head has a held-out loss.
    # Without tasks, word frequencies take the place of a new model, if a contrast names it.
    named = REFERENCE in chain.from_iterable(recipe.study.pairs)
    from_scratch = recipe.model.pretrained is None
    if contents or _is_measured(baseline_of(recipe)) or (named and from_scratch):
        arms.append(REFERENCE)
    return arms


def recipe_arm(recipe: Recipe, arm: str) -> str:
    """Return the arm whose recipe a run has: the baseline for a run that is not trained."""
    return arm if arm in recipe.study.arms or not recipe.baseline else recipe.baseline


def baseline_of(recipe: Recipe) -> Recipe:
    """Return the recipe of the baseline arm, with the first seed of the study."""
    assert recipe.baseline is not None, "require_arms comes first"
    return recipe.arm(recipe.baseline, seed=recipe.study.first_seed)


def _is_measured(recipe: Recipe) -> bool:
    """Return whether the model that training starts from predicts what is measured."""
    start, evaluation = recipe.model.pretrained, recipe.evaluation
    if start is None:
        return False
    # Of a decoder, only the loss of next tokens can be measured.
    alone = NEXT_TOKEN in evaluation.masks and not evaluation.measures
    return has_head(start) or (alone and is_causal(load_config(start, kind=None)))


def _measurable(recipe: Recipe) -> Recipe:
    """Return a recipe without the measures that its unchanged model cannot take: rows may be too
    long until the changes of an arm make them readable.
    """
    config = load_config(str(recipe.model.pretrained), kind=None)
    given = recipe.evaluation.measures
    measures = tuple(each for each in given if measure_of(each).misfit(config) is None)
    evaluation = recipe.evaluation.model_copy(update={"measures": measures})
    return recipe.model_copy(update={"evaluation": evaluation})


def reference_words(baseline: Recipe) -> str:
    """Return the name that pages and messages use for the reference arm."""
    if baseline.model.pretrained:
        return "the unchanged model"
    if not baseline.tasks:
        return "word frequencies"
    return "the untrained model"


def task_contents(recipe: Recipe) -> dict[str, str]:
    """Return hashes of the rows of the tasks, keyed by the task's name in the recipe.

    The rows of a task that depends on the seed are those of the first seed of the study.
    """
    seed = recipe.study.first_seed
    return {task: load_task(of_run(task, seed)).fingerprint for task in recipe.tasks}


def make_run(
    recipe: Recipe,
    arm: str,
    seed: int,
    *,
    contents: Mapping[str, str],
    more: Mapping[str, object] | None = None,
    evaluated: bool = True,
    role: str = "",
) -> Run:
    """Plan the stages of one run.

    Args:
        contents: hashes of the rows of the tasks on which the run is fine-tuned
            (``task_contents``); {} to plan no fine-tuning.
        more: settings that override the arm's settings.
        evaluated: whether to evaluate the checkpoint also without fine-tuning.
        role: the role of the run, as in ``Run``.
    """
    is_trained = arm in recipe.study.arms
    own = recipe.arm(recipe_arm(recipe, arm), seed=seed, more=more)
    if not is_trained:
        own = own.unchanged()
    links = own.links()
    # The first text trains the tokenizer that all other texts use.
    text = prepare_stage(links[0].unlearned())
    chain = [text]
    last: Stage | None = None
    trained = links if is_trained else _head_only(own, contents)
    for link in trained:
        learned = None
        if link.learns:
            learned = learn_stage(link, own.learned_task, text, after=last)
            chain.append(learned)
        prepared = prepare_stage(link, after=text, learned=learned)
        stages = pretrain_stages(link, prepared, after=last)
        last = stages[-1]
        chain += [prepared, *stages]
    evaluation = None
    if evaluated and (last or _is_measured(own)):
        # All arms are evaluated on the text of the study's last phase. Rows have the length and
        # layout of the arm's own last phase.
        rows = links[-1].corpus.model_dump(include={"length", "layout", "attention"})
        common = recipe.links()[-1].unlearned().corpus.model_dump()
        corpus = CorpusSettings(**of_run(common | rows, seed))
        held_out = prepare_stage(own.model_copy(update={"corpus": corpus}), after=text)
        chain.append(held_out)
        # Runs are compared on the same documents, also if only some of them choose a state.
        judged = own if last else _measurable(own)
        evaluation = evaluate_stage(judged, held_out, last, apart=recipe.chooses)
    # A stream is read only once, for training, so it is not searched for test items.
    whole = [link for link in trained if not link.corpus.stream]
    tasks = {}
    overlaps: list[Stage] = []
    for task, content in contents.items():
        spec = of_run(task, seed)
        # Some tasks are generated from the seed, so their rows differ between runs.
        if spec != task:
            content = load_task(spec).fingerprint
        tasks[task] = finetune_stage(own, spec, content, prepared=text, pretrained=last)
        # A search does not use test rows, so test items in the corpus do not affect it.
        if role != "search":
            overlaps += [overlap_stage(link, spec, content) for link in whole]
    return Run(
        arm,
        seed,
        own,
        chain=tuple(dict.fromkeys(chain)),
        evaluated=evaluation,
        tasks=tasks,
        overlaps=tuple(dict.fromkeys(overlaps)),
        trained=is_trained,
        role=role,
    )


def _head_only(baseline: Recipe, contents: Mapping[str, str]) -> tuple[Recipe, ...]:
    """Return the first phases of the baseline that the reference needs for a head of its own.

    Fine-tuning draws all weights outside the encoder anew, except for tasks that are answered by
    the head of masked language modelling. If the start has no such head, the arms train one on the
    frozen encoder first. The reference gets the same head: with a random one, its scores would be
    worse for a reason that has nothing to do with the encoder.
    """
    start = baseline.model.pretrained
    if start is None or has_head(start):
        return ()
    tasks = of_run([*contents], baseline.training.seed)
    if not any(load_task(task).kind.pretrained_head for task in tasks):
        return ()
    return tuple(takewhile(lambda link: link.training.freeze == "encoder", baseline.links()))
