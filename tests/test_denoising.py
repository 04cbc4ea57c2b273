"""Denoising with encoder–decoders: the loss of transformers, on targets alone; models from nothing;
what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from maskwise import Masker, encode
from maskwise.base import errors
from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE
from maskwise.models.families import decoder_inputs, prediction_head
from maskwise.models.loading import load_model, new_config, new_model
from maskwise.objectives import Denoising
from maskwise.recipe import Recipe
from maskwise.studies.checkpoints import HEAD, save_model
from maskwise.studies.stages import Stage
from maskwise.studies.work import start_of_task
from maskwise.text import Document, Prepared, load_tokenizer, tokenise, train_tokenizer
from maskwise.training.checkpoint import save_checkpoint
from tiny import maskwise, write_inputs
from training_tools import GEMMA, bart
from training_tools import tokenizer as words

TEXTS = [
    "The cat sat on the mat and looked at the dog.",
    "A dog ran away.",
    "Nobody saw the mat again.",
]
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
}
# Small, so that a head without the cap is another one.
CAPPED = GEMMA | {"final_logit_softcapping": 3.0}
SIZES: dict[str, dict[str, Any]] = {
    "bart": BART,
    "pegasus": BART,  # a family without an adapter of its own
    # As many layers as the decoder has: transformers 5.23 cannot generate otherwise.
    "t5": {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
    "umt5": {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
    "t5gemma": {"encoder": CAPPED, "decoder": CAPPED},
}
PLAIN = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
PLAIN |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
PLAIN |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64)
PLAIN |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
EXPERTS = {"num_experts": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "blenderbot": PLAIN,
    "fsmt": {**PLAIN, "src_vocab_size": 155, "tgt_vocab_size": 155},  # is called as a whole
    "led": {**PLAIN, "attention_window": 4},
    "longt5": {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
    "m2m_100": {**PLAIN, "scale_embedding": True},
    "marian": PLAIN,
    "mbart": PLAIN,
    "nllb-moe": {**PLAIN, **EXPERTS, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "switch_transformers": {"d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 64, **EXPERTS},
}
"""Families without an entry, of which two have experts."""

# Transformers 5.17 computes umt5 wrongly, and maskwise refuses it there.
ARCHITECTURES = [
    pytest.param(name, marks=pytest.mark.pinned) if name == "umt5" else name for name in SIZES
]
SHOWN = ("infill", "infill(target='spans')", "t5", "t5(target='full')", "delete")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    trained = train_tokenizer(TEXTS * 3, vocab_size=120)
    trained.add_tokens([AddedToken(f"<extra_id_{i}>", special=True) for i in range(20)])
    trained.add_tokens([AddedToken(name, special=True) for name in ("[R]", "[S]", "[X]")])
    return trained


def model(architecture: str, tokenizer: Any, **more: Any) -> PreTrainedModel:
    config = new_config(
        architecture, tokenizer, 32, kind="encoder-decoder", **SIZES[architecture], **more
    )
    return new_model(config, seed=0, log_unigram=torch.randn(len(tokenizer))).eval()


def test_umt5_is_refused_where_transformers_computes_it_wrongly(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 5.17, tokens of the decoder read only as much of the text as they are far in theirs."""
    monkeypatch.setattr(errors, "_version", {"transformers": "5.17.0"}.get)
    with pytest.raises(MaskwiseError, match=r"umt5 .*got 5\.17\.0; allowed: 5\.18 or newer; pip"):
        model("umt5", tokenizer)
    model("t5", tokenizer)


