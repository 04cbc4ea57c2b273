"""The objectives, worked by hand. Rows are written out as a teacher would on a board; losses come
from a calculator.

How to read a row: ``the {cat} sat`` says what is done to ``cat`` (a token is inserted before it, or
it is deleted); ``the:0 +:1 cat:0`` says what the model reads, with its labels; ``+`` stands for any
inserted token.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE, MaskedBatch
from maskwise.models.families import ENCODERS
from maskwise.objectives import OBJECTIVES, Loss, objective, objective_class
from maskwise.objectives.discriminative import ReplacedTokenDetection
from training_tools import Language, config, model, spec_of
from training_tools import tokenizer as language_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    names = {name: i for i, name in enumerate(SPECIAL + WORDS)}
    made = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    special = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def rows(*lines: str, first: int = 0) -> list[dict[str, Any]]:
    """``the {cat} sat`` between [CLS] and [SEP]; the layer ``weight`` is 1 at what stands in
    braces.
    """
    made = []
    for number, line in enumerate(lines, first):
        words = ["[CLS]", *line.split(), "[SEP]"]
        plain = [word.strip("{}") for word in words]
        marks = [float(word.startswith("{")) for word in words]
        ids = tokenizer().convert_tokens_to_ids(plain)
        made.append({"input_ids": ids, "example_id": number, "weight": marks})
    return made


def made(name: str, *lines: str, length: int | None = None) -> MaskedBatch:
    """The objective's own batch of these lines, in which just what stands in braces is chosen."""
    given = {"policy": "weighted(units='token')", "ratio": 1.0}
    maker = objective_class(name).maker(tokenizer(), seed=0, length=length, **given)
    return maker(rows(*lines), epoch=0)


def written(batch: MaskedBatch) -> list[str]:
    """The rows as the model reads them, ``word:label``, without padding, which has no label."""
    there = batch.input_ids != PAD
    if batch.attention_mask is not None:
        assert torch.equal(there, batch.attention_mask == 1)
    assert (batch.labels[~there] == IGNORE).all()
    lines = []
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist()):
        words = tokenizer().convert_ids_to_tokens(ids)
        marks = ["" if label == IGNORE else f":{label}" for label in labels]
        shown = [word + mark for word, mark in zip(words, marks) if word != "[PAD]"]
        lines.append(" ".join(shown))
    return lines


# Added-token detection


def plus(line: str) -> str:
    """With ``+`` for whatever was inserted, which is random but an ordinary token."""
    words = line.split()
    assert all(word.split(":")[0] in WORDS for word in words if word.endswith(":1"))
    return " ".join("+:1" if word.endswith(":1") else word for word in words)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("the {cat} sat", "[CLS] the:0 +:1 cat:0 sat:0 [SEP]"),
        (
            "{the} cat sat",
            "[CLS] +:1 the:0 cat:0 sat:0 [SEP]",
        ),  # before the first token of the text: behind [CLS]
        # never behind the last, before [SEP]
        ("the cat {sat}", "[CLS] the:0 cat:0 +:1 sat:0 [SEP]"),
        (
            "the {cat} {sat}",
            "[CLS] the:0 +:1 cat:0 +:1 sat:0 [SEP]",
        ),  # one before each, so never two in a row
        ("{cat}", "[CLS] +:1 cat:0 [SEP]"),
        # nothing was inserted, and that is an answer
        ("the cat sat", "[CLS] the:0 cat:0 sat:0 [SEP]"),
        ("", "[CLS] [SEP]"),
    ],
)
def test_added_tokens(line: str, shown: str) -> None:
    alone, beside = (
        made("atd", line, "{a} {mat}"),
        made("atd", line, "{the} {cat} {sat} {on} {a} {mat}"),
    )
    # longer rows beside it only pad it
    assert plus(written(alone)[0]) == plus(written(beside)[0]) == shown
    assert plus(written(alone)[1]) == "[CLS] +:1 a:0 +:1 mat:0 [SEP]"


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        (9, "[CLS] the:0 +:1 cat:0 sat:0 on:0 +:1 a:0 [SEP]"),
        # an inserted token may be the last that is left
        (8, "[CLS] the:0 +:1 cat:0 sat:0 on:0 +:1 [SEP]"),
        (7, "[CLS] the:0 +:1 cat:0 sat:0 on:0 [SEP]"),
        (4, "[CLS] the:0 +:1 [SEP]"),
        (3, "[CLS] the:0 [SEP]"),
    ],
)
def test_added_tokens_overflow_at_the_end_of_the_text_and_sep_stays_last(
    length: int, shown: str
) -> None:
    batch = made("atd", "the {cat} sat on {a}", length=length)
    assert batch.input_ids.shape == (1, length)
    full = made(
        "atd", "the {cat} sat on {a}", "the {cat} sat on {a} mat and then it ran", length=length
    )
    assert plus(written(batch)[0]) == plus(written(full)[0]) == shown


