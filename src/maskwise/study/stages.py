"""Stages: the pieces of work of a study, each in a folder named by the hash of all that it depends
on.

Nothing runs twice: a stage whose folder holds ``done.json`` is finished, and a change of one
character of its corpus or of one setting gives it another name. ``done.json`` is written last.
``work`` does the work.

    prepare    corpus + tokenizer settings (or the tokenizer of another prepare) → training and
               held-out rows
    pretrain   prepare + model (or another pretrain) + masking + training → checkpoint, metrics
    learn      prepare + model (or another pretrain) + task + learning → a masking policy, which
               scores the text of a later prepare
    evaluate   prepare + pretrain (or the start) + measures → held-out losses and the like
    finetune   pretrain (or the start) + task + settings → scores, one per fine-tuning seed
    overlap    corpus + task → how many test items stand in the corpus
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from maskwise import __version__
from maskwise.annotate.registry import annotator
from maskwise.evaluation import EvaluationSettings, load_sets
from maskwise.folders import damage, read_json
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.samplers import sampler
from maskwise.starts import TOKENIZER_FILES, resolve_start
from maskwise.tasks import load_task
from maskwise.text import bundled_path
from maskwise.text.settings import CorpusSettings
from maskwise.text.worlds import read_world
from maskwise.training import TrainingSettings
from maskwise.training.engine import fast_bf16

DONE = "done.json"
STAGE = "stage.json"

COMPUTED = "4"
"""Raised where the same settings come to compute something else; 2: held-out loss, several labels;
3: macro F1 of words that are cut off, the steps of rates that are tried; 4: labels that train
lacks, rows of probes (CHANGELOG).
"""


@cache
def _numerics() -> tuple[str, ...]:
    """Software versions that can change results; a resumed study never mixes them."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")]
    return (__version__, COMPUTED, *libraries, "bf16" if fast_bf16() else "fp32")


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Attributes:
        kind: prepare, pretrain, learn, evaluate, finetune or overlap.
        what: all that the result depends on, and nothing else: dumps of settings, and hashes of
            files.
        needs: names of the stages that must be finished before.
        how: settings that change no weight (how often to log, what the curve shows).
    """

    # The order of these fields is that of the stage's JSON.
    kind: str
    what: Plain
    needs: tuple[str, ...] = ()
    how: Plain = field(default_factory=dict)

    def __hash__(self) -> int:
        # Two stages with one name are one stage.
        return hash(self.name)

    @cached_property
    def name(self) -> str:
        """``KIND-HASH``: the folder's name."""
        return f"{self.kind}-{_digest([self.kind, self.what, self.needs, *_numerics()])}"

    def folder(self, stages: Path) -> Path:
        """The stage's folder, in the folder of all stages."""
        return stages / self.name

    def result(self, stages: Path) -> Plain | None:
        """The measurements of a finished stage; None where its file is missing or damaged."""
        result = read_json(self.folder(stages) / DONE)
        return result if result and "seconds" in result else None

    def damage(self, stages: Path) -> str | None:
        """What is wrong with the files that later stages read; None where nothing is.

        Cost: the files are read, about a second for a gigabyte.
        """
        kept = {"prepare": "data", "pretrain": "checkpoint", "learn": "policy"}.get(self.kind)
        return damage(self.folder(stages) / kept) if kept else None

    def as_dict(self) -> Plain:
        """The stage as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Plain) -> Stage:
        """The stage that ``as_dict`` was called on."""
        return cls(**{**plain, "needs": tuple(plain["needs"])})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# One function for each kind of stage. A setting that is newer than recorded studies is left out of
# the name while it has its default, so that their stages keep their names.


def prepare_stage(
    recipe: Recipe, *, after: Stage | None = None, learned: Stage | None = None
) -> Stage:
    """The corpus of a recipe as rows.

    Args:
        after: the text whose tokenizer is taken; it is returned itself if the text is the same.
        learned: the learning of the policy that scores this text.
    """
    newer = set() if recipe.corpus.stream else {"stream", "shuffle", "repeat"}
    corpus = recipe.corpus.text.model_dump(mode="json", exclude={"temperature"} | newer)
    what = _corpus(recipe, corpus)
    if recipe.corpus.annotators:
        what["annotators"] = {spec: annotator(spec).version for spec in recipe.corpus.annotators}
    if after is not None:
        if learned is not None:
            return Stage("prepare", what, (after.name, learned.name))
        same = all(after.what.get(key) == value for key, value in what.items())
        return after if same else Stage("prepare", what, (after.name,))
    name = recipe.tokenizer_name
    what["tokenizer"] = recipe.tokenizer.model_dump(mode="json") | {"name": name}
    what["tokenizer_content"] = start_fingerprint(name, TOKENIZER_FILES) if name else None
    return Stage("prepare", what)


def tokenizer_of(first: Stage) -> str:
    """A hash of what the tokenizer of a first text depends on: losses per token compare only where
    it is the same.
    """
    what = first.what
    corpus = first.what["corpus"]
    given = what["tokenizer"]["name"] and what["tokenizer_content"]
    trained = [what["tokenizer"], what["corpus_content"], corpus["text_field"], corpus["limit"]]
    return _digest(given or trained)


def pretrain_stage(recipe: Recipe, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """One training of a recipe whose arm and seed are put in.

    Args:
        prepared: the text.
        after: the training whose checkpoint it starts from; None: it starts from the recipe's
            model.
    """
    parts = {"masking", "objective", "objectives", "sampler", "training"}
    what = recipe.model_dump(mode="json", include=parts)
    what["arms"] = list(recipe.objectives)  # their order counts
    if recipe.objectives and sampler(recipe.sampler, list(recipe.objectives)).every:
        what["evaluated_rows"] = recipe.evaluation.rows  # the sampler's probe takes other rows
    if len(recipe.corpus.sources) > 1:  # the weights of a mix, which its rows do not depend on
        what["corpus"] = recipe.corpus.model_dump(mode="json", include={"source", "temperature"})
    # Kept beside the name, so that the training still logs as often as asked.
    how = {key: what["training"].pop(key) for key in TrainingSettings.that_change("nothing")}
    how["evaluation"] = recipe.evaluation.model_dump(mode="json")
    return _stage_on("pretrain", recipe, what, prepared, after, how)


def learn_stage(recipe: Recipe, task: str, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """The learning of a policy, for a recipe whose arm and seed are put in.

    Args:
        task: what it is learned from.
        prepared: a text, whose tokenizer is taken.
        after: the training whose checkpoint the policy is to help; None: the recipe's model.
    """
    parts = {"learning", "objective", "training", "corpus"}
    what = recipe.unlearned().model_dump(mode="json", include=parts)
    what |= {"task": task, "task_content": load_task(task).fingerprint}
    what |= {"corpus_content": content_of(recipe.corpus), "max_length": recipe.finetune.max_length}
    encoder = recipe.learning.policy.pretrained if recipe.learning else None
    if encoder:
        what["policy_content"] = start_fingerprint(encoder)
    for key in TrainingSettings.that_change("nothing"):
        del what["training"][key]
    return _stage_on("learn", recipe, what, prepared, after)


def trained_recipe(stage: Stage) -> Recipe:
    """The settings of a pretrain stage: a recipe with only the parts that train a model."""
    parts = {key: value for key, value in stage.what.items() if key in Recipe.model_fields}
    how = dict(stage.how)
    evaluation = how.pop("evaluation")
    training = how | stage.what["training"]
    return Recipe.model_validate({**parts, "training": training, "evaluation": evaluation})


def evaluate_stage(recipe: Recipe, prepared: Stage, pretrained: Stage | None) -> Stage:
    """The measures of a checkpoint without fine-tuning, on the held-out rows of ``prepared``.

    ``pretrained=None``: the start as it is.
    """
    settings = recipe.evaluation
    what = {"evaluation": settings.model_dump(mode="json"), "content": _sets_content(settings)}
    return _stage_on("evaluate", recipe, what, prepared, pretrained)


@cache
def _sets_content(settings: EvaluationSettings) -> dict[str, str]:
    """The content of an evaluation's files by name, read once for all runs."""
    return {name: items.content() for name, items in load_sets(settings).items()}


