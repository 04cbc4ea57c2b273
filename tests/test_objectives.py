"""Masked language modelling: the head on the targets alone gives the model's own loss and
gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertForMaskedLM

from maskwise.masking import IGNORE
from maskwise.models.families import prediction_head
from maskwise.objectives import (
    Denoising,
    MaskedLanguageModelling,
    chunks,
    discriminative,
    mlm,
    objective,
    objective_class,
)
from maskwise.objectives.base import MultiLabel
from maskwise.objectives.discriminative import AddedTokenDetection
from training_tools import ARCHITECTURES, Language, bart, config, model, tokenizer


def batch(*, targets: bool = True) -> dict[str, Tensor]:
    """Six rows, two of them padded, the last without any target."""
    generator = torch.Generator().manual_seed(1)
    ids = Language(6).ids
    attention = torch.ones_like(ids)
    attention[1, 9:] = attention[2, 4:] = 0
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & attention.bool() & targets
    chosen[5] = False
    return {
        "input_ids": torch.where(chosen, 4, ids).masked_fill(attention == 0, 0),
        "attention_mask": attention,
        "labels": torch.where(chosen, ids, IGNORE),
    }


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def compare(net: Any) -> None:
    """The objective's mean, gradients and logits against ``model(labels=…)``."""
    inputs = batch()
    own = net.eval()(**inputs)
    own.loss.backward()
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    total, count, *_ = MaskedLanguageModelling(net)(inputs)
    (total / count).backward()
    assert count == int((inputs["labels"] != IGNORE).sum()) > 10
    torch.testing.assert_close(total / count, own.loss, rtol=1e-6, atol=1e-6)
    found = gradients(net)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7, msg=name)


class Largest(TorchDispatchMode):
    """The most entries of any tensor that is made, all shapes, and where tensors of a shape lie."""

    entries = 0

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[tuple[int, ...], set[int]] = defaultdict(set)

    @property
    def shapes(self) -> Set[tuple[int, ...]]:
        return self.places.keys()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.entries = max([self.entries, *(tensor.numel() for tensor in tensors)])
        for tensor in tensors:
            self.places[tuple(tensor.shape)].add(tensor.data_ptr())
        return made


