"""The work of stages: prepare a corpus, pre-train, fine-tune. ``maskwise pretrain`` is one of them."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from maskwise.corpus import (
    Blocks,
    load_tokenizer,
    pack,
    read_documents,
    require_documents,
    tokenise,
    train_tokenizer,
    unigram_counts,
)
from maskwise.evaluation import HeldOut, fixed_maskers
from maskwise.masking import Masker
from maskwise.objectives import MaskedLanguageModelling
from maskwise.study.card import model_card
from maskwise.study.stages import DONE, Stage, write_json
from maskwise.tasks import FinetuneSettings, finetune, load_task
from maskwise.training import (
    MaskedSource,
    TrainingSettings,
    load_model,
    log_frequencies,
    new_config,
    new_model,
    train,
)
from maskwise.training.checkpoints import write_folder
from maskwise.training.model import check_fit


def run_stage(stage: Stage, stages: Path, *, quiet: bool = True) -> dict[str, Any]:
    """Do the work unless it is done; returns the stage's result. A failure leaves ``error.txt``."""
    known = stage.result(stages)
    if known is not None:
        return known
    folder = stage.folder(stages)
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in list(folder.rglob(".*.partial")):  # by a process that was killed
        shutil.rmtree(left_behind) if left_behind.is_dir() else left_behind.unlink()
    write_json(folder / "stage.json", stage.as_dict())
    began = time.perf_counter()
    try:
        result = RUNNERS[stage.kind](stage, stages, quiet)
    except Exception:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    result["seconds"] = round(time.perf_counter() - began, 3)
    (folder / "error.txt").unlink(missing_ok=True)
    write_json(folder / DONE, result)
    return result


