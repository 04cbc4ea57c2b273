"""Stages: the pieces of work of a study.

A stage has a folder whose name is a hash of all its inputs. If one setting or one character of the
corpus changes, the name changes. A stage is finished if its folder contains ``done.json``, which
is written last. Finished stages never run again. Everything that differs between kinds of stages is
in one `StageKind`; those of maskwise are in the module ``work``. Each kind of stage reads some
inputs and results of earlier stages (left) and writes a result (right):

    prepare    corpus + tokenizer settings (or an earlier tokenizer) → training and held-out rows
    pretrain   prepare + model (or an earlier pretrain) + masking + training → checkpoint, metrics
    choose     several pretrain stages, one for each length → the checkpoint with the lowest loss
    learn      prepare + model (or an earlier pretrain) + task + learning → a masking policy that
               scores the text of a later prepare
    evaluate   prepare + pretrain (or the start model) + measures → held-out losses and others
    finetune   pretrain (or the start model) + task + settings → one score per fine-tuning seed
    tune       one run of a finetune stage, in whose folder it is: with a fine-tuning seed, or to
               try a learning rate → its score
    overlap    corpus + task → number of test items that occur in the training text
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwise.annotate.kept import Store
from maskwise.annotate.registry import annotator
from maskwise.base.constants import COMPUTED
from maskwise.base.devices import hardware
from maskwise.base.effects import UNNAMED
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import file_hash
from maskwise.base.plugins import code_of
from maskwise.evaluation.evaluate import load_measures, reads_documents
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.learning.settings import OF_THE_MODEL
from maskwise.models.starts import TOKENIZER_FILES, resolve_start
from maskwise.recipe import Recipe
from maskwise.recipe.setting_layers import applied, layer, nest
from maskwise.recipe.yamls import Plain
from maskwise.samplers import sampler
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.tasks.task import Task
from maskwise.text.segmenters import names_segmenter, segmenter_version
from maskwise.text.settings import CorpusSettings
from maskwise.text.source import TEXTS, look_in, source_path
from maskwise.training.parts import TrainingPart, parts_of
from maskwise.training.settings import ModelSettings, TrainingSettings

if TYPE_CHECKING:
    from maskwise.studies.store import StageStore

DONE = "done.json"
STAGE = "stage.json"
TEXT, CHECKPOINT, POLICY = "data", "checkpoint", "policy"
"""Folders inside of a stage's folder that later stages read (``StageKind.output``)."""
ROWS = "data"
"""The folder, inside that of a study, of the files with the rows that Python gives (``inputs``)."""
_PLACE = re.compile(rf"""(?<=["'])(?:[^"']*/)?{ROWS}/(?=[^"'/]+-[0-9a-f]{{8}}\.jsonl)""")
"""In JSON, the folder of such a file."""


