"""Packed rows mean what padded rows mean: documents of a row are read, and written, as if each
stood alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from accelerator import by_document
from maskwise.evaluation import EvaluationSettings, HeldOut
from maskwise.evaluation.evaluate import Text, evaluate
from maskwise.masking import Masker
from maskwise.models import attention
from maskwise.models.attention import DocumentIds
from maskwise.models.families import ENCODERS, adapter_of, masked_logits, prediction_head
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import Denoising, MaskedLanguageModelling, predicting
from maskwise.objectives.base import model_inputs
from maskwise.text import Rows, read_pieces, tokenise, train_tokenizer
from maskwise.text.documents import Document
from maskwise.training import MaskedSource, TrainingSettings, train
from training_tools import GEMMA

SENTENCE = "the cat sat on a mat while two dogs ran after one red ball in our green garden"
WORDS = SENTENCE.split()
TEXTS = [
    " ".join(WORDS[(i * 5 + j * (i + 1)) % len(WORDS)] for j in range(3 + 4 * i % 17))
    for i in range(12)
]
SIZES: dict[str, dict[str, Any]] = {
    "modernbert": {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "eurobert": {"num_key_value_heads": 1},
    "esm": {"position_embedding_type": "rotary", "token_dropout": True},
    "esm-1b": {"token_dropout": True, "emb_layer_norm_before": True},
}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN["intermediate_size"] = 48
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
SEQ2SEQ: dict[str, dict[str, Any]] = {"bart": BART, "t5": T5, "mt5": T5, "umt5": T5}
# So small a cap changes the scores.
CAPPED = GEMMA | {"attn_logit_softcapping": 0.5}
SEQ2SEQ["t5gemma"] = {"encoder": CAPPED, "decoder": CAPPED | {"hidden_size": 24}}
# Transformers 5.17 computes umt5 wrongly, and maskwise refuses it there.
WRITING = [
    pytest.param(name, marks=pytest.mark.pinned) if name == "umt5" else name for name in SEQ2SEQ
]
SEPARATING = [name for name, family in ENCODERS.items() if family.separates]
ARCHITECTURES = {"esm-1b": "esm"}
"""Of variants of a family."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 3, vocab_size=120)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Rows:
    documents = [Document(str(i), text) for i, text in enumerate(TEXTS)]
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=48)
    return Rows.of(pieces, "packed")


def build(family: str, tokenizer: Any) -> Any:
    if family in SEQ2SEQ:
        return new_model(
            new_config(family, tokenizer, 48, kind="encoder-decoder", **SEQ2SEQ[family]), seed=3
        ).eval()
    architecture = ARCHITECTURES.get(family, family)
    config = new_config(architecture, tokenizer, 48, **PLAIN | SIZES.get(family, {}))
    return new_model(config, seed=3).eval()


def test_a_training_leaves_no_hook_on_an_encoder(rows: Rows, tokenizer: Any) -> None:
    """ESM's embeddings are scaled by documents with one."""
    model = build("esm", tokenizer)
    chosen = TrainingSettings(steps=1, batch_size=2, precision="no")
    source = MaskedSource(rows, Masker(tokenizer), chosen)
    objective = MaskedLanguageModelling(model)
    objective(source.batches(0, rank=0, ranks=1)[0])
    assert model.esm._forward_pre_hooks
    train(objective, source, chosen)
    assert not model.esm._forward_pre_hooks and not model.esm._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("fails", [False, True])