@pytest.mark.parametrize("shown", SHOWN[:5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_transformers_own(architecture: str, shown: str, tokenizer: Any) -> None:
    network = model(architecture, tokenizer)
    batch = Masker(tokenizer, policy="span", ratio=0.3, corruption=shown, seed=0)(
        encode(tokenizer, TEXTS), epoch=0
    )
    outcome = Denoising(network)(batch)
    own = network(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    )
    assert outcome.divisor == batch.targets == (batch.labels >= 0).sum() > 0
    torch.testing.assert_close(outcome.total / outcome.divisor, own.loss)
    (outcome.total / outcome.divisor).backward()
    ours = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    own.loss.backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, msg=name)


@pytest.mark.parametrize("architecture", OTHERS)
def test_losses_of_other_families_are_those_of_all_logits(architecture: str) -> None:
    """In evaluation mode, because experts draw random numbers."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    given = {"vocab_size": 155, **ids, **OTHERS[architecture]}
    network = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(architecture, **given)).eval()
    labels = torch.randint(5, 150, (2, 6))
    labels[0, 3:] = IGNORE
    batch = {"input_ids": torch.randint(5, 150, (2, 8)), "labels": labels}
    outcome = Denoising(network)(batch)
    read = decoder_inputs(network.config, labels)
    with torch.no_grad():
        logits = network(input_ids=batch["input_ids"], decoder_input_ids=read).logits
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(outcome.total.detach(), nats)
    outcome.total.backward()
    alone = prediction_head(network) is not None
    assert alone == (architecture != "fsmt")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_without_targets_and_padding_change_no_loss(
    architecture: str, tokenizer: Any
) -> None:
    network = model(architecture, tokenizer)
    plain = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 9, 3]])}
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0], [5, 6, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[8, 9, 3, -100], [-100] * 4]),
    }
    torch.testing.assert_close(Denoising(network)(padded).total, Denoising(network)(plain).total)
    assert Denoising(network)(padded).divisor == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_model_writes_and_is_an_ordinary_folder(
    architecture: str, tokenizer: Any, tmp_path: Any
) -> None:
    model(architecture, tokenizer).save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    written = again.generate(torch.tensor([[2, 6, 7, 3]]), max_new_tokens=6, num_beams=2)
    starts = {"bart": tokenizer.sep_token_id, "t5gemma": tokenizer.cls_token_id}
    assert written[0, 0] == starts.get(architecture, tokenizer.pad_token_id)
    torch.testing.assert_close(
        dict(load_model(tmp_path, kind="encoder-decoder").named_parameters()),
        dict(again.named_parameters()),
    )
    with pytest.raises(MaskwiseError, match="needs an encoder; got"):
        load_model(tmp_path)


def test_a_t5_with_a_head_of_its_own_keeps_it_and_its_scale(tokenizer: Any, tmp_path: Any) -> None:
    """T5 1.1 as it is published: gated, its head not tied to the embeddings, and states not
    scaled.
    """
    model(
        "t5", tokenizer, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network = load_model(tmp_path, kind="encoder-decoder")
    for number in range(2):  # as published, and as we saved it
        assert torch.equal(network.lm_head.weight, weights["lm_head.weight"])
        batch = Masker(tokenizer, policy="span", ratio=0.3, corruption="t5", seed=0)(
            encode(tokenizer, TEXTS), epoch=0
        )
        outcome = Denoising(network.eval())(batch)
        states = network(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            output_hidden_states=True,
        ).decoder_hidden_states[-1]
        logits = states @ weights["lm_head.weight"].T
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        torch.testing.assert_close(outcome.total / outcome.divisor, expected)
        network.save_pretrained(tmp_path / str(number))
        network = load_model(tmp_path / str(number), kind="encoder-decoder")


@pytest.mark.parametrize("shown", SHOWN)
def test_tokens_of_a_batch_are_what_the_encoder_reads(shown: str, tokenizer: Any) -> None:
    batch = Masker(tokenizer, ratio=0.3, corruption=shown, seed=0)(
        encode(tokenizer, TEXTS), epoch=0
    )
    assert batch.tokens == int(batch.attention_mask.sum())


def test_a_start_token_that_is_missing_is_one_line(tokenizer: Any) -> None:
    network = model("t5", tokenizer)
    network.config.decoder_start_token_id = None
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[8, 9]])}
    with pytest.raises(MaskwiseError, match="no start token for its decoder; set decoder_start"):
        Denoising(network)(batch)


def test_a_checkpoint_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Any, capsys: Any
) -> None:
    recipe = write_inputs(tmp_path)
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()
    ]
    tools, folder = train_tokenizer(texts, vocab_size=300), tmp_path / "model"
    model("bart", tools).save_pretrained(folder)
    tools.save_pretrained(folder)
    settings = [
        "objective=denoise",
        "tasks=[]",
        "masking.policy=span",
        "masking.corruption=infill",
        f"model={{pretrained: {folder}}}",
        f"tokenizer={{name: {folder}}}",
    ]

    def refused(*changes: str) -> str:
        assert maskwise("pretrain", recipe, *settings, *changes, "--out", tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "corpus.length is more than the model's positions; got 96; allowed: ≤ 64" in refused(
        "corpus.length=96"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": None}))
    assert "this bart model has no start token for its decoder" in refused()


def test_targets_that_are_too_long_are_one_line(tokenizer: Any) -> None:
    network = model("bart", tokenizer, max_position_embeddings=8)
    with pytest.raises(
        MaskwiseError, match="longer than the decoder's positions; got 9; allowed: ≤ 8"
    ):
        Denoising(network)(
            {"input_ids": torch.tensor([[5]]), "labels": torch.zeros(1, 9, dtype=torch.long)}
        )


@pytest.mark.parametrize("shown", ["bert", "mask-only", "replace", "delete(target='detect')"])
def test_a_corruption_that_gives_the_decoder_no_text_is_refused(shown: str) -> None:
    with pytest.raises(
        Exception, match="objective denoise needs a corruption whose targets are a text"
    ):
        Recipe(objective="denoise", masking={"corruption": shown})


def test_a_recipe_says_which_kind_of_model_it_trains() -> None:
    recipe = Recipe(objective="denoise", masking={"corruption": "t5", "policy": "span"})
    assert recipe.kind == "encoder-decoder" and recipe.judged_on() == ("whole-word sentinels",)
    assert Recipe().kind == "encoder" and Recipe().judged_on() == ("token",)
    with pytest.raises(Exception, match="all objectives must train models of one kind"):
        Recipe(objective={"mlm": {}, "denoise": {"masking": {"corruption": "t5"}}})
    with pytest.raises(Exception, match="allowed: mlm, mntp, clm, diffusion, denoise"):
        Recipe(objective="atd")


def test_a_tokenizer_without_a_mask_token_is_enough_at_every_stage(tmp_path: Path) -> None:
    """T5's is one. ``check`` accepted it, and the first stage after the preparation refused it."""
    given = PreTrainedTokenizerFast(
        tokenizer_object=words().backend_tokenizer,
        **{name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "sep_token")},
    )
    assert given.mask_token is None
    tokens = tokenise([Document(str(n), f"w{n} w{n + 1}") for n in range(9)], given)
    sizes = {"length": 8, "layout": "packed", "held_out": 0.2}
    ready = Prepared.make(tmp_path / "prepare-0", tokens, given, **sizes)
    assert ready.tokenizer.pad_token_id == given.pad_token_id
    save_checkpoint(tmp_path / "pretrain-0", bart(), given, card=HEAD)
    stage = Stage("finetune", {}, ("prepare-0", "pretrain-0"))
    start, tokenizer = start_of_task(stage, SimpleNamespace(output=tmp_path.joinpath))
    assert (start.checkpoint, len(tokenizer)) == (tmp_path / "pretrain-0", len(given))
    save_model(tmp_path / "pretrain-0", tmp_path / "saved", of={"arm": "a"})
    assert len(load_tokenizer(str(tmp_path / "saved"), needs_mask=False)) == len(given)
    assert "`a`" in (tmp_path / "saved" / "README.md").read_text()


