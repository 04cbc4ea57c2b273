"""What can be refused before any work is done: in one line now, rather than in an hour."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.evaluation import load_sets
from maskwise.masking.policies import policy
from maskwise.models import NO_HEAD, check_room, check_start, has_head, load_config, new_config
from maskwise.objectives import objective_class
from maskwise.samplers import sampler
from maskwise.study.stages import prepare_stage, tokenizer_of
from maskwise.tasks import load_task
from maskwise.text import load_tokenizer, read_documents, require_documents
from maskwise.text.layers import token_layers
from maskwise.text.rows import is_held_out
from maskwise.text.words import text_id
from maskwise.training.arms import probe_rows

CORPUS_LAYERS = ("word_ids",)
"""The layers that every prepared corpus has; more come from ``corpus.layers``."""

LOCK = ".lock"
"""In ``stages/``: held while a study runs, and the sign that the folder is one."""


def check_inputs(recipe: Any) -> list[str]:
    """Fail now rather than in an hour: all that can be known of every arm without doing the work.

    Returns:
        What is no mistake and should be known, in lines.
    """
    notes: dict[str, None] = {}
    points = recipe.study.search.points if recipe.study.search else [{}]
    arms = [recipe.arm(name, seed=0, more=point) for name in recipe.study.arms for point in points]
    for one in arms or [recipe]:
        given = one.tokenizer_name
        tokenizer = load_tokenizer(given) if given else _Untrained(one.tokenizer.vocab_size)
        if one.model.pretrained:
            config = load_config(one.model.pretrained)
            check_start(config, len(tokenizer))
            for link in one.links():
                check_room(config, link.corpus.length, what="corpus.length")
            if recipe.tasks:
                check_room(config, one.finetune.max_length, what="finetune.max_length")
            if one.links()[0].training.freeze == "none" and not has_head(one.model.pretrained):
                notes[f"{one.model.pretrained}: {NO_HEAD}"] = None
        else:
            settings = one.model.settings
            config = new_config(one.model.architecture, tokenizer, one.corpus.length, **settings)
            check_start(config, len(tokenizer))
        for link in one.links():
            _check_text(link)
            _check_rows(link)
            _check_probes(link, tokenizer if given else None)
            notes |= dict.fromkeys(link.remarks())
    load_sets(recipe.evaluation)
    _check_choices(recipe)
    named: dict[str, str] = {}
    for task in recipe.tasks:
        name = load_task(task).name
        if name in named:
            do = f'give one another name: {task.partition("(")[0]}(…, name="…")'
            raise MaskwiseError(f"two tasks are called {name!r}", got=f"{named[name]} and {task}", do=do)
        named[name] = task
    return list(notes)


def _check_choices(recipe: Any) -> None:
    """What a search, or the dropping of arms, goes by is there and can be compared."""
    search, stop = recipe.study.search, recipe.study.stop_hopeless
    by_dev = search and (search.by or ("dev" if recipe.tasks else "held-out")) == "dev"
    for task in recipe.tasks if by_dev or stop else ():
        if not load_task(task).splits["dev"]:
            who = "study.search" if by_dev else "study.stop_hopeless"
            do = "give it a dev split" + ("; or study.search.by=held-out" if by_dev and not stop else "")
            raise MaskwiseError(f"{who} goes by dev rows, and task {task} has none", do=do)
    for name in recipe.study.arms if search and not by_dev else ():
        firsts = [recipe.arm(name, seed=0, more=point).links()[0] for point in search.points]
        if len({tokenizer_of(prepare_stage(first)) for first in firsts}) > 1:
            what = "study.search by held-out loss cannot choose between tokenizers"
            why = "losses per token of different vocabularies do not compare"
            do = "name tasks, and let study.search.by be dev; or make each tokenizer an arm"
            raise MaskwiseError(f"{what}: {why}", got=f"grid {', '.join(search.points[0])}", do=do)


def _check_text(link: Any) -> None:
    """The corpus of one training can be read, and has what its policy needs."""
    corpus = link.corpus
    require_documents(read_documents(corpus.source, text_field=corpus.text_field, limit=corpus.limit))
    made = [name for spec in corpus.layers for name in token_layers(annotator(spec).layers)]
    for name in _policies(link):
        missing = [layer for layer in policy(name).layers() if layer not in (*CORPUS_LAYERS, *made)]
        if missing:
            raise MaskwiseError(
                f"policy {name} needs the layer {missing[0]!r}, and this corpus has none",
                got=f"layers {', '.join((*CORPUS_LAYERS, *made))}",
                do="name its annotator in corpus.layers (maskwise list annotators)",
            )


def _check_rows(link: Any) -> None:
    """A batch has rows enough for the twins of ``cse``, on every rank."""
    how, ranks = link.training, int(os.environ.get("WORLD_SIZE", "1"))
    for name, arm in link.objectives.items():
        rows = how.micro_rows(ranks)
        if objective_class(arm.objective).twins and (rows % 2 or rows < 4):
            what = (
                f"arm {name!r}: cse reads half of the rows twice, so training.batch_size is too small, or odd"
            )
            parts = how.accumulate * ranks
            got = f"{how.batch_size}" + (f", in {parts} parts" if parts > 1 else "")
            raise MaskwiseError(what, got=got, allowed="even parts of 4 or more")


def _check_probes(link: Any, tokenizer: Any) -> None:
    """Held-out rows enough for a sampler that learns, beside those that judge; as far as the text alone can tell."""
    if not link.objectives or not sampler(link.sampler, list(link.objectives)).every:
        return
    judging, ranks = link.evaluation.rows, int(os.environ.get("WORLD_SIZE", "1"))
    twins = any(objective_class(arm.objective).twins for arm in link.objectives.values())
    size = probe_rows(link.training.batch_size, ranks=ranks, twins=twins)
    most = most_held_out(link.corpus, tokenizer, enough=judging + size)
    if most < judging + size:
        raise MaskwiseError(
            "the text that is held out is too little for the sampler's probes", got=f"at most {most} rows",
            allowed=f"≥ {judging + size}: {judging} that judge the model, and {size}",
            do=f"raise corpus.held_out (now {link.corpus.held_out}), or lower evaluation.rows (now {judging})",
        )  # fmt: skip


def most_held_out(corpus: Any, tokenizer: Any, *, enough: int) -> int:
    """No more rows than this can be held out of a corpus, in any layout; not counted beyond ``enough``.

    Any two pieces of a document that follow each other are together longer than a row has room for. A tokenizer that
    is still to be trained (None) makes at most a token of each byte. Cost: little text is read where there is much.
    """
    room, most = max(1, corpus.length - 2), 0
    long = 16 * enough * corpus.length  # more letters than any tokenizer puts into so many rows
    for document in read_documents(corpus.source, text_field=corpus.text_field, limit=corpus.limit):
        if is_held_out(text_id(document.id), corpus.held_out):
            text = document.text[:long]
            tokens = len(text.encode()) if tokenizer is None else len(tokenizer.tokenize(text))
            most += 1 + 2 * ((tokens + 1) // (room + 1))
            if most >= enough or len(document.text) > long:
                return enough
    return most


def _policies(link: Any) -> list[str]:
    """Those of the training: one, or one for each objective that masks."""
    if not link.objectives:
        return [link.masking.policy]
    common = link.masking.model_dump()
    found = [
        objective_class(arm.objective).settings(common, arm.masking).get("policy", "token")
        for arm in link.objectives.values()
    ]
    return list(dict.fromkeys(found))


def say(notes: Iterable[str]) -> None:
    """Lines on stderr."""
    for note in notes:
        Console(stderr=True, soft_wrap=True, highlight=False).print(note, markup=False)


def check_folder(out: Path) -> None:
    """A new folder, an empty one, or one that holds a study; anything else is refused."""
    if out.exists() and not out.is_dir():
        raise MaskwiseError("--out is a file", got=str(out), do="give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "stages" / LOCK).is_file():
        found = ", ".join(sorted(p.name for p in out.iterdir())[:3])
        raise MaskwiseError(
            f"--out {out} holds something else", got=found, do="give a new folder, or that of a study"
        )


class _Untrained:
    """Stands for a tokenizer that is still to be trained: all that a configuration asks of it."""

    pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 2, 3, None, None

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


@contextmanager
def only_one(out: Path, told: str = "another study is running in", *, name: str = LOCK) -> Iterator[None]:
    """Two studies, or two trainings, must not write into one folder at once; ``told``: what the second one hears."""
    (out / "stages").mkdir(parents=True, exist_ok=True)
    with (out / "stages" / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MaskwiseError(f"{told} {out}", do="wait for it, or give another folder") from None
        yield
