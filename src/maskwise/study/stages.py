"""Stages: the pieces of work of a study, each in a folder named by the hash of all that it depends on.

Nothing is run twice: a stage whose folder holds ``done.json`` is finished, and a change of one character of
its corpus or one setting gives it another name. ``done.json`` is written last. ``work`` does the work.

    prepare    corpus + tokenizer settings (or another prepare's tokenizer) → tokenizer, training and held-out rows
    pretrain   prepare + model (or another pretrain) + masking + training settings → checkpoint, metrics
    evaluate   prepare + pretrain (or the start) + what to measure → held-out losses and the like: asking for more
               never trains again
    finetune   pretrain (or the start) + task + settings → scores, one per fine-tuning seed
    overlap    corpus + task → how many test items stand in the corpus
    time       prepare + what a pretrain is → seconds a step, on this machine
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskwise import __version__
from maskwise.annotate.registry import annotator
from maskwise.evaluation import EvaluationSettings, load_sets
from maskwise.samplers import sampler
from maskwise.starts import TOKENIZER_FILES, resolve_start
from maskwise.text import bundled_path
from maskwise.training.machine import fast_bf16

DONE = "done.json"

# Settings of training that change the time of a step.
_SPEED = ("batch_size", "accumulate", "optimizer", "precision", "freeze")

# Settings of training that change no weight, and so are no part of a stage's name.
_IRRELEVANT = ("log_every", "eval_every", "save_every", "trackers")


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Attributes:
        kind: prepare, pretrain, evaluate, finetune, overlap or time.
        what: plain values: all that the result depends on, and nothing else.
        needs: names of the stages that must be finished before.
        how: plain values that change no weight (how often to log, what the curve shows).
    """

    kind: str
    what: dict[str, Any]
    needs: tuple[str, ...] = ()
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``KIND-HASH``: the folder's name."""
        text = json.dumps([self.kind, self.what, self.needs, *_numerics()], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def folder(self, stages: Path) -> Path:
        return stages / self.name

    def result(self, stages: Path) -> dict[str, Any] | None:
        """What the stage found; None while it is not finished."""
        try:
            return json.loads((self.folder(stages) / DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Stage:
        return cls(**{**plain, "needs": tuple(plain["needs"])})


@cache
def _numerics() -> tuple[str, ...]:
    """What the same settings compute differently with: a study that goes on elsewhere must not mix runs unseen."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")]
    return (__version__, *libraries, "bf16" if fast_bf16() else "fp32")


def prepare_stage(recipe: Any, *, after: Stage | None = None) -> Stage:
    """The corpus of a recipe as rows. With the tokenizer of ``after``, if given; ``after`` if the text is the same."""
    corpus = recipe.corpus.model_dump(mode="json")
    what = {"corpus": corpus, "corpus_content": fingerprint(corpus["source"])}
    if corpus["layers"]:
        what["annotators"] = {spec: annotator(spec).version for spec in corpus["layers"]}
    if after is not None:
        same = all(after.what.get(key) == value for key, value in what.items())
        return after if same else Stage("prepare", what, (after.name,))
    tokenizer = recipe.tokenizer.model_dump(mode="json") | {"name": recipe.tokenizer_name}
    content = start_fingerprint(recipe.tokenizer_name, TOKENIZER_FILES) if recipe.tokenizer_name else None
    return Stage("prepare", {**what, "tokenizer": tokenizer, "tokenizer_content": content})


def tokenizer_of(first: Stage) -> str:
    """A hash of what the tokenizer of a first text depends on: losses per token compare only where it is the same."""
    what, corpus = first.what, first.what["corpus"]
    given = what["tokenizer"]["name"] and what["tokenizer_content"]
    trained = [what["tokenizer"], what["corpus_content"], corpus["text_field"], corpus["limit"]]
    return hashlib.sha256(json.dumps(given or trained, sort_keys=True).encode()).hexdigest()[:16]


def pretrain_stage(recipe: Any, prepared: Stage, *, after: Stage | None = None) -> Stage:
    """One training of a recipe whose arm and seed are put in; it goes on from the checkpoint of ``after``, if given."""
    raw = recipe.model_dump(mode="json", include={"masking", "training"})
    if recipe.objectives:  # left out where there are none: names of such stages stay what they were
        raw |= recipe.model_dump(mode="json", include={"objectives", "sampler"})
        raw["arms"] = list(recipe.objectives)  # a name knows no order of a dict, and shares go by it
        if sampler(recipe.sampler, raw["arms"]).every:
            raw["evaluated_rows"] = recipe.evaluation.rows  # the probe takes others
    if raw["training"]["freeze"] == "none":  # likewise
        del raw["training"]["freeze"]
    how = {key: raw["training"].pop(key) for key in _IRRELEVANT}
    how["evaluation"] = recipe.evaluation.model_dump(mode="json")
    if after is not None:
        return Stage("pretrain", raw, (prepared.name, after.name), how)
    start = recipe.model_dump(mode="json", include={"model"}) | _start_content(recipe)
    return Stage("pretrain", raw | start, (prepared.name,), how)


def evaluate_stage(recipe: Any, prepared: Stage, pretrained: Stage | None) -> Stage:
    """What is measured of a checkpoint without fine-tuning, on the held-out rows of ``prepared``.

    ``pretrained=None``: of the start as it is.
    """
    asked, content = recipe.evaluation.model_dump(mode="json"), _sets_content(recipe.evaluation)
    what = {"evaluation": asked, "content": content}
    if pretrained is not None:
        return Stage("evaluate", what, (prepared.name, pretrained.name))
    start = {"model": recipe.model.model_dump(mode="json")} | _start_content(recipe)
    return Stage("evaluate", what | start, (prepared.name,))


@cache
def _sets_content(settings: EvaluationSettings) -> dict[str, str]:
    """What the files of an evaluation hold, by name; read once however many runs are judged by them."""
    return {name: found.content() for name, found in load_sets(settings).items()}


def time_stage(recipe: Any, prepared: Stage) -> Stage:
    """A few steps of a training, for the clock: named by what changes the speed, so not by seed or learning rate."""
    like = pretrain_stage(recipe, prepared)
    training = {key: value for key, value in like.what["training"].items() if key in _SPEED}
    return Stage("time", like.what | {"training": training}, like.needs)


def finetune_stage(
    recipe: Any, task: str, content: str, *, prepared: Stage, pretrained: Stage | None
) -> Stage:
    """All fine-tunings of one checkpoint on one task, whose rows have the hash ``content``.

    ``pretrained=None``: of the start of pre-training, as the run's seed makes it.
    """
    what = {"task": task, "task_content": content, "finetune": recipe.finetune.model_dump(mode="json")}
    if pretrained is not None:
        return Stage("finetune", what, (prepared.name, pretrained.name))
    start = {
        "model": recipe.model.model_dump(mode="json"),
        "length": recipe.corpus.length,
        "seed": recipe.training.seed,
    }
    return Stage("finetune", what | start | _start_content(recipe), (prepared.name,))


def overlap_stage(recipe: Any, task: str, content: str) -> Stage:
    """Whether the corpus of a training holds the test items of a task."""
    corpus = recipe.corpus.model_dump(mode="json", include={"source", "text_field", "limit"})
    what = {"corpus": corpus, "corpus_content": fingerprint(corpus["source"])}
    return Stage("overlap", {**what, "task": task, "task_content": content})


def _start_content(recipe: Any) -> dict[str, Any]:
    start = recipe.model.pretrained
    return {"model_content": start_fingerprint(start) if start else None}


def fingerprint(source: str) -> str:
    """A hash of the bytes of a corpus: a file or folder, or bundled data; a hub id stands for itself."""
    path = (
        bundled_path(source.removeprefix("bundled:"))
        if source.startswith("bundled:")
        else Path(source).expanduser()
    )
    return _hash(path) if path.exists() else source


def start_fingerprint(name: str, files: tuple[str, ...] = ("*",)) -> str:
    """A hash of what a model or tokenizer holds, wherever it lies; a hub id stands for itself."""
    path = Path(resolve_start(name))
    return _hash(path, files) if path.exists() else name


def _hash(path: Path, files: tuple[str, ...] = ("*",)) -> str:
    digest = hashlib.sha256()
    found = sorted({p for pattern in files for p in path.rglob(pattern) if p.is_file()})
    for file in found if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path) if path.is_dir() else "").encode())
        facts = file.stat()
        digest.update(_bytes_of(file.resolve(), facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


@cache
def _bytes_of(file: Path, size: int, changed: int) -> bytes:
    """The hash of a file, read once however many runs stand on it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or not there."""
    _write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON lines, whole or not there."""
    _write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