def test_denoising_from_recipe_to_checkpoint_and_judged_by_all_that_it_may_write(
    tmp_path: Any, capsys: Any
) -> None:
    path = write_inputs(tmp_path)
    small = [
        "objective=denoise",
        "tokenizer.sentinels=20",
        "training.steps=6",
        "training.eval_every=0",
        "training.batch_size=4",
        "training.group_by_length=true",
        "masking={policy: span, ratio: 0.3, corruption: t5}",
        "tasks=[]",
        "model={architecture: t5, settings: {d_model: 16, d_kv: 8, num_heads: 2, num_layers: "
        "1, d_ff: 32}}",
    ]
    assert maskwise("pretrain", path, *small, "--out", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    targets = {line["masks"]: line["targets"] for line in result["heldout"]}
    assert set(targets) == {
        f"{p} {w}" for p in ("token", "whole-word") for w in ("sentinels", "spans", "full")
    }
    assert targets["token full"] > 3 * targets["token spans"] > 0
    assert result["flops"] > 0 and result["targets"] > 0
    checkpoint = tmp_path / "out" / "checkpoint"
    assert AutoModelForSeq2SeqLM.from_pretrained(checkpoint).config.decoder_start_token_id == 0
    text = tmp_path / "text.txt"
    text.write_text("Bake lomi nupra.\n" * 30)
    assert maskwise("evaluate", checkpoint, "--text", text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["per_byte"] > 0 for row in found if row["split"] == "test")
    assert {row["split"] for row in found} == {"test", "unigram"}
    assert maskwise("evaluate", checkpoint, "--with", "pairs('bundled:pairs')") == 2
    assert "needs an encoder; got t5" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "over, said",
    [
        (
            ["model.architecture=bart", "model.settings={}"],
            "masked language modelling needs an encoder; got bart",
        ),
        (
            ["objective=denoise", "masking.corruption=infill"],
            "denoising needs an encoder-decoder; got bert",
        ),
        (
            [
                "objective=denoise",
                "masking.corruption=t5",
                "model={architecture: t5, settings: {d_model: 16}}",
            ],
            "the tokenizer has no sentinel tokens",
        ),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused_before_any_work(
    over: list[str], said: str, tmp_path: Any, capsys: Any
) -> None:
    assert maskwise("pretrain", write_inputs(tmp_path), *over, "--out", tmp_path / "out") == 2
    assert said in " ".join(capsys.readouterr().err.split())