def test_an_evaluation_leaves_no_hook_and_no_mode_on_an_encoder(
    fails: bool, rows: Rows, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("esm", tokenizer).train()
    seen = []
    judged = HeldOut.__call__

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        found = judged(self, *args, **more)
        seen.append(len(model.esm._forward_pre_hooks))
        if fails:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(HeldOut, "__call__", watched)
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        evaluate(model, Text(tokenizer, rows), EvaluationSettings(rows=2))
    assert seen and all(seen) and model.training
    assert not model.esm._forward_pre_hooks and not model.esm._forward_pre_hooks_with_kwargs


def compared(objective: Any, packed: Any, alone: Any) -> None:
    """Packed rows have the losses and gradients of single documents."""
    objective.double()  # losses of mt5 are near 30, where float32 is too coarse for 1e-5
    outcomes = []
    for batch in (packed, alone):
        outcome = objective(batch)
        outcome.total.backward()
        named = objective.named_parameters()
        slopes = {name: p.grad.clone() for name, p in named if p.grad is not None}
        outcomes.append((outcome.each.detach().sort().values, slopes))
        objective.zero_grad()
    (own, changed), (wanted, known) = outcomes
    assert len(own) == len(wanted) > 5
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)
    for name, slope in known.items():
        torch.testing.assert_close(changed[name], slope, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", [*SEPARATING, *ARCHITECTURES])
def test_documents_of_a_packed_row_are_read_as_if_alone(
    family: str, rows: Rows, tokenizer: Any
) -> None:
    """Logits and gradients at the masked tokens, which are the same in both layouts."""
    model, mask = build(family, tokenizer), Masker(tokenizer, ratio=0.3, seed=1)
    packed = mask(rows.line(range(len(rows))), epoch=0)
    alone = mask(rows.laid("document").line(range(len(TEXTS))), epoch=0)
    assert packed.line.packed and not alone.line.packed and len(rows) < len(TEXTS)
    compared(MaskedLanguageModelling(model), packed, alone)


@pytest.mark.parametrize("family", SEPARATING)
def test_without_the_argument_nothing_changes(family: str, rows: Rows, tokenizer: Any) -> None:
    """The packed row as one text, by transformers' own attention and by ours."""
    model = build(family, tokenizer)
    batch = Masker(tokenizer, seed=1)(rows.laid("joined").line([0, 1]))
    assert batch.documents is None
    with torch.no_grad():
        before = model(**batch).logits
        attention.separate(model)
        assert model.config._attn_implementation == attention.NAME
        after = model(**batch).logits
    assert torch.equal(before, after)


def test_capped_scores_are_those_of_transformers(tokenizer: Any) -> None:
    """Also in padded rows, and in a decoder that generates."""
    model = build("t5gemma", tokenizer)
    # The attention ``sdpa`` of transformers before 5.21 ignores caps.
    model.set_attn_implementation("eager")
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.mul_(10)
    ids = torch.randint(6, 40, (3, 12), generator=torch.manual_seed(0))
    ids[1:, 7:] = tokenizer.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    found = []
    for _ in range(2):
        with torch.no_grad():
            logits = model(**inputs, labels=ids).logits
            found.append((logits, model.generate(**inputs, max_new_tokens=6)))
        attention.separate(model)
    (before, written), (after, again) = found
    assert model.config._attn_implementation == attention.NAME
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert torch.equal(written, again)


@pytest.mark.parametrize("target", ["full", "spans"])
@pytest.mark.parametrize("family", WRITING)
def test_documents_are_written_as_if_alone(
    family: str, target: str, rows: Rows, tokenizer: Any
) -> None:
    corruption = f"infill(target='{target}')"
    mask = Masker(tokenizer, ratio=0.3, seed=1, corruption=corruption, policy="span")
    packed = mask(rows.line(range(len(rows))), epoch=0)
    alone = mask(rows.laid("document").line(range(len(TEXTS))), epoch=0)
    assert packed.cut == 0 and packed.written is not None
    compared(Denoising(build(family, tokenizer)), packed, alone)


def test_families_that_cannot_read_one_document_a_row(rows: Rows, tokenizer: Any) -> None:
    config = new_config("distilbert", tokenizer, 48, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    assert not adapter_of(config).separates
    assert MaskedLanguageModelling.reads("packed", config) == "document"
    assert MaskedLanguageModelling.reads("joined", config) == "joined"
    assert MaskedLanguageModelling.reads("packed", new_config("bert", tokenizer, 48)) == "packed"
    assert (
        Denoising.reads("joined", new_config("t5", tokenizer, 48, kind="encoder-decoder"))
        == "document"
    )


def test_masks_and_positions() -> None:
    documents = DocumentIds(torch.tensor([[0, 0, 0, 1, 1, -1]]))
    assert documents.boundaries().tolist() == [0, 3, 5, 6]
    assert documents.mask()[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert documents.mask(causal=True)[0, 0, :5].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
    ]
    assert documents.mask(window=2)[0, 0, 0].int().tolist() == [1, 1, 0, 0, 0, 0]
    two_rows = DocumentIds(torch.tensor([[0, 0], [0, 0]]))
    assert two_rows.boundaries().tolist() == [0, 2, 4], (
        "a document does not reach into the next row"
    )


@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
@pytest.mark.parametrize("scaling", [None, 1.0, 0.3])
def test_attention_with_dropout_has_the_scale_that_is_asked_for(
    scaling: float | None, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 asks for 1, and others for the root of the width. A stand-in drops nothing."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 16, generator=draw)
    documents = DocumentIds(torch.tensor([[0, 0, 0, 0, 1, 1], [0, 1, 1, 2, 2, 2]]))
    mask = None
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    if layout == "padded":
        allowed[0, ..., 4:] = False
        mask = allowed
    elif layout == "packed":
        allowed = documents.mask()
    module = torch.nn.Module()
    module.is_causal = False

    def attended() -> torch.Tensor:
        more: dict[str, Any] = {"scaling": scaling, "dropout": 0.5}
        if layout == "packed":
            more["documents"] = documents
        return attention.attend(module, query, key, value, mask, **more)[0]

    scores = query @ key.mT * (0.25 if scaling is None else scaling)
    expected = (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value).transpose(1, 2)
    assert not torch.allclose(attended(), expected)
    monkeypatch.setattr(attention, "with_dropout", lambda shares, rate: shares)
    torch.testing.assert_close(attended(), expected)


def test_a_row_of_padding_stays_finite_with_dropout() -> None:
    query, key, value = torch.randn(3, 2, 4, 6, 16)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[1] = False
    out, _ = attention.attend(torch.nn.Module(), query, key, value, mask, dropout=0.5)
    assert out.isfinite().all()


def test_gradients_copy_no_scores_for_the_mask_and_no_logits_behind_the_head(
    tokenizer: Any,
) -> None:
    """Filling a view, and an index into the logits, copied whole arrays in the backward pass."""
    query, key, value = torch.randn(3, 2, 4, 6, 16, requires_grad=True)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    out, _ = attention.attend(torch.nn.Module(), query, key, value, mask, dropout=0.5)
    model = new_model(new_config("bert", tokenizer, 48, **PLAIN), seed=0)
    head = prediction_head(model)
    assert head is not None
    logits = head(torch.randn(3, model.config.hidden_size))
    copies = {"torch::autograd::CopySlices", "AsStridedBackward0", "SelectBackward0"}
    assert not nodes_of(out, logits) & copies


def nodes_of(*outputs: torch.Tensor) -> set[str]:
    """Return the names of the functions in the graphs of outputs."""
    waiting = [output.grad_fn for output in outputs]
    found = set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("length", [6, attention.SHORT_ROW + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_rows_in_half_precision_have_no_fused_gradient(
    dtype: torch.dtype, length: int
) -> None:
    """On processors, it takes 1.5 to 3 times as long as that of matrix products."""
    exact = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    out, _ = attention.attend(torch.nn.Module(), *rounded, mask)
    fused = any("ScaledDotProduct" in name for name in nodes_of(out))
    assert fused == (dtype == torch.float32 or length > attention.SHORT_ROW)
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, mask).transpose(1, 2)
    slope = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, slope)
    found = torch.autograd.grad(out, rounded, slope.to(dtype))
    near = {"rtol": 0.1, "atol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out.float(), expected, **near)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, **near)


@pytest.mark.parametrize("family", WRITING[1:4])
def test_relative_positions_count_without_a_mask_too(family: str, tokenizer: Any) -> None:
    """In training with dropout on a processor, an encoder lost them where no mask was given."""
    config = new_config(
        family, tokenizer, 48, kind="encoder-decoder", **SEQ2SEQ[family] | {"dropout_rate": 1e-6}
    )
    model = new_model(config, seed=3).train()
    attention.separate(model)
    ids = torch.arange(10, 22).reshape(2, 6)
    with torch.no_grad():
        expected = model.encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        found = model.encoder(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.pinned
@pytest.mark.parametrize("family", SEPARATING)
def test_attention_of_variable_length_is_the_masked_one(
    family: str, monkeypatch: pytest.MonkeyPatch, rows: Rows, tokenizer: Any
) -> None:
    """What every family hands to torch's kernel for accelerators, by a stand-in that attends
    document by document and takes fewer heads of keys, as the kernel does.
    """
    calls = []

    def noted(*given: Any, **options: Any) -> Any:
        q, k, _, *_ = given
        calls.append((options["window_size"], q.shape[1], k.shape[1], "enable_gqa" in options))
        return by_document(*given, **options)

    model = build(family, tokenizer)
    batch = Masker(tokenizer, ratio=0.3, seed=1)(rows.line(range(len(rows))))
    row, column = batch.where.unbind(1)
    with torch.no_grad():
        masked = masked_logits(model, model_inputs(model, batch), row, column)
        monkeypatch.setattr(attention, "_can_be_ragged", lambda query, options: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", noted)
        ragged = masked_logits(model, model_inputs(model, batch), row, column)
    assert torch.allclose(masked, ragged, atol=1e-5)
    assert len(calls) == model.config.num_hidden_layers
    windows, *heads = zip(*calls)
    assert len(set(windows)) == 1 + (family == "modernbert") and (7, 7) not in windows
    # Keys of grouped heads are handed over as they are, and the kernel is told so.
    grouped = family == "eurobert"
    assert {*zip(*heads)} == {(2, 1 if grouped else 2, grouped)}


@pytest.mark.pinned
@pytest.mark.parametrize("family", SEPARATING)
def test_padded_rows_on_an_accelerator_are_read_as_with_a_mask(
    family: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    """Each row is one document of the kernel for variable lengths, and its padding another."""
    model = build(family, tokenizer)
    pieces = read_pieces(
        tokenise([Document(str(i), text) for i, text in enumerate(TEXTS)], tokenizer),
        tokenizer=tokenizer,
        length=48,
    )
    batch = Masker(tokenizer, ratio=0.3, seed=1)(Rows.of(pieces, "document").line(range(8)))
    assert batch.attention_mask is not None and batch.documents is None
    row, column = batch.where.unbind(1)
    with torch.no_grad():
        attention.separate(model)
        assert "documents" not in model_inputs(model, batch)
        masked = masked_logits(model, model_inputs(model, batch), row, column)
        monkeypatch.setattr(attention, "has_ragged_kernel", lambda device: True)
        monkeypatch.setattr(attention, "_can_be_ragged", lambda query, options: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_document)
        inputs = model_inputs(model, batch)
        assert "attention_mask" not in inputs
        assert inputs["documents"].ends is batch.ends[0]
        ragged = masked_logits(model, inputs, row, column)
    torch.testing.assert_close(ragged, masked, rtol=1e-4, atol=1e-5)


def test_without_torchs_kernel_documents_are_kept_apart_by_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch before 2.11 has no kernel with windows, and before 2.12 none for grouped queries."""
    cuda = torch.device("cuda")
    assert attention.has_ragged_kernel(cuda) == attention.HAS_VARLEN
    monkeypatch.setattr(attention, "HAS_VARLEN", False)
    assert not attention.has_ragged_kernel(cuda)
    monkeypatch.setattr(attention, "HAS_GROUPED_VARLEN", False)
    monkeypatch.setattr(attention, "_can_be_ragged", lambda query, options: True)
    monkeypatch.setattr(attention, "_ragged", lambda *given: "the kernel")
    query = torch.randn(1, 2, 6, 4)
    documents = DocumentIds(torch.tensor([[0, 0, 0, 1, 1, 1]]))
    module = torch.nn.Module()
    module.is_causal = False
    module.num_key_value_groups = 2
    assert attention.attend(module, query, query, query, None, documents=documents)[0] == (
        "the kernel"
    )
    one = query[:, :1]
    found, _ = attention.attend(module, query, one, one, None, documents=documents)
    scores = query @ one.mT * 0.5
    expected = scores.masked_fill(~documents.mask(), -torch.inf).softmax(-1) @ one
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    "show", [[[0, 1, 1, 1]], [[1, 0, 1, 1]], [[1, 1, 1, 1]]], ids=["left", "within", "none"]
)
def test_rows_with_other_padding_keep_their_mask(
    show: list[list[int]], monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    """Padding before or between tokens changes positions, and one row would be several runs."""
    monkeypatch.setattr(attention, "has_ragged_kernel", lambda device: True)
    model = build("bert", tokenizer)
    attention.separate(model)
    ids = torch.full((2, 4), 11)
    given = {"input_ids": ids, "attention_mask": torch.tensor(show).expand(2, 4)}
    batch = Masker(tokenizer, ratio=0.5, seed=0)(given)
    if show == [[1, 1, 1, 1]]:
        batch = replace(batch, attention_mask=None)
        assert batch.ends[0] is not None and batch.ends[0].tolist() == [0, 4, 8]
    else:
        assert batch.ends[0] is None
    assert "documents" not in model_inputs(model, batch)


def test_a_model_that_no_training_has_changed_keeps_its_attention(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setattr(attention, "has_ragged_kernel", lambda device: True)
    model = build("bert", tokenizer)
    given = {
        "input_ids": torch.full((2, 4), 11),
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2),
    }
    before = model.config._attn_implementation
    assert "attention_mask" in model_inputs(model, Masker(tokenizer, ratio=0.5)(given))
    assert model.config._attn_implementation == before != attention.NAME


def test_values_are_passed_to_the_kernel_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values are often parts of one matrix product."""
    given: list[torch.Tensor] = []

    def kernel(*lines: Any, **options: Any) -> torch.Tensor:
        given[:] = lines[:3]
        return torch.empty(given[0].shape)

    monkeypatch.setattr(attention, "_can_be_ragged", lambda query, options: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    documents = DocumentIds(torch.zeros(2, 5, dtype=torch.long))
    rows = torch.randn(2, 5, 3, 4, 8)  # (B, L, 3, H, D)
    lines = [line.transpose(1, 2) for line in rows.unbind(2)]
    attention.attend(torch.nn.Module(), *lines, None, documents=documents)
    for line, seen in zip(lines, given, strict=True):
        assert seen.shape == (10, 4, 8) and seen.data_ptr() == line.data_ptr()
    # The kernel needs the numbers of a head to be neighbours.
    turned = torch.randn(2, 4, 8, 5).mT
    attention.attend(torch.nn.Module(), turned, turned, turned, None, documents=documents)
    assert all(seen.shape == (10, 4, 8) and seen.stride(-1) == 1 for seen in given)


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_held_out_rows_are_read_as_training_reads_them(
    family: str, tokenizer: Any, rows: Rows
) -> None:
    """Documents apart, and not each with its neighbours in a packed row."""
    objective = predicting(build(family, tokenizer)).eval()
    held_out = HeldOut(rows, {"token": Masker(tokenizer, ratio=0.3, seed=0)}, None)
    with torch.no_grad():
        outcomes = [objective(batch) for batch in held_out.batches["token"]]
        together = [objective(dict(batch)) for batch in held_out.batches["token"]]
        [line] = held_out(objective)
    apart = sum(float(outcome.total) for outcome in outcomes) / line["targets"]
    assert line["loss"] == pytest.approx(apart, rel=1e-6)
    assert sum(float(outcome.total) for outcome in together) / line["targets"] != pytest.approx(
        apart, rel=1e-6
    )