def finetune_stage(
    recipe: Recipe, task: str, content: str, *, prepared: Stage, pretrained: Stage | None
) -> Stage:
    """All fine-tunings of one checkpoint on one task, whose rows have the hash ``content``.

    ``pretrained=None``: the start of pre-training, as the run's seed makes it.
    """
    newer = set() if recipe.finetune.search_rate else {"search_rate"}
    settings = recipe.finetune.model_dump(mode="json", exclude=newer)
    what: Plain = {"task": task, "task_content": content, "finetune": settings}
    if pretrained is None:
        length = recipe.links()[0].corpus.length
        what |= {"length": length, "seed": recipe.training.seed, "kind": recipe.kind}
    return _stage_on("finetune", recipe, what, prepared, pretrained)


def overlap_stage(recipe: Recipe, task: str, content: str) -> Stage:
    """Whether the corpus of a training holds the test items of a task."""
    # Rows do not matter for an overlap, only the documents.
    parts = {"source", "text_field", "text_per", "limit"}
    corpus = recipe.corpus.text.model_dump(mode="json", include=parts)
    return Stage("overlap", _corpus(recipe, corpus) | {"task": task, "task_content": content})


def _corpus(recipe: Recipe, corpus: Plain) -> Plain:
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
    """A stage on the checkpoint of a training, or on the model that the recipe starts from."""
    if trained is not None:
        return Stage(kind, what, (prepared.name, trained.name), how or {})
    name = recipe.model.pretrained
    what["model"] = recipe.model.model_dump(mode="json")
    what["model_content"] = start_fingerprint(name) if name else None
    return Stage(kind, what, (prepared.name,), how or {})


