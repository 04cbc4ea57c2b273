"""What differs between families of models: positions, heads, and what some of them lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from maskwise.base.errors import MaskwiseError
from maskwise.models.families import adapter_of, decoder_inputs, most_tokens
from maskwise.models.loading import check_start, new_config
from maskwise.studies import trial
from maskwise.studies.trial import check_step
from training_tools import ARCHITECTURES, LENGTH, MORE, SMALL, config, tokenizer

MORE_FAMILIES = (
    *("convbert", "ernie", "mra", "nystromformer", "roformer", "yoso"),
    *("data2vec-text", "ibert", "longformer", "luke", "roberta-prelayernorm", "xlm-roberta-xl"),
    "xmod",
)
"""Families that are not among ``ARCHITECTURES``."""
OTHERS: dict[str, dict[str, Any]] = {
    "esm": {"position_embedding_type": "absolute"},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": LENGTH},
    "xmod": {"default_language": "en_XX"},
}


def small(architecture: str) -> dict[str, Any]:
    """The settings of a tiny model, without those that depend on the tokenizer and the row."""
    plain = AutoConfig.for_model(architecture)
    fields = {**SMALL, **MORE.get(architecture, {}), **OTHERS.get(architecture, {})}
    left_out = ("max_position_embeddings", "vocab_size")
    return {
        name: value
        for name, value in fields.items()
        if hasattr(plain, name) and not name.endswith("token_id") and name not in left_out
    }


def with_pad_1() -> Any:
    """A tokenizer whose padding token has the id 1."""
    made = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer)
    names = {"unk_token": "[PAD]", "pad_token": "[UNK]"}
    for name in ("cls_token", "sep_token", "mask_token"):
        names[name] = getattr(tokenizer(), name)
    made.add_special_tokens(names)
    return made


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE_FAMILIES])
def test_a_new_model_reads_rows_of_full_length(architecture: str) -> None:
    """Families that count positions from the padding id had too few of them."""
    words = with_pad_1() if architecture == "mpnet" else tokenizer()
    made = new_config(architecture, words, LENGTH, **small(architecture))
    assert most_tokens(made) == LENGTH
    network = AutoModelForMaskedLM.from_config(made).eval()
    used: list[Any] = []
    for name, part in network.named_modules():
        if name.endswith("embeddings.position_embeddings") and "entity" not in name:
            part.register_forward_pre_hook(lambda _, given: used.append(given[0]))
    ids = torch.randint(5, 40, (2, LENGTH))
    # Every token that is not padding has a position of its own, also the unknown token.
    ids[0, 3] = words.unk_token_id
    assert network(input_ids=ids).logits.shape[:2] == ids.shape
    if adapter_of(made).counts_from_pad and used:
        first = words.pad_token_id + 1
        assert used[0][0].tolist() == [*range(first, first + LENGTH)]


def test_a_new_mpnet_needs_the_padding_id_that_its_code_assumes() -> None:
    """Its code takes the token with id 1 for padding, which is [UNK] in maskwise's tokenizers."""
    with pytest.raises(MaskwiseError, match="padding token has the id 1; got 0") as refused:
        new_config("mpnet", tokenizer(), LENGTH)
    assert "tokenizer.name" in str(refused.value)
    # The configuration of a checkpoint may name another id.
    assert most_tokens(AutoConfig.for_model("mpnet", pad_token_id=0)) == 510


def test_led_reads_longer_texts_than_it_writes() -> None:
    """Its configuration has other names for positions, so it had a billion of them."""
    given = {"decoder_start_token_id": 2, "pad_token_id": 1}
    made = AutoConfig.for_model("led", max_decoder_position_embeddings=64, **given)
    assert (most_tokens(made), most_tokens(made, written=True)) == (16384, 64)
    with pytest.raises(MaskwiseError, match="got 65; allowed: ≤ 64"):
        decoder_inputs(made, torch.zeros(1, 65, dtype=torch.long))
    longer = new_config("led", tokenizer(), 20_000, kind="encoder-decoder")
    assert most_tokens(longer) >= 20_000 <= most_tokens(longer, written=True)


def test_a_model_with_layers_for_each_language_needs_one_of_them() -> None:
    """The first batch ended in a traceback."""
    fields = small("xmod") | {"default_language": None}
    made = new_config("xmod", tokenizer(), LENGTH, **fields)
    for loaded, fact in ((False, "model.settings.default_language"), (True, "config.json")):
        with pytest.raises(MaskwiseError, match="allowed: en_XX") as refused:
            check_start(made, 45, loaded=loaded)
        assert fact in str(refused.value)
    check_start(new_config("xmod", tokenizer(), LENGTH, **small("xmod")), 45, loaded=False)


REFORMER = {
    "axial_pos_embds_dim": [8, 8],
    "axial_pos_shape": [4, 4],
    "attn_layers": ["local", "local"],
    "feed_forward_size": 24,
    "local_attn_chunk_length": 4,
    "is_decoder": False,
}


def test_a_family_that_is_not_known_takes_a_step_before_a_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reformer accepts rows of one length only. Its first step ended in a traceback."""
    made = config("reformer", **REFORMER)
    check_step(made, 16)
    with pytest.raises(
        MaskwiseError, match="reformer cannot be trained on rows of 12 tokens"
    ) as no:
        check_step(made, 12)
    assert "axial_pos_shape" in str(no.value) and "allowed: bert, " in str(no.value)
    check_step(config("roformer"), 16)
    # Large models and known families are not tried.
    check_step(config("bert"), 1000)
    monkeypatch.setattr(trial, "MOST_WEIGHTS", 10)
    check_step(made, 8)


def test_a_trial_writes_as_much_as_the_decoder_can() -> None:
    """LED's decoder has fewer positions, so a valid study was refused."""
    fields: dict[str, Any] = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    fields |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "attention_window": 4}
    fields |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64}
    made = AutoConfig.for_model(
        "led", max_encoder_position_embeddings=64, max_decoder_position_embeddings=8, **fields
    )
    before = torch.get_rng_state()
    check_step(made, 24)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_advice_of_a_trial_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood within the "got" of other advice."""
    error = MaskwiseError("no such model", got=5, do="use another")

    def step(config: Any, length: int) -> None:
        raise error

    monkeypatch.setattr(trial, "_step", step)
    with pytest.raises(MaskwiseError) as refused:
        check_step(config("ernie", vocab_size=901, pad_token_id=70), 16)
    assert str(refused.value) == str(error)


def test_the_trial_of_a_family_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def step(config: Any, length: int) -> None:
        tried.append((config.vocab_size, config.num_hidden_layers))
        assert len(tried) > 1, "no small models"

    monkeypatch.setattr(trial, "_step", step)
    made = config("ernie", vocab_size=900, pad_token_id=70)
    check_step(made, 16)
    check_step(config("ernie", vocab_size=900, pad_token_id=70), 16)
    # The whole model is tried if the small one fails, and each configuration once.
    assert tried == [(71, 1), (900, 2)]
    assert (made.vocab_size, made.num_hidden_layers) == (900, 2)
