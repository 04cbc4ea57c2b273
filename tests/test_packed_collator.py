"""Lines of documents without padding, for other trainers: models of transformers as they are give
the losses of padded batches, or are refused.
"""

from __future__ import annotations

import copy
import pickle
import sys
import types
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import DataLoader
from transformers import AttentionInterface, AttentionMaskInterface, Trainer, TrainingArguments

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE, MaskingCollator
from test_docs import blocks_of
from training_tools import bart, model, tokenizer

FAMILIES = [
    *("bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "modernbert"),
    *("eurobert", "nomic_bert", "esmc"),
]
TEXTS = [" ".join(f"w{(7 * i + j * j) % 40}" for j in range(4 + i % 9)) for i in range(12)]
ROWS = [{**row, "step": 0, "epoch": 0} for row in mw.encode(tokenizer(), TEXTS, max_length=30)]
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 6}


def build(family: str, attention: str) -> Any:
    """A model of transformers that maskwise has not touched."""
    fields = WINDOWS if family == "modernbert" else {}
    made = model(family, **fields).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                # Fresh weights are so small that attention hardly matters.
                weight.mul_(8)
    made.set_attn_implementation(attention)
    return made


def masker(**settings: Any) -> mw.Masker:
    return mw.Masker(tokenizer(), **{"ratio": 0.4, "seed": 3, **settings})


