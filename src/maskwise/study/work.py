"""The work of stages: prepare a corpus, pre-train, evaluate, fine-tune. ``maskwise pretrain`` is one of them."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.store import Store
from maskwise.errors import MaskwiseError
from maskwise.evaluation import EvaluationSettings, HeldOut, evaluate, fixed_maskers, overlap_record
from maskwise.models import check_fit, load_model, new_config, new_model
from maskwise.objectives import Arms, MaskedLanguageModelling
from maskwise.study.card import model_card
from maskwise.study.costs import flops, flops_of_arms
from maskwise.study.learning import Learning, learning
from maskwise.study.stages import DONE, Stage, write_json
from maskwise.tasks import FinetuneSettings, load_task, task_record
from maskwise.text import (
    Prepared,
    load_tokenizer,
    read_documents,
    require_documents,
    tokenise,
    train_tokenizer,
)
from maskwise.training import TrainingSettings, log_frequencies, train
from maskwise.training.checkpoints import write_folder


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
    result.setdefault("seconds", round(time.perf_counter() - began, 3))  # trainings count those before a stop
    (folder / "error.txt").unlink(missing_ok=True)
    write_json(folder / DONE, result)
    return result


def _prepare(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    corpus = stage.what["corpus"]
    documents = read_documents(corpus["source"], text_field=corpus["text_field"], limit=corpus["limit"])
    require_documents(documents)
    tokenizer = _tokenizer(stage, stages, documents)
    tokens = tokenise(documents, tokenizer, layers=_layers(corpus, stage.folder(stages) / "layers"))
    settings = {name: corpus[name] for name in ("length", "layout", "held_out")}
    data = Prepared.make(stage.folder(stages) / "data", tokens, tokenizer, **settings)
    return {
        "documents": documents.read, "skipped": dict(documents.skipped),
        "rows": len(data.training), "tokens": data.training.tokens, "held_out_rows": len(data.held_out),
        "vocabulary": len(tokenizer), "counts": dict(data.training.pieces.counts),
    }  # fmt: skip


def _layers(corpus: Mapping[str, Any], folder: Path) -> Store | None:
    """The corpus annotated, as far as that is not done yet; here, for this process is one of several."""
    if not corpus["layers"]:
        return None
    how = {"text_field": corpus["text_field"], "limit": corpus["limit"], "jobs": 1}
    found = annotate_corpus(corpus["source"], corpus["layers"], folder, **how)
    for asked, entry in found["annotators"].items():
        if entry["notice"]:  # an arm on an empty layer would be another policy under its name
            raise MaskwiseError(f"corpus.layers: {asked}: {entry['notice']}")
    return Store(folder)


def _tokenizer(stage: Stage, stages: Path, documents: Any) -> Any:
    """That of an earlier text, a given one, or one trained on the documents."""
    if stage.needs:
        return load_tokenizer(str(stages / stage.needs[0] / "data" / "tokenizer"))
    wanted = stage.what["tokenizer"]
    if wanted["name"]:
        return load_tokenizer(wanted["name"])
    texts = (document.text for document in documents)
    kind, size = wanted["kind"], wanted["vocab_size"]
    return train_tokenizer(texts, kind=kind, vocab_size=size, lowercase=wanted["lowercase"])


def _pretrain(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    what, how = stage.what, dict(stage.how)
    evaluation = how.pop("evaluation")
    # A second stage of training starts from the checkpoint of the first.
    before = {"pretrained": str(stages / stage.needs[1] / "checkpoint")} if len(stage.needs) > 1 else None
    return pretrain(
        Prepared.open(stages / stage.needs[0] / "data"), model=before or what["model"],
        training=TrainingSettings(**what["training"], **how), evaluation=evaluation,
        folder=stage.folder(stages), quiet=quiet, facts={"stage": stage.name}, **_taught(what),
    )  # fmt: skip


def _taught(what: Mapping[str, Any]) -> dict[str, Any]:
    """What a training teaches: the arguments of ``learning``."""
    return {name: what[name] for name in ("masking", "objectives", "sampler") if name in what}


def _evaluate(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    data, what = Prepared.open(stages / stage.needs[0] / "data"), stage.what
    trained = len(stage.needs) > 1
    checkpoint = stages / stage.needs[1] / "checkpoint" if trained else what["model"]["pretrained"]
    return {"records": evaluate(checkpoint, data, EvaluationSettings(**what["evaluation"]))}


def _overlap(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    corpus = stage.what["corpus"]
    documents = read_documents(corpus["source"], text_field=corpus["text_field"], limit=corpus["limit"])
    name = corpus["source"] if corpus["limit"] is None else f"{corpus['source']}, first {corpus['limit']}"
    return {"record": overlap_record(documents, load_task(stage.what["task"]), corpus=name)}


WARM_STEPS, TIMED_STEPS = 5, 20
"""Of a timing: the first steps are slower, for memory is asked for and kernels are chosen."""


def _time(stage: Stage, stages: Path, quiet: bool) -> dict[str, Any]:
    """Seconds of a step: the median, with the schedule of the ratio run through in these few steps."""
    what, data = stage.what, Prepared.open(stages / stage.needs[0] / "data")
    lengths = {"steps": WARM_STEPS + TIMED_STEPS, "log_every": 1}
    training = TrainingSettings(**{**what["training"], **lengths})
    counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    network = _start(what["model"], data, training.seed, log_frequencies(counts))
    made, folder = learning(network, data, training, **_taught(what)), stage.folder(stages)
    train(made.objective, made.source, training, folder=folder, learners=made.learners, quiet=True)
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    ends = [line["seconds"] for line in lines if line["kind"] == "train"][WARM_STEPS - 1 :]
    return {"step_seconds": median(after - before for before, after in pairwise(ends))}


def pretrain(
    data: Prepared, *, model: Mapping[str, Any], training: TrainingSettings, evaluation: Mapping[str, Any],
    folder: Path, quiet: bool = False, facts: Mapping[str, Any] | None = None, **taught: Any,
) -> dict[str, Any]:  # fmt: skip
    """Pre-train one model into ``folder``: metrics, states to resume from, and at the end the checkpoint."""
    counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    log_unigram = log_frequencies(counts)
    network = _start(model, data, training.seed, log_unigram)
    made = learning(network, data, training, evaluated=evaluation["rows"], **taught)
    predicting = MaskedLanguageModelling(network)
    maskers = fixed_maskers(data.tokenizer, masks=evaluation["masks"], ratio=evaluation["ratios"][0])
    held_out = HeldOut(data.held_out, maskers, log_unigram, rows=evaluation["rows"])
    found: list[dict[str, Any]] = []

    def curve(step: int) -> list[dict[str, Any]]:
        found[:] = [dict(line) for line in held_out(predicting)]
        return found

    done = train(
        made.objective, made.source, training, folder=folder, learners=made.learners, evaluate=curve,
        title=made.title, quiet=quiet,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        card = model_card(
            masker=made.words,
            training=training,
            heldout=found,
            data=len(data.training),
            **(facts or {}),
        )
        write_folder(
            folder / "checkpoint",
            lambda target: save_checkpoint(target, network, data.tokenizer, card, heads=made.heads()),
        )
        shutil.rmtree(folder / "resume", ignore_errors=True)
    return {
        "heldout": found,
        "steps": done["steps"],
        "tokens": done["tokens"],
        "targets": done["targets"],
        **_flops(made, done, network, frozen=training.freeze == "encoder"),
        "loss": done["loss"],
        "seconds": round(done["seconds"], 3),
    }


def _flops(made: Learning, done: Mapping[str, Any], network: Any, *, frozen: bool) -> dict[str, Any]:
    """``flops`` of a training; with a sampler also ``objectives`` (what each was given) and ``probe_flops``."""
    spent = made.spent()
    if spent is None:
        return {"flops": flops(done["tokens"], done["targets"], network, frozen=frozen)}
    assert isinstance(made.objective, Arms)
    steps, probes = flops_of_arms(made.objective, spent, frozen=frozen)
    return {"flops": steps + probes, "probe_flops": probes, "objectives": spent}


def save_checkpoint(
    target: Path, network: Any, tokenizer: Any, card: str, *, heads: Mapping[str, torch.Tensor]
) -> None:
    """An ordinary transformers folder with a model card, and beside it the heads of further objectives."""
    transformers_logging.disable_progress_bar()  # it draws one for every file, across our table
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(card, encoding="utf-8")
    if heads:
        save_file({name: t.cpu().contiguous() for name, t in heads.items()}, target / "heads.safetensors")


def _start(model: Mapping[str, Any], data: Prepared, seed: int, log_unigram: torch.Tensor) -> Any:
    if model["pretrained"]:
        bias = log_unigram if model.get("unigram_bias", True) else None
        network = load_model(model["pretrained"], seed=seed, log_unigram=bias)
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
        checkpoint = what["model"]["pretrained"]  # no further training
    else:
        config = new_config(
            what["model"]["architecture"], tokenizer, what["length"], **what["model"]["settings"]
        )
    base = what.get("seed", 0) * 1000  # random starts differ between runs as pre-trained ones do
    record = task_record(
        checkpoint, task, tokenizer=tokenizer, settings=settings, seeds=range(base, base + settings.seeds),
        config=config, quiet=quiet,
    )  # fmt: skip
    return dict(record)


RUNNERS: dict[str, Callable[[Stage, Path, bool], dict[str, Any]]] = {
    "prepare": _prepare, "pretrain": _pretrain, "evaluate": _evaluate, "finetune": _finetune,
    "overlap": _overlap, "time": _time,
}  # fmt: skip
