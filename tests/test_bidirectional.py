"""Encoders from decoders: attention in both directions, and masked next-token prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaModel,
    PreTrainedTokenizerFast,
)

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.changes import Bidirectional, change
from maskwise.models import decoders
from maskwise.models.loading import load_model
from maskwise.objectives import objective_class
from maskwise.objectives.base import require_fitting_head
from maskwise.objectives.mlm import MaskedNextTokenPrediction
from maskwise.recipe import read_recipe
from maskwise.studies import run_study
from maskwise.studies.checks import check_inputs
from maskwise.tasks.finetuning import load_network
from maskwise.tasks.tensors import embed, encode_texts
from maskwise.text import load_tokenizer, read_documents, train_tokenizer

TEXTS = [document.text for document in read_documents("bundled:wikipedia", limit=60)]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "head_dim": 8,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = ("llama", "mistral", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "opt", "phi")
"""Families that are tried. Others count if they pass the same test when they are loaded."""


def decoder(family: str, vocabulary: int = 900) -> Any:
    plain = AutoConfig.for_model(family)
    fields = {name: value for name, value in SMALL.items() if hasattr(plain, name)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **fields)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder whose tokenizer has neither a mask token nor a padding token."""
    folder = tmp_path_factory.mktemp("decoder")
    plain = json.loads(train_tokenizer(TEXTS, vocab_size=800).backend_tokenizer.to_str())
    plain["post_processor"] = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)),
        unk_token="[UNK]",
        eos_token="[SEP]",
    )
    tokenizer.save_pretrained(folder)
    decoder("llama", len(tokenizer)).save_pretrained(folder)
    return folder


def first_and_last(model: Any, *, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(10, 22).repeat(2, 1)
    ids[1, -1] = 40
    more = {}
    if padded:
        ids = torch.cat([ids, ids.new_zeros(2, 3)], 1)
        more = {"attention_mask": (ids != 0).long()}
    with torch.no_grad():
        states = model(input_ids=ids, **more).last_hidden_state[:, 0]
    return states[0], states[1]


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_token_depends_on_the_last_one_after_save_and_load(
    family: str, tmp_path: Path
) -> None:
    model = decoder(family)
    made, _ = Bidirectional()(model, train_tokenizer(TEXTS, vocab_size=900))
    made.save_pretrained(tmp_path)
    for attention in ("sdpa", "eager"):
        loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=attention).eval()
        for padded in (False, True):
            assert not torch.equal(*first_and_last(loaded, padded=padded))
    assert loaded.config.read_by == "transformers>=5.2"
    decoders.require_sees_later(load_model(tmp_path))


def test_a_decoder_that_sees_earlier_tokens_only_is_not_evaluated(llama: Path) -> None:
    for call in (lambda: load_model(llama, kind=None), lambda: mw.load(llama)):
        with pytest.raises(MaskwiseError, match="reads earlier tokens only"):
            call()


def test_a_version_that_ignores_the_setting_is_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(llama, tmp_path / "out", "bidirectional()")
    usual = LlamaModel.forward

    def ignoring(self: Any, **inputs: Any) -> Any:
        self.config.is_causal = True
        try:
            return usual(self, **inputs)
        finally:
            self.config.is_causal = False

    monkeypatch.setattr(LlamaModel, "forward", ignoring)
    with pytest.raises(MaskwiseError, match="reads earlier tokens only"):
        load_model(tmp_path / "out")


