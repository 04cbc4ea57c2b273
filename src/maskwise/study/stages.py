"""Stages: the pieces of work of a study, each in a folder named by the hash of all that it depends
on.

Nothing is run twice: a stage whose folder holds ``done.json`` is finished, and a change of one
character of its corpus or of one setting gives it another name. ``done.json`` is written last.
``work`` does the work.

    prepare    corpus + tokenizer settings (or another prepare's tokenizer) → tokenizer, training and held-out rows
    pretrain   prepare + model (or another pretrain) + masking + training settings → checkpoint, metrics
    learn      prepare + model (or another pretrain) + task + learning settings → a masking policy, by which a text is
               then prepared
    evaluate   prepare + pretrain (or the start) + what to measure → held-out losses and the like: asking for more
               never trains again
    finetune   pretrain (or the start) + task + settings → scores, one per fine-tuning seed
    overlap    corpus + task → how many test items stand in the corpus
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
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
from maskwise.training.engine import fast_bf16

DONE, STAGE = "done.json", "stage.json"

_CHANGE_NO_WEIGHT = (
    "log_every",
    "eval_every",
    "save_every",
    "keep",
    "keep_best",
    "on_nan",
    "trackers",
    "workers",
)
"""Settings of training that are no part of a stage's name. A stage that was finished with one
``on_nan`` either met nothing that is not finite, and is the same with every other, or could not be
finished with ``stop``.
"""


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

    kind: str
    what: Plain
    needs: tuple[str, ...] = ()
    how: Plain = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    @cached_property
    def name(self) -> str:
        """``KIND-HASH``: the folder's name."""
        text = json.dumps([self.kind, self.what, self.needs, *_numerics()], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def folder(self, stages: Path) -> Path:
        """The stage's folder, in the folder of all stages."""
        return stages / self.name

    def result(self, stages: Path) -> Plain | None:
        """What the stage measured; None while it is not finished, or where its file is damaged."""
        result = read_json(self.folder(stages) / DONE)
        return result if result and "seconds" in result else None

    def damage(self, stages: Path) -> str | None:
        """What is wrong with what later stages read of a finished one; None where nothing is.

        Cost: its files are read, about a second for a gigabyte.
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


COMPUTED = "4"
"""Raised where the same settings come to compute something else; 2: held-out loss, several labels;
3: macro F1 of words that are cut off, the steps of rates that are tried; 4: labels that train
    lacks, rows of probes (CHANGELOG).
"""


@cache
def _numerics() -> tuple[str, ...]:
    """What the same settings compute differently with: a study that goes on elsewhere must not mix
    runs unseen.
    """
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")]
    return (__version__, COMPUTED, *libraries, "bf16" if fast_bf16() else "fp32")


def prepare_stage(
    recipe: Recipe, *, after: Stage | None = None, learned: Stage | None = None
) -> Stage:
    """The corpus of a recipe as rows.

    Args:
        after: the text whose tokenizer is taken; it is returned itself if the text is the same.
        learned: the learning of the policy that scores this text.
    """
    unsaid = () if recipe.corpus.stream else ("stream", "shuffle", "repeat")
    corpus = recipe.corpus.text.model_dump(mode="json", exclude={"temperature", *unsaid})
    corpus = _without_default(corpus)
    what: Plain = {"corpus": corpus, "corpus_content": content_of(recipe.corpus)}
    if recipe.corpus.annotators:
        what["annotators"] = {spec: annotator(spec).version for spec in recipe.corpus.annotators}
    if after is not None:
        if learned is not None:
            return Stage("prepare", what, (after.name, learned.name))
        same = all(after.what.get(key) == value for key, value in what.items())
        return after if same else Stage("prepare", what, (after.name,))
    tokenizer = recipe.tokenizer.model_dump(mode="json") | {"name": recipe.tokenizer_name}
    content = (
        start_fingerprint(recipe.tokenizer_name, TOKENIZER_FILES) if recipe.tokenizer_name else None
    )
    return Stage("prepare", {**what, "tokenizer": tokenizer, "tokenizer_content": content})


def _finetune(recipe: Recipe) -> Plain:
    """The settings of fine-tuning; a search that is not asked for is no part of what a stage is."""
    unsaid = set() if recipe.finetune.search_rate else {"search_rate"}
    return recipe.finetune.model_dump(mode="json", exclude=unsaid)


def _without_default(corpus: Plain) -> Plain:
    """Without a setting that is newer than many finished stages, where it is as it always was."""
    return {key: value for key, value in corpus.items() if (key, value) != ("text_per", "auto")}


def tokenizer_of(first: Stage) -> str:
    """A hash of what the tokenizer of a first text depends on: losses per token compare only where
    it is the same.
    """
    what, corpus = first.what, first.what["corpus"]
    given = what["tokenizer"]["name"] and what["tokenizer_content"]
    trained = [what["tokenizer"], what["corpus_content"], corpus["text_field"], corpus["limit"]]
    return hashlib.sha256(json.dumps(given or trained, sort_keys=True).encode()).hexdigest()[:16]


def pretrain_stage(recipe: Recipe, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """One training of a recipe whose arm and seed are put in.

    Args:
        prepared: the text.
        after: the training from whose checkpoint this one goes on; None: it begins with the
            recipe's model.
    """
    parts = {"masking", "objective", "objectives", "sampler", "training"}
    # in their order
    what = recipe.model_dump(mode="json", include=parts) | {"arms": list(recipe.objectives)}
    if recipe.objectives and sampler(recipe.sampler, list(recipe.objectives)).every:
        what["evaluated_rows"] = recipe.evaluation.rows  # the sampler's probe takes other rows
    if len(recipe.corpus.sources) > 1:  # the weights of a mix, which its rows do not depend on
        what["corpus"] = recipe.corpus.model_dump(mode="json", include={"source", "temperature"})
    how = {key: what["training"].pop(key) for key in _CHANGE_NO_WEIGHT}
    how["evaluation"] = recipe.evaluation.model_dump(mode="json")
    if after is not None:
        return Stage("pretrain", what, (prepared.name, after.name), how)
    return Stage("pretrain", what | _start(recipe), (prepared.name,), how)


def learn_stage(recipe: Recipe, task: str, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """The learning of a policy, for a recipe whose arm and seed are put in.

    Args:
        task: what it is learned from.
        prepared: a text, whose tokenizer is taken.
        after: the training whose checkpoint the policy is to help; None: the recipe's model.
    """
    what = recipe.unlearned().model_dump(
        mode="json", include={"learning", "objective", "training", "corpus"}
    )
    what |= {"task": task, "task_content": load_task(task).fingerprint}
    what |= {"corpus_content": content_of(recipe.corpus), "max_length": recipe.finetune.max_length}
    if recipe.learning and (encoder := recipe.learning.policy.pretrained):
        what["policy_content"] = start_fingerprint(encoder)
    for key in _CHANGE_NO_WEIGHT:
        del what["training"][key]
    if after is not None:
        return Stage("learn", what, (prepared.name, after.name))
    return Stage("learn", what | _start(recipe), (prepared.name,))


def trained_recipe(stage: Stage) -> Recipe:
    """The typed settings of a pretrain stage: a recipe of which only the parts that train a model
    are set.
    """
    parts = {key: value for key, value in stage.what.items() if key in Recipe.model_fields}
    training = {key: stage.how[key] for key in _CHANGE_NO_WEIGHT} | stage.what["training"]
    return Recipe.model_validate(
        {**parts, "training": training, "evaluation": stage.how["evaluation"]}
    )


def evaluate_stage(recipe: Recipe, prepared: Stage, pretrained: Stage | None) -> Stage:
    """What is measured of a checkpoint without fine-tuning, on the held-out rows of ``prepared``.

    ``pretrained=None``: the start as it is.
    """
    what = {
        "evaluation": recipe.evaluation.model_dump(mode="json"),
        "content": _sets_content(recipe.evaluation),
    }
    if pretrained is not None:
        return Stage("evaluate", what, (prepared.name, pretrained.name))
    return Stage("evaluate", what | _start(recipe), (prepared.name,))


@cache
def _sets_content(settings: EvaluationSettings) -> dict[str, str]:
    """What the files of an evaluation hold, by name; read once however many runs are judged by
    them.
    """
    return {name: items.content() for name, items in load_sets(settings).items()}


def finetune_stage(
    recipe: Recipe, task: str, content: str, *, prepared: Stage, pretrained: Stage | None
) -> Stage:
    """All fine-tunings of one checkpoint on one task, whose rows have the hash ``content``.

    ``pretrained=None``: the start of pre-training, as the run's seed makes it.
    """
    what = {"task": task, "task_content": content, "finetune": _finetune(recipe)}
    if pretrained is not None:
        return Stage("finetune", what, (prepared.name, pretrained.name))
    start = _start(recipe) | {
        "length": recipe.links()[0].corpus.length,
        "seed": recipe.training.seed,
        "kind": recipe.kind,
    }
    return Stage("finetune", what | start, (prepared.name,))


def overlap_stage(recipe: Recipe, task: str, content: str) -> Stage:
    """Whether the corpus of a training holds the test items of a task."""
    kept = {"source", "text_field", "text_per", "limit"}
    corpus = _without_default(recipe.corpus.text.model_dump(mode="json", include=kept))
    what = {"corpus": corpus, "corpus_content": content_of(recipe.corpus)}
    return Stage("overlap", {**what, "task": task, "task_content": content})


def _start(recipe: Recipe) -> Plain:
    """The model that a first training begins with, and the hash of its files."""
    name = recipe.model.pretrained
    return {
        "model": recipe.model.model_dump(mode="json"),
        "model_content": start_fingerprint(name) if name else None,
    }


def content_of(corpus: CorpusSettings) -> str | list[str]:
    """The ``fingerprint`` of a corpus, or of each source of a mix; of a stream those of its shards."""
    if corpus.stream:
        return [
            f"{shard.name} {shard.fingerprint()}"
            for shards in corpus.shards().values()
            for shard in shards
        ]
    contents = [fingerprint(source) for source in corpus.sources]
    return contents[0] if len(contents) == 1 else contents


def fingerprint(source: str) -> str:
    """A hash of the bytes of a corpus: a file or folder, bundled data, or a world; a hub id stands
    for itself.
    """
    if world := read_world(source):
        return world.version
    bundled = source.startswith("bundled:")
    path = bundled_path(source.removeprefix("bundled:")) if bundled else Path(source).expanduser()
    return _hash(path) if path.exists() else source


def start_fingerprint(name: str, files: tuple[str, ...] = ("*",)) -> str:
    """A hash of what a model or tokenizer holds, wherever it lies; a hub id stands for itself."""
    path = Path(resolve_start(name))
    return _hash(path, files) if path.exists() else name


def _hash(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    digest = hashlib.sha256()
    inside = sorted({p for pattern in patterns for p in path.rglob(pattern) if p.is_file()})
    for file in inside if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path) if path.is_dir() else "").encode())
        facts = file.stat()
        digest.update(_bytes_of(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


@cache
def _bytes_of(file: Path, size: int, changed: int) -> bytes:
    """The hash of a file, read once however many runs stand on it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