@cache
def numerics() -> tuple[str, ...]:
    """List versions and the precision. They affect results, so stage names depend on them."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")]
    # On machines with fast bf16, matrices are multiplied in bf16.
    return (*COMPUTED, *libraries, str(hardware()["precision"]))


@dataclass(frozen=True)
class Stage:
    """One piece of work of a study.

    Attributes:
        kind: the name of a `StageKind`, such as "pretrain".
        what: the inputs that determine the result: dumps of settings and hashes of files.
        needs: the names of the stages whose results this stage reads. The first need is a text,
            and a second need is the checkpoint or the policy that the stage uses.
        how: settings that do not affect the weights, such as the logging interval, and what the
            model card says of the run (``card``). They are not part of the name.
    """

    # This is the order of the keys in stage.json.
    kind: str
    what: Plain
    needs: tuple[str, ...] = ()
    how: Plain = field(default_factory=dict)

    def __hash__(self) -> int:
        # Some fields are dicts, which are not hashable. The name identifies the stage.
        return hash(self.name)

    @cached_property
    def name(self) -> str:
        """The name of the stage's folder, ``KIND-HASH``."""
        return f"{self.kind}-{json_hash([self.kind, self.what, self.needs, *numerics()])}"

    def setting(self, key: str) -> Any:
        """Return the value of a dotted key in ``what``, or else in ``how``; None if it is in none.

        >>> Stage("pretrain", {"training": {"steps": 9}}).setting("training.steps")
        9
        """
        for settings in (self.what, self.how):
            value: Any = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    def first_of(self, keys: Iterable[str]) -> Any:
        """Return the first value of dotted keys that is not None; None without one."""
        found = (self.setting(key) for key in keys)
        return next((value for value in found if value is not None), None)

    def as_dict(self) -> Plain:
        """Convert to plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Plain) -> Stage:
        """Restore a stage from the values of ``as_dict``."""
        return cls(**{**plain, "needs": tuple(plain["needs"])})


def _no_facts(result: Plain) -> list[Plain]:
    return []


def _keep(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class StageKind:
    """What one kind of stage does, and what other modules ask about it.

    Its functions are at the top of a module, because they are sent to workers.

    Attributes:
        name: the beginning of the names of its stages.
        run: the function that does the work and returns the content of ``done.json``. Its arguments
            are the stage and the store.
        output: the folder that later stages read: ``TEXT`` (they start with a prepared text),
            ``CHECKPOINT`` (the stage trains the model of a run), ``POLICY``, or another one. None
            if they read only ``done.json``.
        measures: whether it takes measures: its result has ``measurements``, which are lines of
            ``records.jsonl`` without the columns of a run.
        facts: converts a result to other lines of ``records.jsonl``.
        of_run: whether a stage belongs to a run, so that its failure invalidates comparisons of
            this run. The overlap of a text and a task belongs to the study.
        forget: removes the files of a finished stage that are needed only to resume it.
        size: the dotted key of the number of steps that its seconds grow with. If there are several
            keys, a stage has one of these settings. Empty if the work has no steps.
        judged: the dotted key of the number of steps between its evaluations, as ``size``.
        depends: dotted keys of settings on which the time of one step depends, in addition to
            model, tokenizer, rows and training settings. None if it depends on all settings.
        reads_rows: whether its time depends on the rows of its text.
        on_ranks: whether several processes can run a stage together: those of torchrun, or those
            that it starts (``torchrun.launch``). Otherwise, one runs it.
        title: the work for users; a format string whose fields are in ``Stage.what``.
    """

    name: str
    run: Callable[[Stage, StageStore], Plain]
    output: str | None = None
    measures: bool = False
    facts: Callable[[Plain], list[Plain]] = _no_facts
    of_run: bool = True
    forget: Callable[[Path], None] = _keep
    size: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    depends: tuple[str, ...] | None = None
    reads_rows: bool = True
    on_ranks: bool = False
    title: str = ""

    def steps(self, stage: Stage) -> int | None:
        """Return the number of steps of a stage; None if its work has no steps."""
        return stage.first_of(self.size)

    def share(self, stage: Stage, step: int) -> float:
        """Return the share of a stage that is finished after a step of its training.

        >>> part = {"begin": 270, "steps": 30}
        >>> KINDS["pretrain"].share(Stage("pretrain", {"part": part}), 280)
        0.3333333333333333
        """
        steps = self.steps(stage)
        begin: int = stage.setting("part.begin") or 0
        return min(1.0, (step - begin) / steps) if steps else 0.0

    def evaluations(self, stage: Stage) -> int:
        """Count the evaluations of a stage that has steps, at the end and before.

        >>> KINDS["pretrain"].evaluations(Stage("pretrain", {"training": {"steps": 101}}))
        1
        >>> part = {"begin": 270, "steps": 30}
        >>> stage = Stage("pretrain", {"part": part}, how={"eval_every": 100})
        >>> KINDS["pretrain"].evaluations(stage)
        1
        """
        every = stage.first_of(self.judged)
        begin: int = stage.setting("part.begin") or 0
        end = begin + (self.steps(stage) or 0)
        # Where a stable part of a training ends, it is not evaluated (``training.parts``).
        last = 0 if stage.setting("part.falls") is False else 1
        if not every:
            return last
        return end // every - begin // every + (last if end % every else 0)

    def work(self, stage: Stage) -> str:
        """Name the work of a stage for users, such as "fine-tuning on trec"."""
        return (self.title or self.name).format(**stage.what)


KINDS: dict[str, StageKind] = {}
"""Kinds of stages, keyed by name. ``maskwise.studies.work`` adds its kinds when it is imported."""


def add_kind(kind: StageKind) -> None:
    """Add a kind of stage.

    Raises:
        MaskwiseError: another kind has this name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise MaskwiseError("there is a kind of stage with this name already", got=kind.name)