# Deleted-token detection


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("the {cat} sat", "[CLS] the:0 sat:1 [SEP]:0"),
        # the first: missed at the one that is first now
        ("{the} cat sat", "[CLS] cat:1 sat:0 [SEP]:0"),
        ("the cat {sat}", "[CLS] the:0 cat:0 [SEP]:1"),  # the last: missed at [SEP], where else
        ("the {cat} {sat} {on} a mat", "[CLS] the:0 a:1 mat:0 [SEP]:0"),  # a run is missed once
        ("the {cat} sat {on} a", "[CLS] the:0 sat:1 a:1 [SEP]:0"),
        ("{the} {cat}", "[CLS] [SEP]:1"),  # nothing is left but [CLS] and [SEP]
        ("the cat sat", "[CLS] the:0 cat:0 sat:0 [SEP]:0"),
        ("", "[CLS] [SEP]"),
    ],
)
def test_deleted_tokens(line: str, shown: str) -> None:
    longer = made("dtd", line, "the cat sat on a {mat} and then it ran")
    assert written(longer) == [
        shown,
        "[CLS] the:0 cat:0 sat:0 on:0 a:0 and:1 then:0 it:0 ran:0 [SEP]:0",
    ]


# Both


class Encoder(nn.Module):
    """An "encoder" whose hidden states are read off a table: some numbers a word. It notes what it
    was given.

    With ``ahead=1`` each token has the state of the one behind it: so [CLS] has that of the first
    word.
    """

    def __init__(self, table: Tensor, *, dropout: float = 0.0, ahead: int = 0):
        super().__init__()
        self.table, self.drop, self.ahead = nn.Parameter(table), nn.Dropout(dropout), ahead
        self.config = SimpleNamespace(
            hidden_size=table.shape[1], model_type="table", is_encoder_decoder=False
        )

    @property
    def base_model(self) -> Encoder:
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        self.given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return SimpleNamespace(
            last_hidden_state=self.drop(self.table[input_ids.roll(-self.ahead, 1)])
        )


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_the_loss_of_detection_is_that_of_a_calculator(name: str) -> None:
    """The head reads the two numbers of each word as its two logits. Padding or [CLS] would cost
    1,000 nats.
    """
    table = torch.stack([torch.arange(15.0) / 10, torch.arange(15.0).flip(0) / 7], 1)
    table[[PAD, CLS]] = torch.tensor([-1000.0, 1000.0])
    arm = objective(name, Encoder(table))
    with torch.no_grad():
        arm.head.weight.copy_(torch.eye(2))
        arm.head.bias.copy_(torch.tensor([0.1, -0.2]))
    batch = made(name, "the {cat} sat .", "{then} it")
    target = batch.labels >= 0
    zero, one = (table[batch.input_ids[target]] + torch.tensor([0.1, -0.2])).T
    margins = (one - zero) * (2 * batch.labels[target] - 1)
    expected = -sum(math.log(logistic(margin)) for margin in margins.tolist())
    outcome = arm(batch)
    assert int(outcome.divisor) == len(margins) == batch.targets
    assert outcome.total.item() == pytest.approx(expected, rel=1e-5) and expected < 50
    assert float(outcome.each.sum()) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(arm.model.given["attention_mask"], (batch.input_ids != PAD).long())
    outcome.total.backward()
    assert not arm.model.table.grad[[PAD, CLS]].any()


# Contrastive sentence embedding


def sentences(count: int) -> list[dict[str, Any]]:
    """``the …``, ``cat …``, ``sat …``: the number of a row is that of its first word."""
    return rows(*(" ".join([word, *WORDS[: 1 + n % 3]]) for n, word in enumerate(WORDS[:count])))


