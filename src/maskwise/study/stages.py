"""Stages: the steps of a study, each in a folder named by a hash of everything it depends on.

Nothing runs twice: a stage is finished if its folder holds ``done.json``, which is written last. A
change in one setting, or in one character of its corpus, gives a stage a different name. The work
of stages is in ``work``.

    prepare    corpus + tokenizer settings (or the tokenizer of an earlier prepare) → training and
               held-out rows
    pretrain   prepare + model (or an earlier pretrain) + masking + training → checkpoint, metrics
    learn      prepare + model (or an earlier pretrain) + task + learning → a masking policy, which
               scores the text of a later prepare
    evaluate   prepare + pretrain (or the start) + measures → held-out losses and other measures
    finetune   pretrain (or the start) + task + settings → scores, one per fine-tuning seed
    overlap    corpus + task → how many test items are in the corpus
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from maskwise.annotate.registry import annotator
from maskwise.devices import fast_bf16
from maskwise.evaluation import EvaluationSettings, load_sets
from maskwise.folders import damage, file_hash, read_json
from maskwise.recipe import Recipe, with_former, without_former
from maskwise.recipe.overrides import Plain
from maskwise.samplers import sampler
from maskwise.starts import TOKENIZER_FILES, resolve_start
from maskwise.tasks import load_task
from maskwise.text import bundled_path
from maskwise.text.settings import CorpusSettings
from maskwise.text.worlds import read_world
from maskwise.training import TrainingSettings
from maskwise.training.settings import ModelSettings

DONE = "done.json"
STAGE = "stage.json"

COMPUTED = ("0.1.0", "4")
"""Version of the results, which does not change with every release. The last part is raised if a
code change makes the same settings compute something else. 2: held-out loss, several labels;
3: macro F1 of truncated words, the steps of tried learning rates; 4: labels that are missing in
train, rows of probes (CHANGELOG)."""


@cache
def _numerics() -> tuple[str, ...]:
    """List the software versions that can change results; a resumed study never mixes them."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")]
    # Matrices are multiplied in bf16 on machines where that is fast.
    precision = "bf16" if fast_bf16() else "fp32"
    return (*COMPUTED, *libraries, precision)


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        kind: prepare, pretrain, learn, evaluate, finetune or overlap.
        what: everything the result depends on: dumps of settings and hashes of files.
        needs: names of the stages that must be finished first.
        how: settings that change no weight (how often to log, what the curve shows).
    """

    # stage.json has the fields in this order.
    kind: str
    what: Plain
    needs: tuple[str, ...] = ()
    how: Plain = field(default_factory=dict)

    def __hash__(self) -> int:
        # Fields are dictionaries, which cannot be hashed; the name is a hash of them.
        return hash(self.name)

    @cached_property
    def name(self) -> str:
        """The name of the folder, ``KIND-HASH``."""
        return f"{self.kind}-{digest([self.kind, self.what, self.needs, *_numerics()])}"

    def folder(self, stages: Path) -> Path:
        """The stage's folder, in the folder of all stages."""
        return stages / self.name

    def result(self, stages: Path) -> Plain | None:
        """Read the result of a finished stage; None if its file is missing or damaged."""
        result = read_json(self.folder(stages) / DONE)
        # Every result has its seconds; a file without them is damaged.
        if result is None or "seconds" not in result:
            return None
        return result

    def damage(self, stages: Path) -> str | None:
        """Describe the damage to files that later stages read; None if there is none.

        Cost: the files are read, which takes about a second per gigabyte.
        """
        kept = {"prepare": "data", "pretrain": "checkpoint", "learn": "policy"}.get(self.kind)
        if kept is None:
            return None
        return damage(self.folder(stages) / kept)

    def as_dict(self) -> Plain:
        """Convert to plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Plain) -> Stage:
        """Restore a stage from the values of ``as_dict``."""
        return cls(**{**plain, "needs": tuple(plain["needs"])})


def named(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Return stages keyed by name, in the given order."""
    return {stage.name: stage for stage in stages}


