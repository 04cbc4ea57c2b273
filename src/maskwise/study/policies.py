"""Learning a policy: what ``maskwise learn`` does, and a study's stage ``learn``.

A folder gets ``policy/`` (the model, with its card), ``metrics.jsonl``, ``shown.json`` (what it masks, before and
after), ``try-N/`` of every try where there are several, and, of ``maskwise learn``, ``recipe.yaml``, ``stage.json``
(what the policy depends on), ``done.json`` and ``report.html``. The same command goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskwise.constants import GAIN, rank_here, ranks_here
from maskwise.errors import MaskwiseError
from maskwise.folders import claim, finite, read_json, require_file, require_own, write_folder, write_json, write_whole
from maskwise.keys import fold
from maskwise.learning.card import policy_card, show, weights_of, weights_shown
from maskwise.learning.classifier import train_classifier
from maskwise.learning.labels import Confidence, Labels, labels_of
from maskwise.learning.loop import learn_meta
from maskwise.learning.meta import Point
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import LearningSettings
from maskwise.learning.supervised import judge, learn_supervised
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.stages import DONE, STAGE, learn_stage, prepare_stage
from maskwise.tasks import Task, load_task
from maskwise.text import Document, load_tokenizer, tokenise
from maskwise.training import log_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LOCK, SHARED_TOKENIZER = ".learning.lock", "tokenizer"
LEARNING = 0x9011C7
"""What turns the seed of a run into that of its learning."""


def run_learn(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """``maskwise learn``: as ``learn``, in a folder of its own, which is finished once.

    Under torchrun every process calls this; rank 0 writes.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, or the policy of another recipe or of other data.
    """
    first = rank_here() == 0
    if first:
        require_own(out, "recipe.yaml", what="a policy of this recipe")
    new = not out.is_dir() or not any(out.iterdir())
    text, done = recipe.to_yaml(), read_json(out / DONE)
    kept = out / "recipe.yaml"
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != text:
        raise MaskwiseError(f"--out {out} holds the policy of another recipe", do="give a new folder")
    stage = learn_stage(recipe, recipe.learned_task, prepare_stage(recipe)).as_dict()
    before = read_json(out / STAGE)
    if before and before != json.loads(json.dumps(stage)):  # the recipe is the same, and what it names is not
        what = f"--out {out} holds a policy learned from other data: a file, a library or the machine changed"
        raise MaskwiseError(what, do="give a new folder")
    if done:
        return done
    with claim(out, "another process learns in", lock=LOCK) if first else nullcontext():
        try:
            if first:
                write_whole(kept, text)
                write_json(out / STAGE, stage)
            began = time.perf_counter()
            result = learn(recipe, out, quiet=quiet)
            result = finite({**result, "seconds": round(time.perf_counter() - began, 1)})
            if first:
                from maskwise.report.policy import write_policy_page  # not at the top: altair takes a second

                result["report"] = str(write_policy_page(out, title=recipe.name, measures=result))
                write_json(out / DONE, result)
        except MaskwiseError:
            if first and new and not any(out.rglob("metrics.jsonl")):  # nothing stays of what never took a step
                shutil.rmtree(out)
            raise
    return result


def learn(recipe: Recipe, folder: Path, *, quiet: bool = True) -> Plain:
    """Learn the policy of a recipe into ``folder``; call it again, and it goes on where it was stopped.

    Args:
        recipe: of one run; its learning, corpus, tokenizer, model, training (the seed) and finetune are used.

    Returns:
        What was measured: ``policy`` (where it is), ``method``, ``task``, the learning's own figures, and ``dev`` and
        ``held_out``, how good it is on texts that it has not learned from.

    Raises:
        MaskwiseError: a recipe that learns no policy; a task that teaches none.
    """
    spec, settings = recipe.learned_task, recipe.learning
    assert settings is not None, "what has a task to learn from has settings"
    learner = {"supervised": _supervised, "meta": _meta}[settings.method]
    return learner(recipe, settings, spec, folder, quiet)


def _supervised(recipe: Recipe, settings: LearningSettings, spec: str, folder: Path, quiet: bool) -> Plain:
    how, seed, tokenizer = settings.supervised, own_seed(recipe), policy_tokenizer(recipe, folder)
    labels = labels_of(
        spec, kind=how.labels, texts=corpus_texts(recipe), drop=how.drop,
        classifier=lambda task: _classifier(recipe, task, folder, quiet),
    )  # fmt: skip
    policy = new_policy(settings, tokenizer, head=labels.head, seed=seed)
    texts = [each.text for each in labels.marked("test", "dev", "train")]
    before = weights_of(policy, texts)
    training = how.training.model_copy(update={"seed": seed})
    done, counts = learn_supervised(
        policy,
        labels.splits["train"],
        training=training,
        dev_texts=labels.splits["dev"],
        folder=folder,
        quiet=quiet,
        watch=partial(weights_shown, texts),
    )
    measures: Plain = {"labels": labels.kind, "left_out": dict(labels.counts + counts), "loss": done["loss"]}
    measures |= _measured(policy, labels)
    return keep(policy, folder, settings, spec, recipe, measures, texts=texts, before=before)


def _meta(recipe: Recipe, settings: LearningSettings, spec: str, folder: Path, quiet: bool) -> Plain:
    tokenizer, texts, task = policy_tokenizer(recipe, folder), corpus_texts(recipe), load_task(spec)
    if settings.policy.pretrained and recipe.tokenizer_name:
        own = _tokenizer(recipe, recipe.tokenizer_name, folder)
        if own.get_vocab() != tokenizer.get_vocab():
            what = "by the meta-gradient a policy and the model read the same tokens, and their tokenizers differ"
            got = f"learning.policy.pretrained {settings.policy.pretrained}, and {recipe.tokenizer_name}"
            raise MaskwiseError(what, got=got, do="leave learning.policy.pretrained out")
    labels = None
    with suppress(MaskwiseError):  # only to see what the policy finds: it learns from no label
        labels = labels_of(spec, kind="answers", texts=texts)
    shown = [each.text for each in labels.marked("test", "dev", "train")] if labels else texts
    log_unigram, tries = _frequencies(tokenizer, texts), settings.meta.tries

    def learned(number: int) -> tuple[PolicyModel, list[np.ndarray], Point, Counter[str]]:
        own = folder if tries == 1 else folder / f"try-{number}"
        title = "learning a policy" + (f" ({number + 1} of {tries})" if tries > 1 else "")
        seed = fold(own_seed(recipe), number) if number else own_seed(recipe)
        policy = new_policy(settings, tokenizer, head="tokens", seed=seed)
        model = recipe.model.model(
            tokenizer, recipe.corpus.length, kind=recipe.kind, seed=own_seed(recipe), log_unigram=log_unigram
        )
        before = weights_of(policy, shown)
        end, left_out = learn_meta(
            settings.meta.model_copy(update={"seed": seed}), policy=policy, task=task, texts=texts, model=model,
            tokenizer=tokenizer, training=recipe.training, length=recipe.corpus.length,
            max_length=recipe.finetune.max_length, folder=own, quiet=quiet,
            watch=partial(weights_shown, shown), title=title,
        )  # fmt: skip
        return policy, before, end, left_out

    every = [learned(number) for number in range(tries)]
    best = max(range(tries), key=lambda number: every[number][2].gain)
    policy, before, _, left_out = every[best]
    if tries > 1 and rank_here() == 0:
        shutil.copyfile(folder / f"try-{best}" / "metrics.jsonl", folder / "metrics.jsonl")
    policy.cpu()
    ends = [
        {"best_step": end.best, "gain": end.gain, "stopped": end.stopped, "overshoot": end.overshoot}
        for _, _, end, _ in every
    ]
    measures: Plain = {**ends[best], "tries": ends, "left_out": dict(left_out)}
    if labels:
        measures |= _measured(policy, labels)
    return keep(policy, folder, settings, spec, recipe, measures, texts=shown, before=before)


def own_seed(recipe: Recipe) -> int:
    """The seed of a learning: another one than that of the training which the policy then masks for.

    Otherwise the policy would know the fresh weights, the orders and the draws of the run that judges it.
    """
    return fold(recipe.training.seed, LEARNING)


def _frequencies(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """(V,) log-frequencies of the tokens."""
    documents = (Document(str(number), text) for number, text in enumerate(texts))
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)
    for tokens in tokenise(documents, tokenizer):
        counts += torch.bincount(torch.from_numpy(tokens.input_ids), minlength=len(tokenizer))
    return log_frequencies(counts)


def _measured(policy: PolicyModel, labels: Labels) -> Plain:
    """How good a policy is on dev and on the texts of test, where these have labels."""
    judged = (("dev", "dev"), ("held_out", "test"))
    return {name: judge(policy, marked) for name, split in judged if (marked := labels.marked(split))}


def keep(
    policy: PolicyModel, folder: Path, settings: LearningSettings, spec: str, recipe: Recipe, measures: Plain, *,
    texts: Sequence[str], before: Sequence[np.ndarray],
) -> Plain:  # fmt: skip
    """Write a learned policy with its card, and what it masks (on rank 0); returns what was measured.

    Args:
        texts: which it has not learned from; ``before`` are the weights of the first of them before it learned.
    """
    result = {"policy": str(folder / "policy"), "method": settings.method, "task": spec, **measures}
    if rank_here():
        return result
    shown = show(policy, texts, before)
    choices = {
        "task": spec, "method": settings.method, "corpus": recipe.corpus.title, "seed": recipe.training.seed,
        "encoder": settings.policy.pretrained or settings.policy.architecture, "head": policy.config.head,
        "length": policy.config.length, **({"tries": len(measures["tries"])} if "tries" in measures else {}),
    }  # fmt: skip
    gain = {GAIN: measures["gain"]} if "gain" in measures else {}
    policy.card = policy_card(choices, gain | measures.get("held_out", {}), shown)
    write_folder(folder / "policy", policy.save_pretrained)
    write_json(folder / "shown.json", finite(shown))
    for left in (folder / "resume", folder / SHARED_TOKENIZER, *folder.glob("try-*/resume")):
        shutil.rmtree(left, ignore_errors=True)
    return result


def policy_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a policy reads by: its encoder's own, the recipe's, or one trained on the corpus."""
    assert recipe.learning is not None
    return _tokenizer(recipe, recipe.learning.policy.pretrained or recipe.tokenizer_name, folder)