def test_twins_are_the_same_rows_and_each_others_target() -> None:
    maker = objective_class("cse").maker(tokenizer(), seed=0)
    batch = maker(sentences(6), epoch=0)
    assert torch.equal(batch.input_ids[:3], batch.input_ids[3:])
    first = tokenizer().convert_ids_to_tokens(batch.input_ids[:3, 1].tolist())
    assert first == ["the", "sat", "a"]
    assert batch.labels.tolist() == [3, 4, 5, 0, 1, 2]
    assert not batch.selected.any()
    # The same texts on two ranks: every other row, not the first half of a rank's rows.
    parts = [maker(part, epoch=0).line.example_id for part in (sentences(8)[:4], sentences(8)[4:])]
    whole = maker(sentences(8), epoch=0).line.example_id
    assert sorted(np.concatenate(parts)) == sorted(whole)


def contrast(table: Tensor, *, dropout: float = 1e-9, **more: Any) -> tuple[Any, MaskedBatch]:
    """cse over the table, its head the identity times ten, and a batch of two sentences and their
    twins.
    """
    arm = objective("cse", Encoder(table, dropout=dropout, ahead=1))
    arm.temperature = more.pop("temperature", 0.05)
    with torch.no_grad():
        arm.head.weight.copy_(10 * torch.eye(table.shape[1]))
        arm.head.bias.zero_()
    return arm, objective_class("cse").maker(tokenizer(), seed=0)(sentences(4), epoch=0)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_the_loss_of_contrast_is_that_of_a_calculator(temperature: float) -> None:
    """Random states, dropout .4 and no head that makes it easy: cosines and softmax in plain
    Python.
    """
    torch.manual_seed(2)
    arm, _ = contrast(torch.randn(15, 5), dropout=0.4, temperature=temperature)
    nn.init.normal_(arm.head.weight)
    nn.init.normal_(arm.head.bias)
    batch = objective_class("cse").maker(tokenizer(), seed=0)(sentences(8), epoch=0)
    torch.manual_seed(11)
    outcome = arm.train()(batch)
    torch.manual_seed(11)
    states = torch.dropout(arm.model.table[batch.input_ids.roll(-1, 1)], 0.4, True)[:, 0]
    z = torch.tanh(states @ arm.head.weight.T + arm.head.bias).tolist()
    expected = 0.0
    for i in range(8):
        near = {j: math.exp(cosine(z[i], z[j]) / temperature) for j in range(8) if j != i}
        expected -= math.log(near[(i + 4) % 8] / sum(near.values()))
    assert outcome.total.item() == pytest.approx(expected, rel=1e-4)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_dropout_makes_the_pair_in_evaluation_too_and_leaves_no_trace() -> None:
    """An encoder without dropout gets 0.1 for these passes alone, and probes with one seed
    agree.
    """
    torch.manual_seed(3)
    arm, batch = contrast(torch.randn(15, 5), dropout=0.0)
    modes = modes_of(arm.eval())
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(arm(batch).total.item())
    assert losses[0] == losses[1] != losses[2]
    assert modes_of(arm) == modes
    del batch.input_ids
    with pytest.raises(KeyError):
        arm(batch)
    assert modes_of(arm) == modes