def test_the_folder_is_an_encoder_in_other_libraries(llama: Path, tmp_path: Path) -> None:
    facts = change(llama, tmp_path / "out", "bidirectional()")
    assert "5.2" in facts["changes"]["bidirectional()"]["what"]
    assert "5.2" in (tmp_path / "out" / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.mask_token == "<mask>" and tokenizer.pad_token == tokenizer.eos_token
    code = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(10, 20).repeat(2, 1)
ids[1, -1] = 40
states = model(input_ids=ids).last_hidden_state
assert not torch.equal(states[0, 0], states[1, 0])
assert "maskwise" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=True)
    # The row of the mask token begins as that of "_".
    model = load_model(tmp_path / "out")
    table = model.get_input_embeddings().weight
    old = load_tokenizer(str(llama), needs_mask=False)
    blank = old("_", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(table[tokenizer.mask_token_id], table[blank].mean(0))


def test_a_tokenizer_that_cannot_read_a_blank_gets_a_finite_row(tmp_path: Path) -> None:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.train_from_iterator(
        ["the cat sat"] * 9, trainers.BpeTrainer(vocab_size=40, special_tokens=["</s>"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "in")
    decoder("llama", len(tokenizer)).save_pretrained(tmp_path / "in")
    change(tmp_path / "in", tmp_path / "out", "bidirectional()")
    table = load_model(tmp_path / "out").get_input_embeddings().weight
    torch.testing.assert_close(table[-1], table[:-1].mean(0))


@torch.no_grad()
def test_a_masked_token_is_predicted_from_the_position_before_it(
    llama: Path, tmp_path: Path
) -> None:
    change(llama, tmp_path / "out", "bidirectional()")
    model, tokenizer = mw.load(tmp_path / "out")
    maker = MaskedNextTokenPrediction.maker(tokenizer, seed=0, policy="token", ratio=0.3)
    rows = [{"input_ids": tokenizer(text)["input_ids"][:40]} for text in TEXTS[:4]]
    batch = maker(rows)
    loss = MaskedNextTokenPrediction(model)(batch)
    # By other code: the formula of LLM2Vec, with the whole model's own logits.
    logits = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        .eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        .logits
    )
    total, count = 0.0, 0
    for row, labels in enumerate(batch.labels.tolist()):
        for place, token in enumerate(labels):
            if token >= 0:
                read = logits[row, max(0, place - 1)]
                total += float(cross_entropy(read, torch.tensor(token)))
                count += 1
    assert int(loss.divisor) == count > 20
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def test_objectives_fit_what_the_head_predicts(llama: Path) -> None:
    causal = AutoConfig.from_pretrained(llama)
    both = Bidirectional().check(causal, load_tokenizer(str(llama), needs_mask=False))
    require_fitting_head(objective_class("mntp"), both)
    for name, config in (("mlm", both), ("diffusion", both), ("mntp", causal)):
        with pytest.raises(MaskwiseError):
            require_fitting_head(objective_class(name), config)
    with pytest.raises(MaskwiseError, match=r"earlier tokens only; .*without bidirectional"):
        require_fitting_head(objective_class("clm"), both)


@pytest.mark.parametrize("objective", ["mntp", {"retromae": {}, "mlm": {}}])
def test_a_decoder_is_told_what_it_can_learn_before_a_mask_is_missed(
    llama: Path, objective: Any
) -> None:
    recipe = {
        "corpus": {"source": "bundled:wikipedia", "limit": 60, "length": 32},
        "model": {"pretrained": str(llama)},
        "objective": objective,
        "tasks": [],
    }
    with pytest.raises(MaskwiseError, match="bidirectional"):
        check_inputs(read_recipe(recipe))


def test_the_last_token_can_be_the_vector_of_a_text(llama: Path) -> None:
    tokenizer = load_tokenizer(str(llama), needs_mask=False)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(llama).eval()
    texts = ["The river", TEXTS[0][:80]]
    found = embed(model, encode_texts(texts, tokenizer, max_length=30), pooling="last")
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=30)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, states, rtol=1e-4, atol=1e-5)


def test_a_head_for_sequences_reads_the_last_token_of_each_text(
    llama: Path, tmp_path: Path
) -> None:
    rows = [{"text": text[: 20 + 9 * at], "label": at % 2} for at, text in enumerate(TEXTS[:30])]
    (tmp_path / "parity.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = mw.load_task(tmp_path / "parity.jsonl", kind="sequence-classification")
    tokenizer = load_tokenizer(str(llama), needs_mask=False)
    how: dict[str, Any] = {"config": None, "max_length": 64, "seed": 0}
    model = load_network(llama, task, tokenizer, **how).eval()
    alone = [tokenizer(row["text"], return_tensors="pt")["input_ids"] for row in rows[:3]]
    longest = max(ids.shape[1] for ids in alone)
    end = tokenizer.eos_token_id
    padded = torch.full((3, longest), end)
    for row, ids in zip(padded, alone, strict=True):
        row[: ids.shape[1]] = ids
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=(padded != end).long()).logits
        expected = torch.cat([model(input_ids=ids).logits for ids in alone])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_study_compares_both_directions_with_the_same_decoder(
    llama: Path, tmp_path: Path
) -> None:
    pairs = [{"query": text[:30], "text": text[30:200]} for text in TEXTS[:40]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tasks = [
        f"{tmp_path}/pairs.jsonl(kind=retrieval, pooling={pooling}, name={pooling})"
        for pooling in ("mean", "last")
    ]
    recipe = read_recipe(
        {
            "corpus": {"source": "bundled:wikipedia", "limit": 60, "length": 32, "held_out": 0.2},
            "model": {"pretrained": str(llama), "changes": "bidirectional()"},
            "objective": "mntp",
            "training": {"steps": 2, "batch_size": 4},
            "evaluation": {"rows": 8, "masks": "token", "measures": "by-length(32)"},
            "tasks": tasks,
            "study": {"seeds": 1, "arms": {"both": {}}, "contrasts": [["both", "no-pretraining"]]},
        }
    )
    result = run_study(recipe, tmp_path / "out", jobs=1)
    assert not result["failures"]
    cards = [path.read_text() for path in tmp_path.glob("out/stages/*/checkpoint/README.md")]
    assert cards and all("needs transformers>=5.2" in card for card in cards)
    lines = [*read_lines(tmp_path / "out" / "records.jsonl")]
    scores = {(line["arm"], line["measure"]) for line in lines if line["kind"] == "task"}
    assert {
        (arm, name) for arm in ("both", "no-pretraining") for name in ("mean", "last")
    } <= scores
    heldout = {line["arm"] for line in lines if line["kind"] == "heldout"}
    assert heldout == {"both"}