def digest(value: object) -> str:
    """Hash plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# One function for each kind of stage. Settings that are newer than the recorded studies are left
# out of the name while they have their defaults, so that recorded stages keep their names.


def prepare_stage(
    recipe: Recipe, *, after: Stage | None = None, learned: Stage | None = None
) -> Stage:
    """Prepare the corpus of a recipe as rows.

    Args:
        after: a text whose tokenizer is used; if it is the same text, this stage is returned.
        learned: the stage that learns the policy which scores this text.
    """
    newer = set() if recipe.corpus.stream else {"stream", "shuffle", "repeat"}
    corpus = recipe.corpus.text.model_dump(mode="json", exclude={"temperature"} | newer)
    what = _corpus(recipe, corpus)
    if recipe.corpus.annotators:
        what["annotators"] = {spec: annotator(spec).version for spec in recipe.corpus.annotators}
    if after is not None:
        if learned is not None:
            return Stage("prepare", what, (after.name, learned.name))
        # The first text has a tokenizer in addition to these settings.
        if all(after.what.get(key) == value for key, value in what.items()):
            return after
        return Stage("prepare", what, (after.name,))
    name = recipe.tokenizer_name
    what["tokenizer"] = recipe.tokenizer.model_dump(mode="json") | {"name": name}
    what["tokenizer_content"] = start_fingerprint(name, TOKENIZER_FILES) if name else None
    return Stage("prepare", what)


def tokenizer_of(first: Stage) -> str:
    """Hash everything the tokenizer of a first text depends on.

    Losses per token can only be compared between texts with the same hash.
    """
    what = first.what
    corpus = what["corpus"]
    given = what["tokenizer"]["name"] and what["tokenizer_content"]
    trained = [what["tokenizer"], what["corpus_content"], corpus["text_field"], corpus["limit"]]
    return digest(given or trained)


def pretrain_stage(recipe: Recipe, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """Train the model of the recipe of one arm and seed.

    Args:
        prepared: the text.
        after: the training stage whose checkpoint it starts from; if None, the recipe's model.
    """
    parts = {"masking", "objective", "objectives", "sampler", "training"}
    what = recipe.model_dump(mode="json", include=parts)
    # JSON is sorted by key in the hash, but the order of the arms changes the draws.
    what["arms"] = list(recipe.objectives)
    if recipe.objectives and sampler(recipe.sampler, list(recipe.objectives)).every:
        # The sampler's probes read the held-out rows that are not evaluated.
        what["evaluated_rows"] = recipe.evaluation.rows
    if len(recipe.corpus.sources) > 1:
        # The weights of a mix change the batches, but not the prepared rows.
        what["corpus"] = recipe.corpus.model_dump(mode="json", include={"source", "temperature"})
    _drop_new_defaults(what["training"])
    # These settings are not part of the name, but training needs them.
    how = {key: what["training"].pop(key) for key in TrainingSettings.that_change("nothing")}
    how["evaluation"] = recipe.evaluation.model_dump(mode="json")
    return _stage_on("pretrain", recipe, what, prepared, after, how)


def learn_stage(recipe: Recipe, task: str, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """Learn a policy by the recipe of one arm and seed.

    Args:
        task: the task to learn from.
        prepared: a text whose tokenizer is used.
        after: the training stage whose checkpoint the policy masks for; if None, the recipe's
            model.
    """
    assert recipe.learning, "a task is learned from only in recipes with this section"
    parts = {"objective", "training", "corpus"}
    what = recipe.unlearned().model_dump(mode="json", include=parts)
    learning = recipe.learning.model_dump(mode="json")
    what |= {"learning": with_former(learning, "learning")}
    what |= {"task": task, "task_content": load_task(task).fingerprint}
    what |= {"corpus_content": content_of(recipe.corpus), "max_length": recipe.finetune.max_length}
    if recipe.learning.policy.pretrained:
        what["policy_content"] = start_fingerprint(recipe.learning.policy.pretrained)
    for training in (what["training"], what["learning"]["supervised"]["training"]):
        _drop_new_defaults(training)
    for key in TrainingSettings.that_change("nothing"):
        del what["training"][key]
    return _stage_on("learn", recipe, what, prepared, after)


def _drop_new_defaults(what: Plain) -> None:
    """Drop settings that are newer than recorded studies while they have their defaults."""
    for name in TrainingSettings.that_change("weights unless default"):
        if what[name] == TrainingSettings.model_fields[name].default:
            del what[name]


def recipe_of(stage: Stage, **more: object) -> Recipe:
    """Restore the recipe of a stage that trains a model or learns a policy.

    Args:
        more: further parts of the recipe.
    """
    parts = {key: value for key, value in stage.what.items() if key in Recipe.model_fields}
    how = dict(stage.how)
    if "evaluation" in how:
        parts["evaluation"] = how.pop("evaluation")
    parts["training"] = how | stage.what["training"]
    if "model" in parts:
        parts["model"] = ModelSettings.from_name(parts["model"])
    if "learning" in parts:
        parts["learning"] = without_former(parts["learning"])
    return Recipe.model_validate(parts | more)


def evaluate_stage(recipe: Recipe, prepared: Stage, pretrained: Stage | None) -> Stage:
    """Evaluate a checkpoint without fine-tuning on the held-out rows of ``prepared``.

    Args:
        pretrained: the training stage; if None, the start is evaluated.
    """
    settings = recipe.evaluation
    what = {"evaluation": settings.model_dump(mode="json"), "content": _sets_content(settings)}
    return _stage_on("evaluate", recipe, what, prepared, pretrained)


@cache
def _sets_content(settings: EvaluationSettings) -> dict[str, str]:
    """Hash the files of an evaluation, once for all runs."""
    return {name: items.content() for name, items in load_sets(settings).items()}


def finetune_stage(
    recipe: Recipe, task: str, content: str, *, prepared: Stage, pretrained: Stage | None
) -> Stage:
    """Fine-tune a checkpoint on a task, with each of the fine-tuning seeds.

    Args:
        content: the hash of the task's rows.
        pretrained: the training stage; if None, the start is used, initialised with the run's seed.
    """
    newer = set() if recipe.finetune.search_rate else {"search_rate"}
    settings = recipe.finetune.model_dump(mode="json", exclude=newer)
    named = with_former(settings, "finetune")
    what: Plain = {"task": task, "task_content": content, "finetune": named}
    # The runs of a pair have the same fine-tuning seeds, and each pair has its own: with the same
    # seeds in all pairs, an arm could win by their luck alone.
    seed = recipe.training.seed
    if pretrained is None:
        length = recipe.links()[0].corpus.length
        what |= {"length": length, "seed": seed, "kind": recipe.kind}
    elif seed:
        # Left out for seed 0, whose stages of earlier versions remain valid.
        what["seed"] = seed
    return _stage_on("finetune", recipe, what, prepared, pretrained)


def overlap_stage(recipe: Recipe, task: str, content: str) -> Stage:
    """Search a training corpus for the test items of a task."""
    # An overlap depends on the documents and not on the rows.
    parts = {"source", "text_field", "text_per", "limit"}
    corpus = recipe.corpus.text.model_dump(mode="json", include=parts)
    return Stage("overlap", _corpus(recipe, corpus) | {"task": task, "task_content": content})


def _corpus(recipe: Recipe, corpus: Plain) -> Plain:
    # This setting is newer than recorded studies.
    if corpus["text_per"] == "auto":
        del corpus["text_per"]
    return {"corpus": corpus, "corpus_content": content_of(recipe.corpus)}


def _stage_on(
    kind: str,
    recipe: Recipe,
    what: Plain,
    prepared: Stage,
    trained: Stage | None,
    how: Plain | None = None,
) -> Stage:
    """Build a stage that uses the checkpoint of ``trained``, or, without it, the recipe's model."""
    # Adapters are newer than recorded studies, and only training stages depend on them.
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