def kind_of(name: str) -> StageKind:
    """Return the kind of a stage, which its name begins with."""
    return KINDS[name.rpartition("-")[0]]


def named(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Return stages keyed by name, in the given order."""
    return {stage.name: stage for stage in stages}


def json_hash(value: object) -> str:
    """Return a hash of 16 hexadecimal digits of JSON values, without places of rows."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(without_places(text).encode()).hexdigest()[:16]


def without_places(text: str) -> str:
    """Return JSON in which files of rows that Python gives are named without their folder.

    The names of these files have hashes of their rows, and the same rows may be stored elsewhere.

    >>> without_places('["runs/mine/data/texts-0a1b2c3d.jsonl", "data/texts.jsonl"]')
    '["texts-0a1b2c3d.jsonl", "data/texts.jsonl"]'
    """
    return _PLACE.sub("", text)


# One function for each kind of stage. The names of stages must not change between versions of
# maskwise, or finished stages would run again. Therefore a name leaves out settings that older
# versions lack, if these settings have their defaults.


def prepare_stage(
    recipe: Recipe, *, after: Stage | None = None, learned: Stage | None = None
) -> Stage:
    """Return the stage that prepares the rows of a recipe's corpus.

    Args:
        recipe: the recipe of one run.
        after: a stage that prepares a text and provides the tokenizer. If the recipe has the same
            text, ``after`` itself is returned. None to use the recipe's tokenizer.
        learned: the stage that learns the masking policy that scores the text, if there is one.
    """
    newer = set() if recipe.corpus.stream else {"stream", "shuffle", "repeat"}
    corpus = recipe.corpus.text.model_dump(mode="json", exclude={"temperature"} | newer)
    what: Plain = {"corpus": corpus, "corpus_content": corpus_fingerprint(recipe.corpus)}
    if recipe.corpus.layers:
        content = what["corpus_content"]
        what["annotators"] = {
            spec: _version_read(spec, recipe.corpus, content) for spec in recipe.corpus.layers
        }
    # Another version of a segmenter may find other words.
    if names_segmenter(recipe.corpus.words):
        what["segmenter"] = segmenter_version(recipe.corpus.words)
    what |= _code([recipe.corpus.words, *recipe.corpus.layers])
    if after is not None:
        if learned is not None:
            return Stage("prepare", what, (after.name, learned.name))
        # ``after.what`` may also contain keys for the tokenizer, which ``what`` lacks.
        if all(after.what.get(key) == value for key, value in what.items()):
            return after
        return Stage("prepare", what, (after.name,))
    name = recipe.tokenizer_name
    what["tokenizer"] = recipe.tokenizer.model_dump(mode="json", exclude={"replaces"})
    what["tokenizer"]["name"] = name
    what["tokenizer_content"] = start_fingerprint(name, TOKENIZER_FILES) if name else None
    # Other changes are those of the weights.
    of_tokens = [
        (spec, step)
        for spec, step in zip(recipe.model.changes, recipe.model.steps, strict=True)
        if step.changes_tokens
    ]
    if of_tokens:
        what["changes"] = [spec for spec, _ in of_tokens]
        what["changes_content"] = {
            source: fingerprint(source) for _, step in of_tokens for source in step.reads
        }
        what |= _code([recipe.corpus.words, *recipe.corpus.layers, *what["changes"]])
    return Stage("prepare", what)


_READ: dict[str, str] = {}
"""The versions of stored annotations that corpora read, by what decides them."""


def _version_read(spec: str, corpus: CorpusSettings, content: str | list[str]) -> str:
    """Return the version of an annotator, as a corpus with this content reads it.

    A folder of annotations may have those of several corpora; this corpus reads its own.
    """
    made = annotator(spec)
    if not isinstance(made, Store) or made.fitted or corpus.stream:
        return made.version
    key = json_hash([spec, corpus.model_dump(mode="json"), content, made.choices])
    if key not in _READ:
        _READ[key] = made.of(document.text for document in corpus.documents()).version
    return _READ[key]


def tokenizer_of(first: Stage) -> str:
    """Return a hash of the tokenizer that the first prepare stage of a run loads or trains.

    Losses per token are comparable only if the tokenizers have the same hash.
    """
    what = first.what
    corpus = what["corpus"]
    given = what["tokenizer"]["name"] and what["tokenizer_content"]
    trained = [what["tokenizer"], what["corpus_content"], corpus["text_field"], corpus["limit"]]
    if "changes" in what:
        changes = [what["changes"], what["changes_content"]]
        return json_hash([given, changes, *trained[1:], corpus["held_out"]])
    return json_hash(given or trained)


def pretrain_stages(recipe: Recipe, prepared: Stage, *, after: Stage | None = None) -> list[Stage]:
    """List the stages that train the model of one arm and seed; the last has its checkpoint.

    With ``training.lengths``, every part of the training is a stage, and the last stage chooses.
    The arguments are those of ``pretrain_stage``.
    """
    if recipe.training.lengths is None:
        return [pretrain_stage(recipe, prepared, after=after)]
    ending: dict[int, Stage | None] = {0: after}
    stages = []
    lengths = []
    for part in parts_of(recipe.training):
        stage = pretrain_stage(recipe, prepared, after=ending[part.begin], part=part)
        stages.append(stage)
        if part.falls:
            lengths.append(stage)
        else:
            ending[part.end] = stage
    what = {"steps": recipe.training.steps}
    needs = [prepared.name, *(stage.name for stage in lengths)]
    return [*stages, Stage("choose", what, (*needs,))]


def pretrain_stage(
    recipe: Recipe, prepared: Stage, *, after: Stage | None = None, part: TrainingPart | None = None
) -> Stage:
    """Return the stage that trains the model of one arm and seed.

    Args:
        recipe: the recipe of one run.
        prepared: the stage that prepares the text.
        after: an earlier training stage, whose checkpoint training continues from; None to start
            from the recipe's model.
        part: the part of the training; None for all of it.
    """
    what = recipe.model_dump(mode="json", include={"masking", "sampler", "training"})
    what |= recipe.in_names
    # The sampler's draws depend on the order of the objectives. The hash sorts the keys of dicts,
    # so the order is added as a list.
    what["arms"] = list(recipe.objectives)
    if recipe.objectives and sampler(recipe.sampling, list(recipe.objectives)).every:
        # The sampler tests objectives on held-out rows that evaluations do not use (probes), so the
        # number of evaluated rows affects training.
        what["evaluated_rows"] = recipe.evaluation.rows
    if len(recipe.corpus.sources) > 1:
        # The weights of a mix affect the batches but not the prepared rows.
        what["corpus"] = recipe.corpus.model_dump(mode="json", include={"source", "temperature"})
    starts = [start for each in recipe.trained_by.values() for start in each.starts]
    if starts:
        what["starts_content"] = {start: start_fingerprint(start) for start in starts}
    if part is not None:
        what["part"] = part._asdict()
    if recipe.training.chooses:
        # Evaluations choose the weights.
        what["chosen"] = {
            "eval_every": recipe.training.eval_every,
            "masks": list(recipe.evaluation.masks),
            "ratio": recipe.evaluation.ratios[0],
            "rows": recipe.evaluation.rows,
        }
    # These settings do not affect the weights, so they are not part of the name.
    how = {key: what["training"].pop(key) for key in TrainingSettings.that_change(*UNNAMED)}
    how["evaluation"] = recipe.evaluation.model_dump(mode="json")
    return _stage_on("pretrain", recipe, what, prepared, after, how)


def learn_stage(recipe: Recipe, task: str, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """Return the stage that learns the masking policy of one arm and seed.

    Args:
        recipe: the recipe of one run.
        task: the spec of the task to learn from.
        prepared: a stage that prepares a text and provides the tokenizer.
        after: an earlier training stage, for whose checkpoint the policy is learned; None to learn
            the policy for the recipe's model.
    """
    assert recipe.learning, "only recipes with a learning section have a learn stage"
    what = recipe.unlearned().model_dump(mode="json", include={"corpus"})
    what["objective"] = recipe.in_names["objective"]
    learning = recipe.learning.model_dump(mode="json")
    training = recipe.training.model_dump(mode="json")
    read = {"seed"}
    how: Plain = {}
    # Only the settings of the chosen method are used.
    if recipe.learning.method == "meta":
        del learning["supervised"]
        read |= {*OF_THE_MODEL}
        what["max_length"] = recipe.finetune.max_length
    else:
        del learning["meta"]
        own = learning["supervised"]["training"]
        # As in ``pretrain_stage``.
        unnamed = TrainingSettings.that_change(*UNNAMED)
        how["learning"] = {"supervised": {"training": {key: own.pop(key) for key in unnamed}}}
    what |= {
        "training": {key: training[key] for key in training if key in read},
        "learning": learning,
        "task": task,
        "task_content": load_task(task).fingerprint,
        "corpus_content": corpus_fingerprint(recipe.corpus),
    }
    if recipe.learning.policy.pretrained:
        what["policy_content"] = start_fingerprint(recipe.learning.policy.pretrained)
    return _stage_on("learn", recipe, what, prepared, after, how)


def recipe_of(stage: Stage, **more: object) -> Recipe:
    """Rebuild the recipe of a stage that trains a model or learns a policy.

    Args:
        stage: a stage of kind "pretrain" or "learn".
        more: additional sections of the recipe.
    """
    parts = {key: value for key, value in stage.what.items() if key in Recipe.model_fields}
    parts["objective"] = stage.what.get("objectives") or stage.what["objective"]
    how = {key: value for key, value in stage.how.items() if key != "card"}
    if "evaluation" in how:
        parts["evaluation"] = how.pop("evaluation")
    if "learning" in how:
        parts["learning"] = nest(applied(layer(parts["learning"]), layer(how.pop("learning"))))
    parts["training"] = how | stage.what["training"]
    if "model" in parts:
        parts["model"] = ModelSettings.from_name(parts["model"])
    return Recipe.model_validate(parts | more)


def evaluate_stage(
    recipe: Recipe, prepared: Stage, pretrained: Stage | None, *, apart: bool = False
) -> Stage:
    """Return the stage that evaluates a checkpoint on held-out rows, without fine-tuning.

    Args:
        recipe: the recipe of one run.
        prepared: the stage that prepares the held-out rows.
        pretrained: the stage that trains the checkpoint; None to evaluate the recipe's model.
        apart: whether to read only documents that choose no state (``rows.is_dev``).
    """
    settings = recipe.evaluation
    contents, of_documents = _measures(settings)
    what: Plain = {"evaluation": settings.model_dump(mode="json"), "content": contents}
    if apart:
        what["documents"] = "verdict"
    how: Plain = {}
    # The text is part of the name through its prepared rows. Rows of Python may have been moved
    # since these were prepared, so where the text is now is not read from their folder.
    if of_documents:
        how = {key: prepared.what[key] for key in ("corpus", "corpus_content")}
    return _stage_on("evaluate", recipe, what, prepared, pretrained, how)


@cache
def _measures(settings: EvaluationSettings) -> tuple[dict[str, str], bool]:
    """Return hashes of the measures that an evaluation names, and whether one of them reads the
    documents of held-out text. They are loaded once for all runs.
    """
    measures = load_measures(settings)
    contents = {name: measure.content() for name, measure in measures.items()}
    return contents, reads_documents(measures.values())


def finetune_stage(
    recipe: Recipe, task: str, content: str, *, prepared: Stage, pretrained: Stage | None
) -> Stage:
    """Return the stage that fine-tunes a checkpoint on a task, once per fine-tuning seed.

    Args:
        recipe: the recipe of one run.
        task: the spec of the task.
        content: a hash of the task's rows.
        prepared: a stage that prepares a text and provides the tokenizer.
        pretrained: the stage that trains the checkpoint; None to fine-tune the recipe's model,
            initialised with the run's seed.
    """
    # Fine-tuning seeds depend on the run's seed. They are equal for both runs of a pair and differ
    # between pairs. If all pairs had the same fine-tuning seeds, the luck of these seeds alone
    # could decide a contrast.
    what: Plain = {
        "task": task,
        "task_content": content,
        "finetune": recipe.finetune.model_dump(mode="json"),
        "seed": recipe.training.seed,
    }
    if pretrained is None:
        what |= {"length": recipe.links()[0].corpus.length, "kind": recipe.kind}
    return _stage_on("finetune", recipe, what, prepared, pretrained)


def tune_stage(
    of: Stage, settings: FinetuneSettings, seed: int, *, trials: Iterable[Stage] = ()
) -> Stage:
    """Return the stage of one run of a stage of kind "finetune".

    Args:
        of: the stage of kind "finetune".
        settings: the settings of the run.
        seed: the fine-tuning seed.
        trials: the runs that try learning rates. The settings of the best of them are used.
    """
    alone = {"seeds", "search_rate"}
    run = {"finetune": settings.model_dump(mode="json", exclude=alone), "seed": seed}
    return Stage("tune", of.what | run, (*of.needs, *named(trials)), of.how)


def finetune_alone(model: str, task: Task, spec: str, settings: FinetuneSettings) -> Stage:
    """Return the stage of ``maskwise finetune``, which needs no other stage.

    Args:
        model: the folder or hub id of the checkpoint.
        task: the task.
        spec: its spec.
        settings: the settings. The number of seeds is not part of the name.
    """
    what: Plain = {
        "task_content": task.fingerprint,
        "finetune": settings.model_dump(mode="json", exclude={"seeds"}),
        "model_content": content_of_model(model),
    }
    what |= _code(spec)
    return Stage("finetune", what, how={"task": spec, "checkpoint": model, "checkpoints": True})


def content_of_model(model: str) -> str:
    """Return a hash of a checkpoint; for a hub id that is not here, the id itself."""
    # Files below the folder may be results of fine-tuning.
    inside = sorted(Path(resolve_start(model)).glob("*"))
    files = {path.name: path for path in inside if path.is_file()}
    return _hash_of(files) if files else model


def overlap_stage(recipe: Recipe, task: str, content: str) -> Stage:
    """Return the stage that searches a training corpus for the test items of a task."""
    # The search reads documents, so the settings of rows do not matter.
    parts = {"source", "text_field", "text_per", "limit", "held_out", "group_field", "tokens"}
    corpus = recipe.corpus.text.model_dump(mode="json", include=parts)
    what = {
        "corpus": corpus,
        "corpus_content": corpus_fingerprint(recipe.corpus),
        "task": task,
        "task_content": content,
    }
    return Stage("overlap", what)


def _stage_on(
    kind: str,
    recipe: Recipe,
    what: Plain,
    prepared: Stage,
    trained: Stage | None,
    how: Plain | None = None,
) -> Stage:
    """Build a stage that uses the checkpoint of ``trained``, or the recipe's model if None."""
    what |= _code([what, *recipe.model.changes])
    # Only training stages depend on the adapter.
    adapter: Plain = {}
    if kind == "pretrain" and recipe.model.adapter:
        adapter = {"adapter": recipe.model.adapter}
    if trained is not None:
        if adapter:
            what["model"] = adapter
        return Stage(kind, what, (prepared.name, trained.name), how or {})
    name = recipe.model.pretrained
    what["model"] = recipe.model.named() | adapter
    what["model_content"] = start_fingerprint(name) if name else None
    return Stage(kind, what, (prepared.name,), how or {})


def _code(settings: object) -> Plain:
    """Return what a name has of the plug-ins that settings name; nothing without plug-ins.

    What an edited plug-in would do is not known from what it did before.
    """
    code = code_of(settings)
    return {"plug_ins": code} if code else {}


# Content
# ---------------------------------------------------------------------------------------------


def corpus_fingerprint(corpus: CorpusSettings) -> str | list[str]:
    """Return a hash of a corpus. A mix has one for each source, a stream one for each shard."""
    if corpus.stream:
        shards = chain.from_iterable(corpus.shards().values())
        return [f"{shard.name} {shard.fingerprint()}" for shard in shards]
    contents = [fingerprint(source) for source in corpus.sources]
    if len(contents) == 1:
        return contents[0]
    return contents


def require_same_text(what: Mapping[str, Any]) -> None:
    """Raise an error if a text has changed since the stage that reads it was planned.

    The result would be that of another text than the name of the stage says, and runs of one study
    would have different texts. A process hashes a file once, unless its size or modification time
    changes.

    Args:
        what: a mapping with the corpus and its hash, such as ``Stage.what``, and hashes of what
            changes of the tokenizer read; if it has no hash, nothing is checked.
    """
    if "corpus_content" not in what:
        return
    corpus = CorpusSettings(**what["corpus"])
    before = what["corpus_content"]
    if corpus.stream:
        changed = [corpus.title] if corpus_fingerprint(corpus) != before else []
    else:
        contents = zip(corpus.sources, [before] if isinstance(before, str) else before)
        # If a file is missing, the code that reads it says so.
        changed = [
            source
            for source, content in contents
            if source_path(source).exists() and fingerprint(source) != content
        ]
    others = what.get("changes_content", {})
    changed += [source for source, content in others.items() if fingerprint(source) != content]
    if changed:
        raise changed_since(" and ".join(changed))


def changed_since(name: str) -> MaskwiseError:
    """Return the error for a file that was edited while a study ran."""
    return MaskwiseError(
        f"{name} has changed since this command began",
        got="other content",
        allowed="the content with which it began",
        do="restore the file, and run the same command again; or run it in a new folder",
    )


def fingerprint(source: str) -> str:
    """Return a hash of a file, a folder or bundled data; for a hub id, the id itself."""
    path = source_path(source)
    if not path.exists():
        return source
    found = look_in(path, TEXTS)
    # Python writes bytecode into folders of source code, which is not read.
    if found.source and path.is_dir():
        return _hash_of(found.read)
    return _hash(path, ("*",))


def start_fingerprint(name: str, files: tuple[str, ...] = ("*",)) -> str:
    """Return a hash of the files of a model or tokenizer; for a hub id, the id itself."""
    path = Path(resolve_start(name))
    return _hash(path, files) if path.exists() else name


def _hash(path: Path, patterns: tuple[str, ...]) -> str:
    files = {"": path}
    if path.is_dir():
        inside = sorted(set(chain.from_iterable(map(path.rglob, patterns))))
        files = {str(file.relative_to(path)): file for file in inside if file.is_file()}
    return _hash_of(files)


def _hash_of(files: Mapping[str, Path]) -> str:
    content = hashlib.sha256()
    for name, file in files.items():
        # If a file of a folder is renamed, the hash changes, too.
        # The system may have names of files that are not UTF-8.
        content.update(name.encode("utf-8", "surrogateescape"))
        facts = file.stat()
        content.update(_bytes_of(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return content.hexdigest()


@cache
def _bytes_of(file: Path, size: int, changed: int) -> bytes:
    """Hash a file. If its size or modification time changes, the cached hash is not used."""
    return bytes.fromhex(file_hash(file))