def modes_of(arm: nn.Module) -> list[Any]:
    return [(module.training, getattr(module, "p", None)) for module in arm.modules()]


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("where", ["hidden", "attention", "nowhere"])
def test_twins_differ_wherever_an_encoder_has_its_dropout(architecture: str, where: str) -> None:
    """Attention drops by the mode of its module, not of its dropout layer: in evaluation twins were
    equal.
    """
    names = {
        "distilbert": ("dropout", "attention_dropout"),
        "modernbert": ("mlp_dropout", "attention_dropout"),
    }
    names_of = names.get(architecture, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
    rates = {} if where == "nowhere" else {names_of[where == "attention"]: 0.4}
    arm = objective("cse", model(architecture, **rates)).eval()
    batch = objective_class("cse").maker(language_tokenizer(), seed=0)(
        Language(8).line(torch.arange(8))
    )
    torch.manual_seed(0)
    first = arm(batch).total.item()
    torch.manual_seed(1)
    assert arm(batch).total.item() != first


def test_what_contrast_refuses() -> None:
    maker = objective_class("cse").maker(tokenizer(), seed=0)
    for count in (2, 3, 5):
        with pytest.raises(
            MaskwiseError, match=f"cse reads half of the rows of a batch twice; got {count} rows"
        ):
            maker(sentences(count), epoch=0)
    with pytest.raises(
        MaskwiseError, match="objective does not mask, so it has no masking settings; got ratio"
    ):
        objective_class("cse").maker(tokenizer(), seed=0, ratio=0.3)
    packed = {"input_ids": torch.full((4, 6), 7), "example_id": torch.arange(24).view(4, 6) // 3}
    with pytest.raises(MaskwiseError, match="one text per row"):
        maker(packed, epoch=0)
    bare = Encoder(torch.zeros(15, 2))
    del bare.drop
    with pytest.raises(MaskwiseError, match="needs dropout"):
        objective("cse", bare)


# Replaced-token detection


class Generator(nn.Module):
    """Says what it is told to: logits of ``sure`` for the word that stands in ``says`` at each
    position.
    """

    def __init__(self, says: Tensor, vocabulary: int, *, sure: float):
        super().__init__()
        self.config = SimpleNamespace(model_type="told", is_encoder_decoder=False)
        self.logits = nn.Parameter(sure * torch.nn.functional.one_hot(says, vocabulary).float())

    def forward(self, **inputs: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits)


def masked_language(**masking: Any) -> MaskedBatch:
    """Four rows of the doubled language, some tokens masked, the last row padded."""
    given = Language(4).line(torch.arange(4))
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    given["attention_mask"][3, 10:] = 0
    given["input_ids"][3, 10:], given["input_ids"][3, 9] = PAD, SEP
    maker = objective_class("rtd").maker(language_tokenizer(), seed=5, **{"ratio": 0.3, **masking})
    return maker(given, epoch=0)


def test_replaced_means_not_the_texts_token() -> None:
    """The generator is right at every second mask: no label there. Loss: its own, plus 50 times the
    mean binary one.
    """
    batch = masked_language()
    assert batch.targets > 8 and batch.attention_mask is not None
    truth = torch.where(batch.labels == IGNORE, batch.input_ids, batch.labels)
    target = batch.labels != IGNORE
    replaced = torch.zeros_like(target)
    replaced[target] = torch.arange(batch.targets) % 2 == 0
    says = torch.where(replaced, 5 + (truth - 5 + 7) % 40, truth)  # another word
    arm = objective("rtd", model("bert")).eval()
    arm.generator = Generator(says, 45, sure=60.0)
    outcome = arm(batch)
    # By hand: the model reads what the generator says, and its head gives one number a token.
    read = {"input_ids": says, "attention_mask": batch.attention_mask}
    score = arm.head(arm.model.base_model(**read).last_hidden_state).squeeze(-1)
    content = (truth > MASK) & (batch.attention_mask == 1)
    margins = torch.where(replaced, score, -score)[content].tolist()
    told = [-math.log(logistic(margin)) for margin in margins]
    said = 60.0 * replaced[target]  # cross-entropy of a sure generator
    expected = float(said.mean()) + 50 * sum(told) / len(told)
    assert int(outcome.divisor) == len(said) and len(told) < batch.input_ids.numel() - 8
    assert outcome.total.item() / len(said) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(outcome.each, said, atol=1e-4, rtol=0)


def test_the_detector_reads_the_generators_words_at_every_target_however_it_was_shown() -> None:
    """Under 80/10/10 too: neither a [MASK] nor a token at random, nor one that was kept, reaches it
    with a label that is not its own. (ELECTRA's released code keeps 15 % of the targets.)"""
    batch = masked_language(ratio=0.8, corruption="bert(mask=0.4, random=0.3)")
    target = batch.labels != IGNORE
    truth = torch.where(target, batch.labels, batch.input_ids)
    shown = batch.input_ids[target]
    assert (shown == MASK).any() and (shown == truth[target]).any()
    assert ((shown != MASK) & (shown != truth[target])).any()
    arm = objective("rtd", model("bert")).eval()
    read: list[Tensor] = []
    arm.model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"]), with_kwargs=True
    )
    arm(batch)
    replaced = read[0] != truth
    assert not (read[0][target] == MASK).any() and replaced.sum() > 5
    assert not replaced[~target].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("architecture", ["eurobert", "esmc"])
def test_the_generator_of_rtd_has_keys_for_its_heads(architecture: str, groups: int) -> None:
    """Heads that share keys must be a multiple of them, and ESMC's do not share any."""
    shape = {"hidden_size": 32, "num_attention_heads": 4}
    shape["num_key_value_heads"] = 4 if architecture == "esmc" else groups
    for share in (0.25, 0.75):
        arm = ReplacedTokenDetection(model(architecture, **shape), share=share).eval()
        assert arm(masked_language()).total.isfinite()


def test_judging_ends_also_after_an_error() -> None:
    arm = objective("mlm", model("bert"))
    with pytest.raises(KeyError), arm.judging():
        raise KeyError
    assert arm.training and arm.model.training


def test_each_part_of_rtd_is_taught_by_its_own_loss_alone() -> None:
    """The detector sends no gradient into the generator, nor the generator's loss any into the
    detector.
    """
    batch = masked_language()

    def taught(weight: float) -> list[list[Tensor]]:
        torch.manual_seed(0)
        arm = ReplacedTokenDetection(model("bert"), weight=weight).eval()
        torch.manual_seed(1)
        arm(batch).total.backward()
        parts = (arm.generator, arm.model)
        return [[p.grad for p in part.parameters() if p.grad is not None] for part in parts]

    (generator, detector), (same, thrice) = taught(1.0), taught(3.0)
    assert generator and detector
    torch.testing.assert_close(generator, same, atol=0, rtol=0)
    torch.testing.assert_close([3 * slope for slope in detector], thrice)


# Five families of encoders, with and without a pooler

FAMILIES = ["bert", "roberta", "distilbert", "electra", "modernbert"]
POOLED = {"bert", "roberta"}


def family(architecture: str, *, pooler: bool) -> Any:
    net = model(architecture)
    if pooler:
        prefix = net.base_model_prefix
        setattr(net, prefix, type(net.base_model)(config(architecture), add_pooling_layer=True))
    return net


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if objective_class(name).kind == "encoder"]
)
@pytest.mark.parametrize(
    ("architecture", "pooler"),
    [(a, p) for a in FAMILIES for p in (False, True) if not p or a in POOLED],
)
def test_every_objective_teaches_every_family(
    name: str, architecture: str, pooler: bool, tmp_path: Any
) -> None:
    """A finite loss, gradient in every block, and an ordinary checkpoint: no keys but the model's
    own.
    """
    if name == "clm" and not ENCODERS[architecture].separates:
        with pytest.raises(MaskwiseError, match="objective clm"):
            objective(name, family(architecture, pooler=pooler))
        return
    spec = spec_of(name, tmp_path / "teacher", architecture)
    arm = objective(spec, family(architecture, pooler=pooler))
    given = Language(8).line(torch.arange(8))
    given["salient"] = torch.where(given["word_ids"] % 3 == 0, given["word_ids"], -1)
    kind = objective_class(name)
    maker = kind.maker(language_tokenizer(), seed=0, length=24)
    outcome = arm(maker(given, epoch=0))
    assert isinstance(outcome, Loss) and outcome.total.isfinite() and outcome.divisor > 0
    outcome.total.backward()
    named = arm.model.base_model.named_parameters()
    taught = {name for name, p in named if p.grad is not None and p.grad.abs().sum() > 0}
    for block in (".0.", ".1.", "embeddings"):
        assert any(block in name for name in taught), block
    assert not any("pooler" in name for name in taught)
    arm.model.save_pretrained(tmp_path)
    again, loading = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and all(
        "pooler" in key for key in loading["unexpected_keys"]
    )
    plain = AutoModel.from_pretrained(tmp_path).eval()
    ids = given["input_ids"]
    expected = arm.eval().model.base_model(input_ids=ids).last_hidden_state
    for made in (again.eval().base_model, plain):
        torch.testing.assert_close(made(input_ids=ids).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["atd", "dtd", "cse", "rtd"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_objectives_with_a_head_of_their_own_need_no_language_model(
    name: str, architecture: str
) -> None:
    """A bare encoder, as ``AutoModel`` gives it: with its pooler, where the family has one."""
    torch.manual_seed(0)
    net = AutoModel.from_config(config(architecture))
    arm, kind = objective(name, net), objective_class(name)
    outcome = arm(
        kind.maker(language_tokenizer(), seed=0, length=24)(
            Language(8).line(torch.arange(8)), epoch=0
        )
    )
    outcome.total.backward()
    assert outcome.total.isfinite() and any(
        p.grad is not None and bool(p.grad.any()) for p in net.parameters()
    )