def _tokenizer(recipe: Recipe, name: str | None, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a name, or one trained on the corpus: by rank 0 for all, through a folder."""
    chosen = recipe.tokenizer.model_copy(update={"name": name})
    made: PreTrainedTokenizerFast
    if name or ranks_here() == 1:
        made = chosen.tokenizer(recipe.corpus.documents())
        return made
    shared = folder / SHARED_TOKENIZER
    if rank_here() == 0 and not shared.is_dir():
        write_folder(shared, chosen.tokenizer(recipe.corpus.documents()).save_pretrained)
    require_file(shared / "tokenizer.json")
    made = load_tokenizer(str(shared))
    return made


def new_policy(settings: LearningSettings, tokenizer: PreTrainedTokenizerFast, *, head: str, seed: int) -> PolicyModel:
    """The policy before it has learned; ``head`` where the settings say none."""
    return PolicyModel.new(
        tokenizer, seed=seed, **{**settings.policy.model_dump(), "head": settings.policy.head or head}
    )


def corpus_texts(recipe: Recipe) -> list[str]:
    """The texts of the corpus, where contexts of questions that stand alone are looked for.

    Raises:
        MaskwiseError: a stream, which may be larger than memory.
    """
    if recipe.corpus.stream:
        raise MaskwiseError("a policy is learned from texts that are read whole", do="set corpus.stream: false")
    return [document.text for document in recipe.corpus.documents()]


def _classifier(recipe: Recipe, task: Task[Any], folder: Path, quiet: bool) -> Confidence:
    """A classifier of the task, trained from the recipe's model."""
    assert recipe.learning is not None
    settings, model = recipe.learning.supervised.finetune, recipe.model
    tokenizer = _tokenizer(recipe, recipe.tokenizer_name, folder)
    config = None if model.pretrained else model.config(tokenizer, settings.max_length, kind="encoder")
    return train_classifier(
        task, model.pretrained, config=config, tokenizer=tokenizer, settings=settings, seed=own_seed(recipe),
        quiet=quiet,
    )  # fmt: skip