def _prepare(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    corpus, wanted = stage.what["corpus"], stage.what["tokenizer"]
    documents = read_documents(corpus["source"], text_field=corpus["text_field"], limit=corpus["limit"])
    require_documents(documents)
    if wanted["name"]:
        tokenizer = load_tokenizer(wanted["name"])
    else:
        texts = (document.text for document in documents)
        kind, size = wanted["kind"], wanted["vocab_size"]
        tokenizer = train_tokenizer(texts, kind=kind, vocab_size=size, lowercase=wanted["lowercase"])
    blocks = pack(
        tokenise(documents, tokenizer), tokenizer=tokenizer, length=corpus["length"], layout=corpus["layout"]
    )
    training, held_out = blocks.split(held_out=corpus["held_out"])

    def fill(folder: Path) -> None:
        tokenizer.save_pretrained(folder / "tokenizer")
        training.save(folder / "train.arrow")
        held_out.save(folder / "held_out.arrow")

    write_folder(stage.folder(stages) / "data", fill)
    return {
        "documents": documents.read, "skipped": dict(documents.skipped),
        "rows": len(training), "tokens": training.tokens, "held_out_rows": len(held_out),
        "vocabulary": len(tokenizer), "counts": dict(blocks.counts),
    }  # fmt: skip


@dataclass
class Prepared:
    """What a prepare stage left."""

    tokenizer: Any
    training: Blocks
    held_out: Blocks

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        data = folder / "data"
        tokenizer = load_tokenizer(str(data / "tokenizer"))
        return cls(tokenizer, Blocks.load(data / "train.arrow"), Blocks.load(data / "held_out.arrow"))


def make_masker(masking: Mapping[str, Any], tokenizer: Any, *, seed: int) -> Masker:
    """The masker of a recipe's ``masking`` part."""
    return Masker(tokenizer, **masking, seed=seed)


def _pretrain(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    what, folder = stage.what, stage.folder(stages)
    return pretrain(
        Prepared.load(stages / stage.needs[0]), model=what["model"], masking=what["masking"],
        training=TrainingSettings(**what["training"], **stage.how), evaluation=what["evaluation"],
        folder=folder, quiet=quiet, facts={"stage": stage.name},
    )  # fmt: skip


def pretrain(
    data: Prepared, *, model: Mapping[str, Any], masking: Mapping[str, Any], training: TrainingSettings,
    evaluation: Mapping[str, Any], folder: Path, quiet: bool = False, facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Pre-train one model into ``folder``: metrics, states to resume from, and at the end the checkpoint."""
    counts = torch.from_numpy(unigram_counts(data.training, len(data.tokenizer)))
    log_unigram = log_frequencies(counts)
    network = _start(model, data, training.seed, log_unigram)
    objective = MaskedLanguageModelling(network)
    masker = make_masker(masking, data.tokenizer, seed=training.seed)
    maskers = fixed_maskers(data.tokenizer, masks=evaluation["masks"], ratio=evaluation["ratios"][0])
    held_out = HeldOut(data.held_out, maskers, log_unigram, rows=evaluation["rows"])
    found: list[dict[str, Any]] = []

    def evaluate(step: int) -> list[dict[str, Any]]:
        found[:] = held_out(objective)
        return found

    source = MaskedSource(data.training, masker, training)
    title = f"{masking['policy']} {masker.ratio}"
    done = train(
        objective, source, training, folder=folder, learners=source.learners(), evaluate=evaluate, title=title,
        quiet=quiet,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        card = model_card(
            masker=masker.describe(),
            training=training,
            heldout=found,
            data=len(data.training),
            **(facts or {}),
        )
        write_folder(
            folder / "checkpoint", lambda target: save_checkpoint(target, network, data.tokenizer, card)
        )
        shutil.rmtree(folder / "resume", ignore_errors=True)
    return {
        "heldout": found,
        "steps": done["steps"],
        "tokens": done["tokens"],
        "targets": done["targets"],
        "loss": done["loss"],
    }


def save_checkpoint(target: Path, network: Any, tokenizer: Any, card: str) -> None:
    """An ordinary transformers folder with a model card."""
    transformers_logging.disable_progress_bar()  # it draws one for every file, across our table
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(card, encoding="utf-8")


def _start(model: Mapping[str, Any], data: Prepared, seed: int, log_unigram: torch.Tensor) -> Any:
    if model["pretrained"]:
        transformers_logging.disable_progress_bar()
        network = load_model(model["pretrained"])
        check_fit(network.config, len(data.tokenizer), do="set tokenizer.name to the model's own")
        return network
    config = new_config(model["architecture"], data.tokenizer, data.training.length, **model["settings"])
    return new_model(config, seed=seed, log_unigram=log_unigram if model["unigram_bias"] else None)


def _finetune(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    what = stage.what
    settings = FinetuneSettings(**what["finetune"])
    task = load_task(what["task"])
    tokenizer = load_tokenizer(str(stages / stage.needs[0] / "data" / "tokenizer"))
    checkpoint, config = None, None
    if len(stage.needs) > 1:
        checkpoint = stages / stage.needs[1] / "checkpoint"
    elif what["model"]["pretrained"]:
        checkpoint = what["model"]["pretrained"]
    else:
        config = new_config(
            what["model"]["architecture"], tokenizer, what["length"], **what["model"]["settings"]
        )
    base = what.get("seed", 0) * 1000  # random starts differ between runs as pre-trained ones do
    runs = [
        finetune(
            checkpoint,
            task,
            tokenizer=tokenizer,
            settings=settings.training(task, seed=seed),
            seed=seed,
            max_length=settings.max_length,
            config=config,
            quiet=quiet,
        )
        for seed in range(base, base + settings.seeds)
    ]
    scores = [run["score"] for run in runs]
    facts = {key: runs[0][key] for key in ("task", "metric", "majority", "test_items")}
    return {
        **facts,
        "score": sum(scores) / len(scores),
        "fine_tuning": scores,
        "dev": [run["dev"] for run in runs],
    }


RUNNERS: dict[str, Callable[[Stage, Path, bool], dict[str, Any]]] = {
    "prepare": _prepare, "pretrain": _pretrain, "finetune": _finetune,
}  # fmt: skip
