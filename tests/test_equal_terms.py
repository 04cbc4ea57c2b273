"""Equal terms: fine-tuning compares encoders, and not what else their files hold.

The same encoder is written several times: with all extra weights that a file of its family may
hold (a pooler, the head of masked language modelling, the heads of tasks), as further training
writes it, and bare. All of these must fine-tune to equal scores and weights, bit for bit.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from maskwise.base.errors import MaskwiseError
from maskwise.models.loading import (
    TASK_KINDS,
    TASK_MODELS,
    auto_class,
    load_model,
    load_task_model,
    task_config,
)
from maskwise.studies.store import StageStore
from maskwise.tasks import FinetuneSettings
from maskwise.tasks.finetuning import finetune
from maskwise.tasks.loading import KINDS
from tiny import in_every_split, load_rows, maskwise, records_of, write_lines
from training_tools import ARCHITECTURES, FIRST, WORDS, bart, config, model, tokenizer

FAST = ("bert", "modernbert")
"""A family whose encoder holds a pooler, and one whose prediction head is a part of task heads."""
FAMILIES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES
]

draw = random.Random(0)


def words(count: int) -> str:
    return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(count))


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Eight labelled rows for a kind of task."""
    if kind == "token-classification":
        return [
            {"tokens": words(5).split(), "tags": draw.choices(["x", "y", "z"], k=5)}
            for _ in range(8)
        ]
    if kind == "multiple-choice":
        return [
            {"question": words(3), "choices": [words(2), words(2)], "answer": number % 2}
            for number in range(8)
        ]
    if kind == "question-answering":
        asked = [(words(3), words(6)) for _ in range(8)]
        return [
            {"question": question, "context": context, "answer": context.split()[2]}
            for question, context in asked
        ]
    if kind in ("cloze-qa", "generation"):
        return [{"question": words(4), "answer": words(1)} for _ in range(8)]
    if kind in ("similarity", "zero-shot-similarity"):
        return [
            {"sentence1": words(4), "sentence2": words(4), "score": number / 8}
            for number in range(8)
        ]
    if kind == "regression":
        return [{"text": words(5), "label": number / 8} for number in range(8)]
    if kind == "multi-label":
        return [{"text": words(5), "labels": ["abc"[number % 3]]} for number in range(8)]
    if kind == "retrieval":
        return [{"query": words(3), "passage": words(6)} for _ in range(8)]
    return [{"text": words(5), "label": "abc"[number % 3]} for number in range(9)]


def extras(architecture: str) -> dict[str, torch.Tensor]:
    """Weights of the models of all tasks with other random numbers: heads and, if any, a pooler."""
    state: dict[str, torch.Tensor] = {}
    torch.manual_seed(7)
    for head in TASK_MODELS:
        if head in TASK_KINDS:
            continue
        try:
            made = auto_class(head).from_config(config(architecture, num_labels=3))
        except ValueError:  # this family has no such head
            continue
        state |= made.state_dict()
    base = AutoModel.from_config(config(architecture))
    prefix = base.base_model_prefix
    state |= {f"{prefix}.{key}": tensor for key, tensor in base.state_dict().items()}
    return {key: torch.randn_like(tensor.float()) for key, tensor in state.items()}


def written(folder: Path, architecture: str) -> dict[str, Path]:
    """Write one encoder three times."""
    network = model(architecture)
    whole = network.state_dict()
    more = {key: tensor for key, tensor in extras(architecture).items() if key not in whole}
    full = folder / "full"
    network.save_pretrained(full)
    saved = load_file(full / "model.safetensors")
    assert more
    save_file({**saved, **more}, full / "model.safetensors", metadata={"format": "pt"})
    # as further training of no step writes it
    trained = folder / "trained"
    load_model(full).save_pretrained(trained)
    bare = folder / "bare"
    network.base_model.save_pretrained(bare)
    return {"full": full, "trained": trained, "bare": bare}