# Content
# ---------------------------------------------------------------------------------------------


def content_of(corpus: CorpusSettings) -> str | list[str]:
    """Hash a corpus: one hash, or one for each source of a mix, or for each shard of a stream."""
    if corpus.stream:
        shards = chain.from_iterable(corpus.shards().values())
        return [f"{shard.name} {shard.fingerprint()}" for shard in shards]
    contents = [fingerprint(source) for source in corpus.sources]
    if len(contents) == 1:
        return contents[0]
    return contents


def fingerprint(source: str) -> str:
    """Hash the bytes of a file, a folder or bundled data; for a hub id, return the id itself."""
    world = read_world(source)
    # A world is generated from its settings, so its version serves as its hash.
    if world:
        return world.version
    path = Path(source).expanduser()
    if source.startswith("bundled:"):
        path = bundled_path(source.removeprefix("bundled:"))
    return _hash(path, ("*",)) if path.exists() else source


def start_fingerprint(name: str, files: tuple[str, ...] = ("*",)) -> str:
    """Hash the files of a model or tokenizer; for a hub id, return the id itself."""
    path = Path(resolve_start(name))
    return _hash(path, files) if path.exists() else name


def _hash(path: Path, patterns: tuple[str, ...]) -> str:
    files = {"": path}
    if path.is_dir():
        inside = sorted(set(chain.from_iterable(map(path.rglob, patterns))))
        files = {str(file.relative_to(path)): file for file in inside if file.is_file()}
    content = hashlib.sha256()
    for name, file in files.items():
        # Renaming a file inside a folder changes the content of the folder.
        content.update(name.encode())
        facts = file.stat()
        content.update(_bytes_of(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return content.hexdigest()


@cache
def _bytes_of(file: Path, size: int, changed: int) -> bytes:
    """Hash a file once for all runs; its size and modification time are part of the cache key."""
    return bytes.fromhex(file_hash(file))