# Content
# ---------------------------------------------------------------------------------------------


def content_of(corpus: CorpusSettings) -> str | list[str]:
    """The ``fingerprint`` of a corpus, or of each source of a mix; of a stream those of its
    shards.
    """
    if corpus.stream:
        shards = chain.from_iterable(corpus.shards().values())
        return [f"{shard.name} {shard.fingerprint()}" for shard in shards]
    contents = [fingerprint(source) for source in corpus.sources]
    return contents[0] if len(contents) == 1 else contents


def fingerprint(source: str) -> str:
    """A hash of the bytes of a corpus: a file or folder, bundled data, or a world; a hub id stands
    for itself.
    """
    world = read_world(source)
    # A world is made from its settings alone, so its version stands for its bytes.
    if world:
        return world.version
    path = Path(source).expanduser()
    if source.startswith("bundled:"):
        path = bundled_path(source.removeprefix("bundled:"))
    return _hash(path, ("*",)) if path.exists() else source


def start_fingerprint(name: str, files: tuple[str, ...] = ("*",)) -> str:
    """A hash of the files of a model or tokenizer; a hub id stands for itself."""
    path = Path(resolve_start(name))
    return _hash(path, files) if path.exists() else name


def _hash(path: Path, patterns: tuple[str, ...]) -> str:
    files = {"": path}
    if path.is_dir():
        inside = sorted(set(chain.from_iterable(map(path.rglob, patterns))))
        files = {str(file.relative_to(path)): file for file in inside if file.is_file()}
    digest = hashlib.sha256()
    for name, file in files.items():
        # A file that was renamed inside a folder is another content.
        digest.update(name.encode())
        facts = file.stat()
        digest.update(_bytes_of(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


@cache
def _bytes_of(file: Path, size: int, changed: int) -> bytes:
    """The hash of a file, read once for all runs."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