def test_a_model_may_be_wrapped_and_others_are_refused() -> None:
    network = build("bert", "sdpa")
    plain = mw.PackedCollator(masker(), model=network)(ROWS)
    wrapped = mw.PackedCollator(masker(), model=torch.nn.DataParallel(network))(ROWS)
    assert torch.equal(plain["labels"], wrapped["labels"]) and plain.keys() == wrapped.keys()
    with pytest.raises(MaskwiseError, match=r"got Linear; give the model of transformers"):
        mw.PackedCollator(masker(), model=torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_line_is_padded_by_a_document_without_targets(family: str) -> None:
    network = build(family, "sdpa")
    plain = mw.PackedCollator(masker(), model=network)(ROWS)
    padded = mw.PackedCollator(masker(), model=network, pad_to_multiple_of=64)(ROWS)
    size = plain["input_ids"].shape[1]
    assert size % 64 and padded["input_ids"].shape[1] == size + -size % 64
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(padded[name][:, :size], plain[name])
    assert (padded["labels"][:, size:] == IGNORE).all()
    assert (padded["input_ids"][:, size:] == tokenizer().pad_token_id).all()
    ends = padded["cu_seq_lens_q"].tolist()
    assert ends == [*plain["cu_seq_lens_q"].tolist(), padded["input_ids"].shape[1]]
    torch.testing.assert_close(network(**padded).loss, network(**plain).loss)
    already = mw.PackedCollator(masker(), model=network, pad_to_multiple_of=1)(ROWS)
    assert already["cu_seq_lens_q"].tolist() == plain["cu_seq_lens_q"].tolist()


def test_padding_longer_than_the_positions_is_read_and_documents_are_not() -> None:
    small = model("bert", max_position_embeddings=32).eval()
    plain = mw.PackedCollator(masker(), model=small)(ROWS)
    padded = mw.PackedCollator(masker(), model=small, pad_to_multiple_of=512)(ROWS)
    assert padded["input_ids"].shape[1] == 512
    torch.testing.assert_close(small(**padded).loss, small(**plain).loss)
    longest = plain["max_length_q"]
    short = model("bert", max_position_embeddings=longest - 1)
    with pytest.raises(
        MaskwiseError, match=rf"{longest} tokens; allowed: ≤ {longest - 1}; .*split"
    ):
        mw.PackedCollator(masker(), model=short)(ROWS)
    # Rotary positions have no table.
    rotary = model("modernbert", max_position_embeddings=longest - 1)
    assert mw.PackedCollator(masker(), model=rotary)(ROWS)["max_length_q"] == longest


def in_documents(line: dict[str, Any], name: str) -> list[list[int]]:
    ends = line["cu_seq_lens_q"].tolist()
    return [line[name][0, begin:end].tolist() for begin, end in pairwise(ends)]


def test_a_line_is_the_padded_batch_without_its_padding() -> None:
    line = mw.PackedCollator(masker(policy="whole-word"), model=build("bert", "sdpa"))(ROWS)
    padded = MaskingCollator(masker(policy="whole-word"))(ROWS)
    lengths = padded["attention_mask"].sum(1).tolist()
    for name in ("input_ids", "labels"):
        rows = [row[:length].tolist() for row, length in zip(padded[name], lengths)]
        assert in_documents(line, name) == rows
    assert in_documents(line, "position_ids") == [list(range(length)) for length in lengths]
    assert line["max_length_q"] == line["max_length_k"] == max(lengths)
    assert line["cu_seq_lens_q"].dtype == line["cu_seq_lens_k"].dtype == torch.int32
    assert torch.equal(line["cu_seq_lens_q"], line["cu_seq_lens_k"])
    assert line["input_ids"].shape == (1, sum(lengths)) and (line["labels"] != IGNORE).sum() > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_models_as_they_are_have_the_losses_of_padded_batches(family: str) -> None:
    network = build(family, "sdpa")
    line = mw.PackedCollator(masker(), model=network)(ROWS)
    padded = MaskingCollator(masker())(ROWS)
    with torch.no_grad():
        wanted = network(**padded).loss
        found = network(**line).loss
        del line["attention_mask"]
        mixed = network(**line).loss
    assert network.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert abs(mixed - wanted) > 1e-4, "without its mask, the line is one text"


def varlen(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """What a kernel of variable length computes, by the names that flash attention reads."""
    assert attention_mask is None
    ends = options["cu_seq_lens_q"].tolist()
    lengths = [end - begin for begin, end in pairwise(ends)]
    assert options["cu_seq_lens_k"].tolist() == ends and query.shape[2] == ends[-1]
    assert options["max_length_q"] == options["max_length_k"] == max(lengths)
    window = options.get("sliding_window") or ends[-1]
    parts = []
    for document in zip(*(x.split(lengths, dim=2) for x in (query, key, value))):
        place = torch.arange(document[0].shape[2])
        near = (place[:, None] - place).abs() < window
        scale = options.get("scaling")
        parts.append(scaled_dot_product_attention(*document, near, scale=scale, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("family", [*FAMILIES, "esm"])
def test_kernels_of_variable_length_get_the_boundaries_and_no_mask(family: str) -> None:
    AttentionInterface.register("stand_in_flash", varlen)
    AttentionMaskInterface.register("stand_in_flash", lambda *sizes, **options: None)
    padded = MaskingCollator(masker())(ROWS)
    network = build(family, "eager")
    with torch.no_grad():
        wanted = network(**padded).loss
        # By its name, for which transformers would look on the hub.
        network.config._attn_implementation = "stand_in_flash"
        line = mw.PackedCollator(masker(), model=network)(ROWS)
        found = network(**line).loss
    assert "attention_mask" not in line
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def esm_with_dropout() -> Any:
    network = model("esm", token_dropout=True)
    network.config._attn_implementation = "flash_attention_2"
    return network


REFUSED: dict[str, tuple[Any, str]] = {
    "distilbert": (lambda: model("distilbert"), "distilbert"),
    "mpnet": (lambda: model("mpnet"), "mpnet"),
    "deberta-v2": (lambda: model("deberta-v2"), "deberta-v2"),
    "esm by a mask": (lambda: model("esm"), "sdpa, token_dropout False"),
    "esm with token dropout": (esm_with_dropout, "flash_attention_2, token_dropout True"),
    "eager": (lambda: build("bert", "eager"), "eager"),
    "flex": (lambda: build("bert", "flex_attention"), "flex_attention"),
    "bart": (bart, "bart, which is an encoder-decoder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_would_mix_documents_are_refused(name: str) -> None:
    network, got = REFUSED[name]
    with pytest.raises(MaskwiseError) as refused:
        mw.PackedCollator(masker(), model=network())
    assert refused.value.got == got and "pads" in refused.value.do


def test_corruptions_of_a_decoder_are_refused_and_others_may_move_tokens() -> None:
    network = build("bert", "sdpa")
    with pytest.raises(MaskwiseError) as refused:
        mw.PackedCollator(masker(corruption="infill"), model=network)
    assert str(refused.value.got).startswith("corruption Infill")
    with pytest.raises(MaskwiseError, match="diffusion"):
        mw.PackedCollator(mw.Noising(tokenizer()), model=network)
    moving = masker(corruption="insert(target='detect')", ratio=0.3)
    line = mw.PackedCollator(moving, model=network)(ROWS)
    padded = MaskingCollator(moving)(ROWS)
    lengths = padded["attention_mask"].sum(1).tolist()
    assert [len(ids) for ids in in_documents(line, "input_ids")] == lengths
    assert sum(lengths) > sum(len(row["input_ids"]) for row in ROWS)


def test_without_a_model_the_caller_is_warned_and_nothing_is_looked_at() -> None:
    with pytest.warns(UserWarning, match="without model="):
        collate = mw.PackedCollator(masker())
    assert "attention_mask" not in collate(ROWS)


def test_rows_that_are_packed_already_are_cut_into_their_documents() -> None:
    """As they are in batches of tensors: a name for every token."""
    ids = torch.full((2, 10), 7)
    names = torch.tensor([[0] * 4 + [1] * 6, [2] * 10])
    rows = {"input_ids": ids, "example_id": names, "step": 0, "epoch": 0}
    line = mw.PackedCollator(masker(), model=build("bert", "sdpa"))(rows)
    assert line["cu_seq_lens_q"].tolist() == [0, 4, 10, 20]


def test_a_loader_copies_no_model_into_its_workers() -> None:
    network = build("modernbert", "sdpa")
    collate = mw.PackedCollator(masker(), model=network)
    weights = sum(p.numel() for p in network.parameters())
    assert len(pickle.dumps(collate)) < weights
    lines = list(DataLoader(ROWS, batch_size=6, collate_fn=collate, num_workers=1))
    expected = [collate(ROWS[:6]), collate(ROWS[6:])]
    for line, wanted in zip(lines, expected):
        assert torch.equal(line["labels"], wanted["labels"])
        masks, same = line["attention_mask"], wanted["attention_mask"]
        assert all(torch.equal(masks[kind], same[kind]) for kind in WINDOWS["layer_types"])


def test_the_stock_trainer_takes_lines_with_two_masks(tmp_path: Path) -> None:
    network = build("modernbert", "sdpa")
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collate = mw.PackedCollator(masker(), model=network)
    before = copy.deepcopy(network.state_dict())
    result = Trainer(network, arguments, train_dataset=ROWS, data_collator=collate).train()
    assert result.global_step == 2 and result.training_loss > 0
    assert any(not torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_the_example_for_lightning_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in, which calls what Lightning's documentation says it calls."""

    class Module(torch.nn.Module):
        def log(self, name: str, value: torch.Tensor, **options: Any) -> None:
            seen.append(float(value.detach()))

    class Fit:
        def __init__(self, **options: Any):
            pass

        def fit(self, module: Any, loader: DataLoader) -> None:
            # Lightning leaves the mode of a model as it is.
            assert module.model.training and module.model.bert.training
            optimizer = module.configure_optimizers()
            for number, line in enumerate(loader):
                optimizer.zero_grad()
                module.training_step(line, number).backward()
                optimizer.step()

    seen: list[float] = []
    lightning = types.ModuleType("lightning")
    lightning.LightningModule, lightning.Trainer = Module, Fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    page = Path(__file__).parent.parent / "docs" / "drop-ins.md"
    [block] = [b for b in blocks_of(page) if "import lightning" in b.text]
    # As ``from_pretrained`` gives it.
    names = {"tokenizer": tokenizer(), "model": model("bert").eval(), "texts": TEXTS * 4, "mw": mw}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block.text, page.name, "exec"), names)
    assert len(seen) >= 3 and seen[-1] > 0
