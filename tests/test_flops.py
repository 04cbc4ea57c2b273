"""FLOPs by formula are what torch counts, on rows without padding."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertForMaskedLM

from maskwise.masking import Masker
from maskwise.masking.batch import Lengths
from maskwise.models.flops import (
    Flops,
    attended_pairs,
    encoder_attention,
    encoder_weights,
    multiplied_weights,
    trained,
)
from maskwise.objectives import OBJECTIVES, objective, objective_class
from maskwise.objectives.denoising import Denoising
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.studies.records import collect
from maskwise.studies.stages import Stage
from maskwise.studies.store import StageStore
from maskwise.text import Pieces, Rows, read_pieces, tokenise
from maskwise.text.documents import Document
from maskwise.training.data import lengths_of
from test_families import REFORMER
from test_several import Documents
from training_tools import ARCHITECTURES, LENGTH, config, funnel, model, spec_of, tokenizer


@pytest.mark.parametrize(
    ("results", "said"),
    [
        # What an earlier version has recorded is read as it was.
        ([{"flops": 5, "steps": 1}], {}),
        # The choice between lengths costs nothing.
        ([{"flops": 5, "steps": 1}, {"dev_loss": 3.0}], {}),
        ([{"flops": 5, "steps": 1, "flops_formula": 2}], {"flops_formulas": [2]}),
        (
            [{"flops": 2, "steps": 1}, {"flops": 3, "steps": 0, "flops_formula": 2}],
            {"flops_formulas": [1, 2]},
        ),
    ],
)
def test_the_cost_of_a_run_names_the_formulas_of_its_trainings(
    results: list[dict[str, float]], said: dict[str, Any], tmp_path: Path
) -> None:
    stages = [Stage("pretrain", {"phase": number}) for number in range(len(results))]
    who = {"arm": "a", "seed": 0}
    run: Any = SimpleNamespace(stages=stages, trainings=stages, who=who)
    store = StageStore(tmp_path)
    for stage, result in zip(stages, results):
        store.folder(stage).mkdir()
        (store.folder(stage) / "done.json").write_text(json.dumps({"seconds": 1.0} | result))
    (cost,) = (line for line in collect([run], store, {}) if line["kind"] == "cost")
    assert cost == {"kind": "cost", **who, "flops": 5, "steps": 1, **said}


def counted(one: Any, batch: Any, *, backward: bool = False) -> int:
    """The FLOPs that torch counts. It sees the products of ``eager`` attention one by one."""
    # Before 5.20, transformers does not set the attention of T5's encoder and decoder.
    parts = [one.model, *getattr(one, "generator", torch.nn.ModuleList()).modules()]
    parts += getattr(one, "_teacher", ())
    if one.model.config.is_encoder_decoder:
        parts += [one.model.get_encoder(), one.model.get_decoder()]
    for part in parts:
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loss = one(batch)
        if backward:
            loss.total.backward()
    return int(counter.get_total_flops())


def dense(rows: int, read: int) -> dict[str, torch.Tensor]:
    """Rows without padding, of which every fourth token is a target."""
    ids = torch.randint(5, 40, (rows, read))
    labels = torch.full_like(ids, -100)
    labels[:, ::4] = 7
    return {"input_ids": ids, "labels": labels}


def of_rows(rows: int, read: int, written: int = 0) -> Lengths:
    return Lengths(np.full(rows, read), np.full(rows, written))


ROTARY = ("esm", "esmc", "eurobert", "modernbert", "nomic_bert")
"""Families whose rotary angles are a matrix product in older versions of transformers, so that
torch counts more FLOPs than the formula."""


def with_pins(architectures: Iterable[str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.pinned) if name in ROTARY else name
        for name in architectures
    ]


@pytest.mark.parametrize("architecture", with_pins(ARCHITECTURES))
def test_the_forward_pass_of_every_family_is_what_torch_counts(architecture: str) -> None:
    one = MaskedLanguageModelling(model(architecture))
    assert Flops(one).forward(3 * 12, 3 * 3, of_rows(3, 12)) == counted(one, dense(3, 12))


OTHERS: dict[str, dict[str, Any]] = {
    "roformer": {},
    "big_bird": {},  # has a pooler
    "ibert": {},  # has a class of its own for embeddings
    "luke": {"entity_emb_size": 8, "entity_vocab_size": 9},  # has weights for entities
    "mobilebert": {"true_hidden_size": 8, "intra_bottleneck_size": 8, "embedding_size": 8},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_families_are_what_torch_counts(architecture: str) -> None:
    one = MaskedLanguageModelling(model(architecture, **OTHERS[architecture]))
    # A pooler reads one token of each text.
    pooled = 2 * 3 * 16 * 16 if architecture in ("big_bird", "luke") else 0
    found = Flops(one).forward(3 * 12, 3 * 3, of_rows(3, 12))
    assert found + pooled == counted(one, dense(3, 12))


def test_a_head_that_cannot_be_called_alone_runs_on_all_tokens() -> None:
    class Own(BertForMaskedLM):
        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs)

    one = MaskedLanguageModelling(Own(config("bert")))
    alone = MaskedLanguageModelling(model("bert"))
    found = Flops(one).forward(3 * 12, 3 * 3, of_rows(3, 12))
    assert found == Flops(alone).forward(3 * 12, 3 * 12, of_rows(3, 12))
    assert found == counted(one, dense(3, 12))


@pytest.mark.parametrize("architecture", ["funnel", "reformer"])
def test_flops_of_attention_of_another_form_are_not_known(architecture: str) -> None:
    """Funnel's were 1.54 times what torch counts, and those of Reformer .90 times."""
    net = funnel() if architecture == "funnel" else model(architecture, **REFORMER)
    found = Flops(MaskedLanguageModelling(net))
    assert found.trained(36, 9, of_rows(3, 12)) == found.forward(36, 9, of_rows(3, 12)) == 0