@pytest.fixture
def four_targets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks have four targets. The list gets the number of targets in each call of the head."""
    monkeypatch.setattr(chunks, "ENTRIES", 45 * 4)
    called: list[int] = []
    plain = mlm.read_head

    def counting(model: Any, read: Any, states: Tensor, truth: Tensor) -> Any:
        called.append(len(truth))
        return plain(model, read, states, truth)

    monkeypatch.setattr(mlm, "read_head", counting)
    return called


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_losses_in_chunks_are_the_models_own(architecture: str, four_targets: list[int]) -> None:
    compare(model(architecture))
    assert len(four_targets) > 4 and max(four_targets) == 4


@pytest.mark.parametrize("kind", ["mlm", "diffusion", "rtd", "tsdae", "type-weighted"])
def test_every_objective_has_the_same_gradients_in_chunks(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for entries in (1 << 26, 45 * 4):
        monkeypatch.setattr(chunks, "ENTRIES", entries)
        # The samples of rtd depend on the order of the draws, so replace them.
        monkeypatch.setattr(discriminative, "sampled", lambda logits: logits.argmax(-1))
        name = "mlm" if kind == "type-weighted" else kind
        net = model("bert")
        torch.manual_seed(0)
        trained = objective(name, net)
        if kind == "type-weighted":
            trained.tells_right = True
        batch = objective_class(name).maker(tokenizer(), seed=0)(
            Language(6).line(torch.arange(6)), epoch=0, step=0, total_steps=1
        )
        with Largest() as largest:
            loss = trained.eval()(batch)
            loss.total.backward()
        slopes = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
        found.append((loss, slopes))
        assert ((batch.targets, 45) in largest.shapes) == (entries > 45 * 4)
    (whole, expected), (parts, split) = found
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-5, atol=1e-5)
    if kind == "type-weighted":
        assert torch.equal(parts.right, whole.right) and len(parts.right) == batch.targets
    assert split.keys() == expected.keys()
    for name, slope in expected.items():
        torch.testing.assert_close(split[name], slope, rtol=1e-4, atol=1e-5, msg=name)


def test_in_bfloat16_few_numbers_of_targets_are_computed() -> None:
    """oneDNN makes kernels for each number, and keeps them."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 8, generator=generator, requires_grad=True)
    head = torch.randn(8, 20, generator=generator, requires_grad=True)
    truth = torch.randint(20, (400,), generator=generator)
    seen = set()

    def compute(states_MH: Tensor, truth_M: Tensor) -> tuple[Tensor, ...]:
        seen.add(len(truth_M))
        return (cross_entropy((states_MH @ head).float(), truth_M, reduction="none"),)

    def found(count: int, run: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            (losses,) = run(compute, states[:count], truth[:count])
        return [losses, *torch.autograd.grad(losses.sum(), (states, head))]

    for count in (1, 31, 300, 301, 389):
        usual = found(count, lambda compute, *given: compute(*given))
        for one, other in zip(found(count, partial(chunks.in_chunks, vocabulary=20)), usual):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    seen.clear()
    for count in range(257, 401):
        found(count, partial(chunks.in_chunks, vocabulary=20))
    assert len(seen) <= 9 and max(seen) <= 400 * 17 / 16
    # In single precision, there are no such kernels.
    (losses,) = chunks.in_chunks(compute, states[:257], truth[:257], vocabulary=20)
    assert 257 in seen and len(losses) == 257


def test_barts_losses_in_chunks_have_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    net = bart().eval()
    net.final_logits_bias.normal_(generator=torch.Generator().manual_seed(3))
    trained = Denoising(net)
    labels = Language(6).ids
    inputs = {"input_ids": labels.roll(1, 1), "labels": labels}
    whole = trained(inputs).total
    monkeypatch.setattr(chunks, "ENTRIES", 45 * 4)
    torch.testing.assert_close(trained(inputs).total, whole, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_many_targets_never_have_all_their_logits_in_memory(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In single precision, under autocast and in the gradient; losses are not rounded."""
    draw = torch.Generator().manual_seed(0)
    states, weight = torch.randn(600, 16, generator=draw), torch.randn(900, 16, generator=draw)
    bias = torch.randn(900, generator=draw)
    truth = torch.randint(0, 900, (600,), generator=draw)
    slope = torch.rand(600, generator=draw)
    monkeypatch.setattr(chunks, "ENTRIES", 900 * 64)

    def result(whole: bool, dtype: torch.dtype = torch.float32) -> list[Any]:
        states_, weight_, bias_ = given = [
            x.detach().to(dtype).requires_grad_() for x in (states, weight, bias)
        ]

        def compute(states: Tensor, truth: Tensor) -> tuple[Tensor]:
            return mlm.losses_alone(linear(states, weight_, bias_), truth)

        if whole:
            (losses,) = compute(states_, truth)
        else:
            (losses,) = chunks.in_chunks(compute, states_, truth, vocabulary=900)
        losses.backward(slope.to(dtype))
        return [losses.detach(), *(x.grad for x in given)]

    with torch.autocast("cpu", enabled=precision == "bf16"), Largest() as largest:
        found = result(whole=False)
    assert largest.entries == 900 * 64
    assert {each.dtype for each in found} == {torch.float32}
    exact = result(whole=True, dtype=torch.float64)
    with torch.autocast("cpu", enabled=precision == "bf16"):
        at_once = result(whole=True)
    # Gradients of chunks are summed in single precision, so ten chunks are no less exact than one.
    for one, other, usual in zip(found, exact, at_once, strict=True):
        assert (one - other).norm() <= 1.1 * (usual - other).norm() + 1e-6 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(("targets", "vocabulary"), [(0, 45), (1, 1), (70, 900), (7, 50_021)])
def test_losses_written_over_the_logits_have_the_same_bits(
    targets: int, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "ROOM", 3 * vocabulary)
    draw = torch.Generator().manual_seed(0)
    given = 5 * torch.randn(targets, vocabulary, generator=draw, dtype=dtype)
    truth = torch.randint(0, vocabulary, (targets,), generator=draw)
    slope = torch.randn(targets, generator=draw, dtype=dtype)
    found = []
    for losses_of in (chunks.token_losses, partial(cross_entropy, reduction="none")):
        logits = given.clone().requires_grad_()
        losses = losses_of(logits, truth)
        (gradient,) = torch.autograd.grad(losses, logits, slope)
        found.append((losses.detach(), gradient))
    (losses, gradient), (usual, expected) = found
    assert torch.equal(losses, usual) and torch.equal(gradient, expected)


def test_a_loss_and_its_gradient_are_written_over_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "ROOM", 900 * 2)
    states = torch.randn(60, 16, requires_grad=True)
    weight = torch.randn(900, 16, requires_grad=True)
    logits = linear(states, weight)
    written = []
    logits.register_hook(lambda slope: written.append(slope.data_ptr()))
    with Largest() as largest:
        losses = chunks.token_losses(logits, torch.arange(60))
        losses.sum().backward()
    assert written == [logits.data_ptr()]
    assert largest.places[60, 900] == {logits.data_ptr()}


def test_a_kept_graph_gives_the_same_gradient_again() -> None:
    logits = torch.randn(9, 45, requires_grad=True)
    losses = chunks.token_losses(logits.clone(), torch.arange(9))
    first = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    again = torch.autograd.grad(losses.sum(), logits)
    assert torch.equal(*first, *again)


def test_the_gradient_of_a_loss_can_be_differentiated() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([0, 3, 3, 6])
    assert torch.autograd.gradgradcheck(
        lambda logits: chunks.token_losses(logits.clone(), truth), (logits,)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_the_models_own(architecture: str) -> None:
    compare(model(architecture))


@pytest.mark.parametrize("architecture", ["bert", "electra", "modernbert"])
def test_untied_embeddings(architecture: str) -> None:
    compare(model(architecture, tie_word_embeddings=False))


def test_sparse_prediction_of_modernbert_changes_nothing() -> None:
    compare(model("modernbert", sparse_prediction=True))


OTHERS: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"embedding_size": 16},
    "deberta": {"pos_att_type": ["c2p"], "relative_attention": True},
    "deberta-v2": {"legacy": False},
    "data2vec-text": {},
    "longformer": {"attention_window": 4},
    "luke": {"entity_emb_size": 8, "entity_vocab_size": 9},
    "mobilebert": {"true_hidden_size": 8, "intra_bottleneck_size": 8, "embedding_size": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 8},
    "roformer": {"embedding_size": 16},
    "xlm-roberta-xl": {},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_loss_and_gradients_of_other_families_are_the_models_own(
    architecture: str, four_targets: list[int]
) -> None:
    """The head needs no entry, and runs on targets alone, in chunks."""
    compare(model(architecture, **OTHERS[architecture]))
    assert len(four_targets) > 4 and max(four_targets) == 4


class Shifted(BertForMaskedLM):
    """A user's own code after the encoder, which maskwise cannot know."""

    def forward(self, **inputs: Any) -> Any:
        outputs = super().forward(**inputs)
        labels = inputs.get("labels")
        outputs.logits = outputs.logits * 2
        if labels is not None:
            outputs.loss = cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        return outputs


def test_a_model_with_code_of_its_own_is_called_as_a_whole(four_targets: list[int]) -> None:
    compare(Shifted(config("bert")))
    assert not four_targets


def test_the_head_runs_on_targets_alone() -> None:
    """Hooks of the user on its layers run once, and those on the model not at all."""
    net = model("bert")
    seen, whole = [], []
    net.cls.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    net.bert.register_forward_hook(lambda *_: whole.append("encoder"))
    count = MaskedLanguageModelling(net)(batch()).divisor
    assert seen == [int(count)] and whole == ["encoder"]
    # The head has the layers that the model has at the time.
    net.cls = torch.nn.Identity()
    states = torch.randn(3, 16)
    head = prediction_head(net)
    assert head is not None and torch.equal(head(states), states)
    assert "forward" not in vars(net) and "forward" not in vars(net.bert)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "convbert"])
def test_a_batch_without_targets_is_zero_and_not_nan(architecture: str) -> None:
    net = model(architecture, **({"embedding_size": 16} if architecture == "convbert" else {}))
    loss, count, *_ = MaskedLanguageModelling(net)(batch(targets=False))
    assert (loss.item(), int(count)) == (0.0, 0)
    loss.backward()
    assert all(not g.any() for g in gradients(net).values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_types_reach_only_models_that_know_them(architecture: str) -> None:
    """Tokenizers offer them to all; a model that has none must not stumble, one that has must see
    them.
    """
    known = architecture in ("bert", "albert", "electra")
    net = model(
        architecture, type_vocab_size=2 if known else 0 if architecture == "deberta-v2" else 1
    )
    inputs, objective = batch(), MaskedLanguageModelling(net.eval())
    plain, *_ = objective(inputs)
    typed, *_ = objective({**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert torch.equal(plain, typed)
    if known:
        other, *_ = objective({**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])})
        assert not torch.equal(plain, other)


def test_losses_come_in_the_order_of_the_rows_with_their_places() -> None:
    net, inputs = model("bert").eval(), batch()
    losses, where = MaskedLanguageModelling(net).token_losses(inputs)
    logits = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    full = cross_entropy(
        logits.transpose(1, 2), inputs["labels"], ignore_index=IGNORE, reduction="none"
    )
    assert where.tolist() == (inputs["labels"] != IGNORE).nonzero().tolist()
    torch.testing.assert_close(losses, full[where[:, 0], where[:, 1]])
    assert losses.dtype == torch.float32


class Told(MultiLabel):
    """Multi-label without a model: the scores are given."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def logits(self, batch: Any) -> Tensor:
        return batch["scores"]


def test_every_label_of_a_row_is_one_target() -> None:
    """The loop divides by the labels, so the loss may not be divided before."""
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]])
    outcome = Told()({"scores": torch.zeros(2, 4), "labels": labels})
    assert int(outcome.divisor) == int((labels != IGNORE).sum()) == 8
    assert float(outcome.total / outcome.divisor) == pytest.approx(torch.tensor(2.0).log())


def test_twins_are_compared_in_single_precision_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    monkeypatch.setattr(
        "maskwise.objectives.discriminative.cross_entropy",
        lambda similar, *args, **more: (
            found.append(similar.dtype) or cross_entropy(similar, *args, **more)
        ),
    )
    twins = objective("cse", model("bert", hidden_dropout_prob=0.1))
    batch = type(twins).maker(tokenizer(), seed=0)(Language(8).line(torch.arange(8)), step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert twins(batch).total.isfinite()
    assert found == [torch.float32]


def test_rows_with_added_tokens_are_as_long_as_was_said() -> None:
    made = AddedTokenDetection.maker(tokenizer(), seed=0, length=12, ratio=0.9)
    ids = [2, *range(5, 15), 3]
    batch = made([{"input_ids": ids, "example_id": number} for number in range(9)], epoch=0)
    assert batch.input_ids.shape[1] == 12 and (batch.input_ids[:, -1] == 3).all()