SETTINGS = FinetuneSettings(
    steps=3, batch_size=4, max_length=24, seeds=1, learning_rate=1e-2, precision="no"
)


def outcome(checkpoint: Path, task: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The score of a fine-tuning without its seconds, and the fine-tuned weights."""
    score = dict(
        finetune(checkpoint, task, tokenizer=tokenizer(), settings=SETTINGS, seed=3, folder=folder)
    )
    del score["seconds"]
    weights = folder / "checkpoint" / "model.safetensors"
    return score, load_file(weights) if weights.exists() else {}


def same(ours: tuple[dict[str, Any], dict[str, Any]], theirs: Any) -> None:
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    for key, tensor in ours[1].items():
        assert torch.equal(tensor, theirs[1][key]), key


TRAINED_HEADS = [
    name for name, kind in KINDS.items() if kind.objective and not kind.pretrained_head
]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_same_encoder_scores_the_same_whatever_else_its_file_holds(
    architecture: str, tmp_path: Path
) -> None:
    starts = written(tmp_path, architecture)
    tried = []
    for kind in TRAINED_HEADS:
        task = load_rows(tmp_path, in_every_split(rows_of(kind)), name=kind, kind=kind)
        folders = {name: tmp_path / kind / name for name in starts}
        try:
            first = outcome(starts["bare"], task, folders["bare"])
        except MaskwiseError as error:
            assert "Unrecognized configuration class" in str(error), kind
            continue
        tried.append(kind)
        for name in ("trained", "full"):
            same(outcome(starts[name], task, folders[name]), first)
    assert "sequence-classification" in tried and len(tried) >= 4


def test_the_tested_kinds_of_heads_are_all_kinds() -> None:
    kept = {name for name, kind in KINDS.items() if kind.pretrained_head}
    frozen = {name for name, kind in KINDS.items() if kind.frozen}
    assert kept == {"cloze-qa", "generation"}
    assert {*KINDS} == {*TRAINED_HEADS} | kept | frozen


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_head_for_masks_is_kept_and_nothing_else_matters(
    architecture: str, tmp_path: Path
) -> None:
    starts = written(tmp_path, architecture)
    for kind in ("cloze-qa", "sentence-embedding"):
        task = load_rows(tmp_path, in_every_split(rows_of(kind)), name=kind, kind=kind)
        first = outcome(starts["trained"], task, tmp_path / kind / "trained")
        same(outcome(starts["full"], task, tmp_path / kind / "full"), first)


def t5_config() -> T5Config:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    ids = {"vocab_size": FIRST + WORDS, "pad_token_id": 0, "eos_token_id": 3}
    return T5Config(decoder_start_token_id=0, **sizes, **ids)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_an_encoder_decoder_keeps_its_head(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = bart()
    if architecture == "t5":
        network = T5ForConditionalGeneration(t5_config())
    full = tmp_path / "full"
    network.save_pretrained(full)
    saved = load_file(full / "model.safetensors")
    more = {"classification_head.dense.weight": torch.randn(16, 16)}
    save_file({**saved, **more}, full / "model.safetensors", metadata={"format": "pt"})
    trained = tmp_path / "trained"
    load_model(full, kind=None).save_pretrained(trained)
    task = load_rows(tmp_path, in_every_split(rows_of("generation")), kind="generation")
    first = outcome(trained, task, tmp_path / "first")
    same(outcome(full, task, tmp_path / "second"), first)


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_an_encoder_decoder_gets_a_new_head_for_a_task(architecture: str, tmp_path: Path) -> None:
    """Whether its file has a trained head of this task, has none, or is written by maskwise."""
    torch.manual_seed(0)
    network: Any
    writer: Any
    if architecture == "bart":
        network, writer = BartForSequenceClassification(bart().config), BartForConditionalGeneration
    else:
        network, writer = T5ForSequenceClassification(t5_config()), T5ForConditionalGeneration
    full = tmp_path / "full"
    network.save_pretrained(full)
    assert "classification_head.dense.weight" in load_file(full / "model.safetensors")
    writer.from_pretrained(full).save_pretrained(tmp_path / "trained")
    network.base_model.save_pretrained(tmp_path / "bare")
    labels = task_config(full, {"num_labels": 3})
    states = []
    for name in ("full", "trained", "bare"):
        made = load_task_model(tmp_path / name, labels, head="sequence-classification", seed=5)
        states.append(made.state_dict())
    theirs = network.state_dict()
    for key, tensor in states[0].items():
        assert all(torch.equal(tensor, state[key]) for state in states[1:]), key
        if key.startswith("classification_head"):
            assert key.endswith("bias") or tensor.std() > 0
            assert (
                tensor.shape != theirs[key].shape
                or not torch.equal(tensor, theirs[key])
                or (key.endswith("bias") and not tensor.any())
            )
        else:
            assert torch.equal(tensor, theirs[key]), key
    # A checkpoint that lacks a part of the model itself is still refused.
    state = load_file(full / "model.safetensors")
    needed = [
        key for key in state if "decoder" in key and key.endswith(("fc1.weight", "wi.weight"))
    ]
    del state[needed[0]]
    save_file(state, full / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MaskwiseError, match=r"lacks weights of its encoder-decoder.*(fc1|wi)"):
        load_task_model(full, labels, head="sequence-classification", seed=5)


def test_an_untrained_model_gets_the_same_head_as_a_trained_one(tmp_path: Path) -> None:
    starts = written(tmp_path, "bert")
    labels = task_config(starts["bare"], {"num_labels": 3})
    heads = []
    for name in (None, starts["full"]):
        network = load_task_model(name, labels, head="sequence-classification", seed=5)
        heads.append([network.classifier.weight, network.bert.pooler.dense.weight])
    for ours, theirs in zip(*heads):
        assert torch.equal(ours, theirs) and ours.std() > 0


def test_a_study_whose_training_changes_nothing_finds_no_difference(tmp_path: Path) -> None:
    """The start is a sentence encoder: it has a pooler, and no head that fills masks."""
    start = tmp_path / "start"
    torch.manual_seed(0)
    AutoModel.from_config(config("bert")).save_pretrained(start)
    tokenizer().save_pretrained(start)
    texts = write_lines(
        tmp_path / "texts.jsonl", [{"title": words(3), "text": words(30)} for _ in range(60)]
    )
    command = ["adapt", start, texts, "--out", tmp_path / "out", "--steps", 2, "--runs", 1]
    for kind in ("sequence-classification", "cloze-qa"):
        path = write_lines(tmp_path / f"{kind}.jsonl", in_every_split(rows_of(kind)))
        command += ["--task", f"{path}(kind={kind})"]
    # The head that is trained first has rates of its own.
    still = ["training.learning_rate=1e-30", "training.muon_learning_rate=1e-30"]
    small = ["corpus.length=16", "corpus.held_out=0.2", "evaluation.rows=4", "finetune.steps=3"]
    small += ["training.batch_size=4", "finetune.learning_rate=0.01"]
    assert maskwise(*command, "--arms", "words-30,tsdae", *still, *small) == 0
    # Answers at masks need the head that was trained first, in every arm.
    stages = [*StageStore(tmp_path / "out" / "stages").stages()]
    asked = [stage for stage in stages if "cloze-qa" in stage.what.get("task", "")]
    assert asked and all(len(stage.needs) == 2 for stage in asked if stage.kind == "finetune")
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for line in records_of(tmp_path / "out", "task"):
        if line["split"] == "test":
            runs = scores.setdefault((line["measure"], line["seed"]), {})
            runs[line["arm"]] = line["fine_tuning"]
    assert len(scores) == 2
    for arms in scores.values():
        assert {*arms} == {"words-30", "tsdae", "no-pretraining"}
        assert arms["words-30"] == arms["tsdae"] == arms["no-pretraining"]