RELATIVE: dict[str, Any] = {"relative_attention": True, "max_relative_positions": 9}
DEBERTAS: list[dict[str, Any]] = [
    {"pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 6},  # as published
    {"pos_att_type": ["c2p", "p2c"]},
    {"pos_att_type": ["p2c"], "position_buckets": 6, "conv_kernel_size": 3},
    {"pos_att_type": ["c2p"], "max_relative_positions": -1, "max_position_embeddings": 20},
    {"pos_att_type": None},
]


@pytest.mark.parametrize("given", DEBERTAS)
def test_relative_positions_of_deberta_are_what_torch_counts(given: dict[str, Any]) -> None:
    """They are an eighth of the work of DeBERTa-v3 of base size."""
    one = MaskedLanguageModelling(model("deberta-v2", **RELATIVE | given))
    found = Flops(one)
    assert found.forward(3 * 12, 3 * 3, of_rows(3, 12)) == counted(one, dense(3, 12))
    assert found.trained(36, 9, of_rows(3, 12)) == counted(one, dense(3, 12), backward=True)


@pytest.mark.parametrize("reach", [9, 20])
def test_the_first_deberta_reads_only_a_part_of_its_table(reach: int) -> None:
    given = {"pos_att_type": ["c2p", "p2c"], "relative_attention": True}
    one = MaskedLanguageModelling(model("deberta", max_relative_positions=reach, **given))
    assert Flops(one).forward(3 * 12, 3 * 3, of_rows(3, 12)) == counted(one, dense(3, 12))


def test_positions_are_projected_once_a_step_and_only_if_there_are_tokens() -> None:
    given = RELATIVE | {"pos_att_type": ["c2p", "p2c"]}
    one = MaskedLanguageModelling(model("deberta-v2", **given))
    once = 2 * 2 * 2 * 9 * 16 * 16  # layers, tables, sides, reach, width and hidden size
    two = one.attention(of_rows(2, 12)).scores
    assert two - one.attention(of_rows(1, 12)).scores == (two - once) / 2
    assert one.attention(of_rows(0, 12)).scores == 0


def test_the_windows_and_the_unused_weights_of_longformer_are_known() -> None:
    """A window has as many tokens on both sides together. Global attention is never used."""
    net = model("longformer", attention_window=[4, 8])
    width = 2 * 16
    long = np.array([12, 3])
    near = attended_pairs(long, reach=2) + attended_pairs(long, reach=4)
    assert encoder_attention(net.config, long) == width * near
    assert encoder_weights(net) == encoder_weights(model("roberta"))


def test_a_newer_head_of_deberta_multiplies_by_the_embeddings() -> None:
    one = MaskedLanguageModelling(model("deberta-v2", legacy=False))
    assert Flops(one).forward(3 * 12, 3 * 3, of_rows(3, 12)) == counted(one, dense(3, 12))


def test_layers_that_share_weights_are_counted_each() -> None:
    net = model("albert", num_hidden_layers=4, num_hidden_groups=2)
    one = MaskedLanguageModelling(net)
    assert Flops(one).forward(36, 9, of_rows(3, 12)) == counted(one, dense(3, 12))
    assert encoder_weights(net) < 2 * encoder_weights(model("albert", num_hidden_groups=1))


@pytest.mark.parametrize("architecture", with_pins(["bert", "modernbert", "eurobert"]))
def test_training_takes_three_times_as_many_flops(architecture: str) -> None:
    one = MaskedLanguageModelling(model(architecture))
    found = Flops(one)
    assert found.trained(36, 9, of_rows(3, 12)) == counted(one, dense(3, 12), backward=True)
    assert found.trained(36, 9, of_rows(3, 12)) == 3 * found.forward(36, 9, of_rows(3, 12))


SIZES: dict[str, dict[str, Any]] = {
    "bart": {"encoder_layers": 1, "decoder_layers": 2, "max_position_embeddings": 64}
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    "t5": {"num_layers": 1, "num_decoder_layers": 2, "d_kv": 6, "d_ff": 24, "num_heads": 2},
}


def written_later(rows: int, written: int, layers: int, width: int) -> int:
    """The FLOPs with which torch also counts the tokens after a token of a causal decoder."""
    return rows * layers * 4 * width * written * (written - 1) // 2


@pytest.mark.parametrize(("architecture", "width"), [("bart", 16), ("t5", 12)])
def test_an_encoder_decoder_is_what_torch_counts(architecture: str, width: int) -> None:
    given = {"d_model": 16, "vocab_size": 45, "decoder_start_token_id": 0, "pad_token_id": 0}
    made = AutoConfig.for_model(architecture, **given, **SIZES[architecture])
    one = Denoising(AutoModelForSeq2SeqLM.from_config(made).eval())
    rows, read, written = 3, 7, 5
    batch = {"input_ids": torch.full((rows, read), 6), "labels": torch.full((rows, written), 7)}
    found = Flops(one).forward(rows * read, rows * written, of_rows(rows, read, written))
    assert found + written_later(rows, written, 2, width) == counted(one, batch)


@pytest.mark.pinned
def test_t5gemma_has_windows_in_both_halves() -> None:
    part = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 24,
        "vocab_size": 45,
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    made = AutoConfig.for_model("t5gemma", encoder=part, decoder={**part}, vocab_size=45)
    one = Denoising(AutoModelForSeq2SeqLM.from_config(made).eval())
    lengths = of_rows(1, 7, 5)
    width = 2 * 4
    read = attended_pairs(lengths.read) + attended_pairs(lengths.read, reach=3)
    own = attended_pairs(lengths.written, causal=True) + attended_pairs(
        lengths.written, reach=2, causal=True
    )
    work = one.attention(lengths)
    assert work.scores == 2 * width * read
    assert work.head == 2 * width * (own + 2 * 7 * 5)
    # Torch's counter sees whole rows, as if there were no windows.
    batch = {"input_ids": torch.full((1, 7), 6), "labels": torch.full((1, 5), 7)}
    left_out = 2 * (49 + 25) - read - own
    assert Flops(one).forward(7, 5, lengths) + 4 * width * left_out == counted(one, batch)


ENCODERS = [name for name in OBJECTIVES if objective_class(name).kind == "encoder"]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_objective_costs_what_torch_counts(name: str, tmp_path: Path) -> None:
    """A batch of one row has no padding. Special tokens are left out of the tokens, so they are
    added here."""
    torch.manual_seed(0)
    one = objective(spec_of(name, tmp_path), model("bert", hidden_dropout_prob=0.1))
    make = objective_class(name).maker(tokenizer(), seed=3, length=LENGTH + 8)
    rows = 4 if name == "cse" else 1
    batch = make(Documents(16).line(torch.arange(rows)), step=1, total_steps=10)
    lengths = batch.lengths
    read = int(lengths.read.sum())
    assert read == batch.input_ids.numel()
    body = Flops(one).per_token.body or encoder_weights(one.model)
    special = read - (batch.targets if objective_class(name).detects else batch.tokens)
    beside = special * body
    if name == "rtd":
        beside += special * encoder_weights(one.generator)
    if name == "retromae":
        # The decoder computes states of special tokens, whose head is not read.
        beside += special * (multiplied_weights(one) - multiplied_weights(one.model))
        # The kernel for its attention, which torch does not count.
        assert one.attention(lengths).head == 2 * 16 * read * read
        beside -= one.attention(lengths).head
    if name == "distil":
        beside += special * encoder_weights(one.teacher)
    if name == "cse":
        # The similarity of each row to each other.
        beside += 4 * 4 * 16
    if name == "clm":
        # The kernel for its attention, which torch does not count.
        assert one.attention(lengths).scores == 2 * 2 * 16 * read * (read + 1) // 2
        beside -= one.attention(lengths).scores
    if name == "tsdae":
        # Torch also counts the tokens after each token.
        written = int(lengths.written.sum())
        beside += 2 * 16 * (written * (written - 1) // 2)
    found = Flops(one).forward(batch.tokens, batch.targets, lengths)
    assert found + 2 * beside == counted(one, batch)


def test_pairs_are_counted_in_each_document() -> None:
    for causal in (False, True):
        for reach in (None, 0, 1, 3, 40):
            expected = 0
            for length in (0, 1, 2, 4, 7):
                place = np.arange(length)
                distance = place[:, None] - place
                near = abs(distance) <= (length if reach is None else reach)
                expected += (near & (distance >= 0) if causal else near).sum()
            assert attended_pairs(np.array([0, 1, 2, 4, 7]), reach=reach, causal=causal) == expected


def test_sliding_layers_count_the_pairs_in_their_window() -> None:
    mixed = config("modernbert")
    mixed.layer_types, mixed.sliding_window = ["full_attention", "sliding_attention"], 2
    width = 2 * mixed.hidden_size
    long = np.array([100])
    assert encoder_attention(mixed, long) == width * (100**2 + 100 * 5 - 2 * 3)
    short = np.full(4, 3)
    assert encoder_attention(mixed, short) == width * 2 * 4 * 3**2


def pieces_of(texts: list[str]) -> Pieces:
    documents = [Document(text, text) for text in texts]
    return read_pieces(tokenise(documents, tokenizer()), tokenizer=tokenizer(), length=10)


@pytest.mark.parametrize(
    ("layout", "read"),
    [("document", [3, 4, 5, 6]), ("packed", [3, 4, 5, 6]), ("joined", [6, 10])],
)
def test_lengths_are_those_of_the_texts_that_attention_keeps_apart(
    layout: str, read: list[int]
) -> None:
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w1"]
    rows = Rows.of(pieces_of(texts), layout)
    batch = Masker(tokenizer(), ratio=0.5, seed=0)(rows.line(range(len(rows))))
    # With [CLS] and [SEP].
    assert sorted(batch.lengths.read.tolist()) == read
    assert lengths_of([batch, batch]).read.sum() == 2 * sum(read)
    assert len(batch.lengths.written) == 0


@pytest.mark.parametrize("layout", ["document", "packed"])
def test_texts_that_a_decoder_writes_have_lengths_of_their_own(layout: str) -> None:
    pieces = pieces_of(["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w1"])
    rows = Rows.of(pieces, layout)
    masker = Masker(tokenizer(), ratio=0.5, corruption="infill", seed=0)
    batch = masker(rows.line(range(len(rows))))
    # The decoder writes the texts with [CLS] and [SEP].
    assert sorted(batch.lengths.written.tolist()) == [3, 4, 5, 6]
    assert batch.lengths.written.sum() == batch.targets
    assert batch.lengths.read.sum() == batch.tokens
    assert len(batch.lengths.read) == 4 and (batch.lengths.read <= batch.lengths.written).all()


def test_frozen_encoders_run_forward_only() -> None:
    one = MaskedLanguageModelling(model("bert"))
    work = Flops(one).work(36, 9, of_rows(3, 12))
    frozen = Flops(one, frozen=True).trained(36, 9, of_rows(3, 12))
    assert frozen == 2 * (work.body + work.scores) + 6 * work.head + 4 * work.tied
    assert trained(work, held=1.0) == 6 * work.all - 2 * (work.body + work.tied)
