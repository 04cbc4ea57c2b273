"""Evaluation without fine-tuning: numbers by hand from models whose logits are known, and odd
files.
"""

from __future__ import annotations

import json
import math
import random
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from maskwise import encode
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation import (
    EvaluationSettings,
    overlap_record,
)
from maskwise.evaluation.evaluate import evaluate, evaluate_checkpoint
from maskwise.evaluation.measure import HeldOutText
from maskwise.evaluation.measures.cloze import Cloze, Fact, candidate_scores, questions_of, rank_of
from maskwise.evaluation.measures.heldout import FixedMasks
from maskwise.evaluation.measures.overlap import occurring
from maskwise.evaluation.scoring import log_probabilities, pseudo_perplexity
from maskwise.evaluation.sets import Pairs, load_set
from maskwise.evaluation.settings import as_measures
from maskwise.masking import Line, gather
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.loading import load_model, new_config, new_model
from maskwise.recipe import validate
from maskwise.text import Document, read_pieces, split, tokenise, train_tokenizer
from processes import processor_seconds
from tiny import maskwise
from training_tools import model as tiny_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ORDINARY = "the a cat dog bird sat ran in is lon par rome . ##s ##don ##is ##e"
VOCABULARY = [*SPECIAL, *ORDINARY.split()]
ID = {name: number for number, name in enumerate(VOCABULARY)}
MASK = ID["[MASK]"]
LAMA = Path(__file__).parents[2] / "shared" / "data" / "kilt_like" / "lama"


def wordpiece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(ID, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


TOKENIZER = wordpiece()


class Known(nn.Module):
    """Logits of a place are a table's row for the token before plus another's for the token
    behind.
    """

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        size = len(VOCABULARY)
        self.before = nn.Parameter(torch.randn(size, size, generator=drawn))
        self.behind = nn.Parameter(torch.randn(size, size, generator=drawn))
        sizes = {"vocab_size": size, "max_position_embeddings": 64, "pad_token_id": 0}
        self.config = SimpleNamespace(model_type="known", is_encoder_decoder=False, **sizes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        ids = torch.where(attention_mask.bool(), input_ids, 0)
        return SimpleNamespace(logits=self.before[ids.roll(1, 1)] + self.behind[ids.roll(-1, 1)])


class Frequencies(Known):
    """Logits are the same everywhere."""

    def __init__(self, **logits: float):
        super().__init__()
        row = torch.tensor([logits.get(name.replace("##", "__"), 0.0) for name in VOCABULARY])
        self.before = nn.Parameter(row.expand(len(row), -1).clone())
        self.behind = nn.Parameter(torch.zeros_like(self.before))


def rows(*texts: str) -> Line:
    return gather(encode(TOKENIZER, texts), Vocabulary.of(TOKENIZER))


def log_p(model: nn.Module, ids: list[int], place: int) -> Tensor:
    """The direct computation: one row, one place."""
    row = torch.tensor([ids])
    logits: Tensor = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    return logits[0, place].log_softmax(-1)


TEXTS = ("the cats sat in london .", "paris", "a dog xyz ran .", "the birds ran in rome")


@pytest.mark.parametrize("within_word", [False, True])
@torch.no_grad()
def test_every_token_is_scored_as_if_alone(within_word: bool) -> None:
    model, batch = Known(), rows(*TEXTS)
    found = log_probabilities(model, batch, mask=MASK, within_word=within_word)
    words = batch.tensor(batch.layer("word_ids")).tolist()
    for number, text in enumerate(TEXTS):
        ids = TOKENIZER(text)["input_ids"]
        for place, truth in enumerate(ids):
            if truth < len(SPECIAL):
                assert found[number, place] == 0
                continue
            shown = list(ids)
            shown[place] = MASK
            for later in range(place + 1, len(ids)):
                if within_word and words[number][later] == words[number][place]:
                    shown[later] = MASK
            expected = log_p(model, shown, place)[truth].item()
            assert found[number, place].item() == pytest.approx(expected, abs=1e-5)
        assert not found[number, len(ids) :].any()


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
@torch.no_grad()
def test_batches_do_not_matter(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(architecture).eval(), rows(*TEXTS)
    together = log_probabilities(model, batch, mask=MASK, within_word=True)
    monkeypatch.setattr("maskwise.evaluation.scoring.TOKENS", 1)
    alone = log_probabilities(model, batch, mask=MASK, within_word=True)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pseudo_perplexity_by_hand() -> None:
    texts = encode(TOKENIZER, ["the cats", "dog"])
    size = len(VOCABULARY)
    # Three tokens have a logit, and all others 0.
    total = math.log(math.exp(2.0) + math.exp(1.0) + math.exp(0.5) + size - 3)
    value = math.exp(-(2 + 1 + 0.5 + 0 - 4 * total) / 4)
    unigram = torch.full((size,), -math.log(size))
    model = Frequencies(the=2.0, cat=1.0, __s=0.5)
    records = [row.line() for row in pseudo_perplexity(model, TOKENIZER, texts, unigram)]
    assert [record["metric"] for record in records] == ["token", "within-word"]
    for record in records:
        assert record["value"] == pytest.approx(value, rel=1e-5) and record["items"] == 4
        assert record["chance"] == pytest.approx(size, rel=1e-5)
        assert record["measure"] == "pseudo-perplexity" and not record["higher_is_better"]
    assert pseudo_perplexity(Frequencies(), TOKENIZER, texts)[0].chance is None
    with pytest.raises(MaskwiseError, match="no held-out token can be scored"):
        pseudo_perplexity(Frequencies(), TOKENIZER, encode(TOKENIZER, ["xyz"]))


# Cloze facts


@pytest.mark.parametrize(
    ("scores", "gold", "right", "rank"),
    [
        ([3, 2, 1], 0, [0], 1),
        ([3, 2, 1], 2, [2], 3),
        ([3, 2, 1], 2, [2, 0], 2),  # another right answer does not stand in the way
        ([2, 2, 2], 1, [1], 2),  # all equal: the middle
        ([2, 2, 5, 2], 0, [0], 3),
        ([2 + 1e-6, 2], 1, [1], 1.5),  # rounding is no preference
    ],
)
def test_ranks(scores: list[float], gold: int, right: list[int], rank: float) -> None:
    assert rank_of(np.array(scores, dtype=float), gold, set(right)) == rank


def facts_of(*items: tuple[str, str, str], relation: str = "r") -> Cloze:
    """(subject, answer, text) each; answers to the same text are correct for each other."""
    facts = []
    for subject, answer, text in items:
        others = {other for _, other, same in items if same == text} - {answer}
        facts.append(Fact(relation, subject, answer, text, tuple(others)))
    return Cloze("some", tuple(facts), len(items), {})


SENTENCES = facts_of(
    ("cat", "london", "the cat is in [MASK] ."),
    ("dog", "paris", "a dog sat in [MASK]"),
    ("bird", "rome", "[MASK] is the bird ."),
    ("dogs", "rome", "the dogs ran in [MASK] ."),
)


@pytest.mark.parametrize("tokens", [1, 16384])
@torch.no_grad()
def test_candidates_are_scored_by_the_chain_rule(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.evaluation.measures.cloze.TOKENS", tokens)
    model = Known()
    (questions,) = questions_of(SENTENCES.facts, 20, TOKENIZER, 64, Counter())
    found, _ = candidate_scores(model, questions, Vocabulary.of(TOKENIZER))
    pieces = {"rome": ["rome"], "london": ["lon", "##don"], "paris": ["par", "##is"]}
    candidates = questions[0].candidates
    assert candidates[0] == (ID["rome"],)  # the most frequent one
    for number, fact in enumerate(SENTENCES.facts):
        assert questions[number].pieces == tuple(ID[piece] for piece in pieces[fact.answer])
        base = TOKENIZER(fact.text)["input_ids"]
        at = base.index(MASK)
        for place, candidate in enumerate(candidates):
            total = 0.0
            for step, piece in enumerate(candidate):
                left = [*base[:at], *candidate[:step]]
                shown = [*left, *[MASK] * (len(candidate) - step), *base[at + 1 :]]
                total += float(log_p(model, shown, at + step)[piece])
            assert found[number, place] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_sentence_with_its_answer_is_tokenised_as_in_running_text(kind: Any) -> None:
    answers = {
        "Ada was born in London.": "London",
        "Rome is old, said Bob": "Rome",
        "(born 1950) in New York City , he": "New York City",
    }
    tokenizer = train_tokenizer([*answers] * 3, kind=kind, vocab_size=300)
    facts = [Fact("r", "s", a, text.replace(a, "[MASK]", 1)) for text, a in answers.items()]
    (questions,) = questions_of(facts, 20, tokenizer, 512, Counter())
    for question, text in zip(questions, answers, strict=True):
        made = [*question.left, *question.pieces, *question.right_side]
        assert made == tokenizer(text)["input_ids"]


def by_metric(model: Any, test_set: Cloze | Pairs) -> dict[str, Any]:
    rows = [row.line() for row in test_set.measure(model, TOKENIZER)]
    return {row["metric"]: row for row in rows}


@torch.no_grad()
def test_cloze_by_hand() -> None:
    """The model says dog, then cat, then bird, whatever is asked; cat is asked for most."""
    facts = facts_of(
        ("1", "cat", "a [MASK] ."),
        ("2", "cat", "the [MASK] ."),
        ("3", "dog", "in a [MASK]"),
        ("4", "bird", "[MASK]"),
        ("4", "cat", "[MASK]"),
    )
    found = by_metric(Frequencies(dog=3, cat=2, bird=1), facts)
    # Ranks: cat 2, cat 2, dog 1, bird 2 (cat is right there too), cat 2. Chance (cat, dog, bird):
    #     1, 1, 2, 2, 1.
    for metric, value, chance in (
        ("hits@1", 1 / 5, 3 / 5),
        ("mrr", (1 + 4 / 2) / 5, (3 + 2 / 2) / 5),
        ("hits@10", 1, 1),
    ):
        assert found[metric]["value"] == pytest.approx(value)
        assert found[metric]["chance"] == pytest.approx(chance)
    # Among the whole vocabulary the same, for no other token has a logit; [MASK] and its like are
    # no answers.
    assert found["open-mrr"]["value"] == found["mrr"]["value"]
    assert found["open-hits@1"]["items"] == 5
    nothing = by_metric(Frequencies(), facts)
    others = len(VOCABULARY) - 6  # neither the five special ones nor the answer
    mean = (3 / (1 + others / 2) + 2 / (1 + (others - 1) / 2)) / 5
    assert nothing["open-mrr"]["value"] == pytest.approx(mean)


@torch.no_grad()
def test_facts_that_cannot_be_scored_are_counted() -> None:
    odd = (
        Fact("r", "s", "éé", "the [MASK] ."),
        Fact("r", "s", "rome", "a cat " * 31 + "[MASK]"),
        Fact("alone", "s", "rome", "in [MASK]"),
        Fact("r", "s", "rome", "a [SEP] cat [MASK]"),
    )
    facts = Cloze("odd", (*SENTENCES.facts, *odd), 10, {"not exactly one [MASK]": 2})
    first = by_metric(Known(), facts)["mrr"]
    assert first["items"] == 4 and first["of"] == 10
    assert first["skipped"] == {
        "not exactly one [MASK]": 2,
        "the only answer of its relation": 1,
        "unknown characters": 1,
        "longer than the model": 1,
        "a special token in the sentence": 1,
    }
    said = "no item of facts 'some' can be scored; got 1 × unknown characters"
    with pytest.raises(MaskwiseError, match=said):
        by_metric(Known(), facts_of(("s", "éé", "the [MASK]")))


@torch.no_grad()
def test_large_relations_are_cut_into_parts() -> None:
    answers = ["cat", "dog", "bird", "rome", "london", "cats", "dogs"]
    items = [(word, word, f"the {word} [MASK] {end}") for word in answers for end in ("ran", "sat")]
    facts = facts_of(*items)
    parts = list(questions_of(facts.facts, 3, TOKENIZER, 64, Counter()))
    assert [len(part[0].candidates) for part in parts] == [3, 2, 2]
    assert sum(map(len, parts)) == 14
    whole = by_metric(Known(), facts)
    in_parts = by_metric(Known(), replace(facts, candidates=3))
    assert in_parts["mrr"]["items"] == 14
    # With fewer other answers, a hit is more likely; open ranks do not depend on the parts.
    assert in_parts["hits@1"]["value"] >= whole["hits@1"]["value"]
    assert in_parts["mrr"]["chance"] > whole["mrr"]["chance"]
    assert in_parts["open-mrr"]["chance"] == whole["open-mrr"]["chance"]


def test_the_time_of_a_relation_grows_with_its_facts_alone() -> None:
    """Not with the facts × the parts: eight times the facts took forty times as long."""
    words = ["cat", "dog", "bird", "rome", "london", "ran", "sat", "the"]
    seconds = []
    for count in (512, 4096):
        answers = [" ".join(words[n // 8**place % 8] for place in range(4)) for n in range(count)]
        facts = [Fact("r", "", answer, f"the {answer} [MASK] sat") for answer in answers]

        def ask(facts: list[Fact] = facts) -> int:
            return sum(map(len, questions_of(facts, 3, TOKENIZER, 64, Counter())))

        assert ask() == count
        seconds.append(processor_seconds(ask))
    assert seconds[1] < 20 * seconds[0]


def test_sentences_of_facts(tmp_path: Path) -> None:
    ada = {"predicate_id": "P19", "sub_label": "Ada", "obj_label": "London"}
    bob = {"predicate_id": "P99", "sub_label": "Bob", "obj_label": "Rome"}
    lines = [
        {**ada, "evidences": [{"masked_sentence": "x"}]},
        {**bob, "evidences": [{"masked_sentence": "B [MASK]"}]},
        {"obj_label": "gold", "masked_sentences": ["The [MASK] colour", "was used."]},
        {"obj_label": "gold", "masked_sentences": ["No mask."]},
    ]
    write(tmp_path / "facts.jsonl", lines)
    write(tmp_path / "relations.jsonl", [{"relation": "P19", "template": "[X] was born in [Y] ."}])
    found = Cloze.read(tmp_path / "facts.jsonl")
    assert [fact.text for fact in found.facts] == [
        "Ada was born in [MASK] .",
        "B [MASK]",
        "The [MASK] colour was used.",
    ]
    assert found.facts[0].relation == "P19" and found.facts[2].relation == "facts"
    assert found.total == 4 and found.skipped == {"not exactly one [MASK]": 1}
    assert found.texts()[0] == ("Ada was born in London .",)
    assert len(load_set(f"{tmp_path / 'facts.jsonl'}(items=2)", Cloze.read).facts) == 2


# Minimal pairs


def pairs_of(*items: tuple[str, str], groups: tuple[str, ...] = ()) -> Pairs:
    good, bad = zip(*items)
    return Pairs("some", good, bad, groups or ("",) * len(items), len(items))


@torch.no_grad()
def test_pairs_by_hand() -> None:
    pairs = pairs_of(
        ("the cat sat", "the dog sat"),
        ("the dog ran", "the cat ran"),
        ("a cat sat", "sat cat a"),
        ("xyz", "cat"),
        ("a cat", "a bird " * 40),
        groups=("x", "x", "y", "y", "y"),
    )
    (found,) = by_metric(Frequencies(cat=2, dog=1), pairs).values()
    assert found["value"] == pytest.approx(1.5 / 3) and found["items"] == 3 and found["of"] == 5
    assert found["ties"] == 1 and found["chance"] == 0.5 and found["higher_is_better"]
    assert found["skipped"] == {"unknown characters": 1, "longer than the model": 1}
    assert found["groups"] == {"x": {"value": 0.5, "items": 2}, "y": {"value": 0.5, "items": 1}}
    with pytest.raises(MaskwiseError, match="no item of pairs 'some' can be scored; got 1 × unkn"):
        by_metric(Known(), pairs_of(("xyz", "cat")))


def test_the_bundled_pairs_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "build_evaluation.py"))
    names = ("agreement", "distant_agreement", "determiner_noun", "anaphor", "word_order")
    made = [pair for name in names for pair in script[name]()]
    pairs = load_set("bundled:pairs", Pairs.read)
    assert list(zip(pairs.groups, pairs.good, pairs.bad)) == made
    assert len({pair[1:] for pair in made}) == pairs.total == 204
    right = Counter(" ".join(pairs.good).lower().split())
    # In all, each word stands on the right side as often as on the wrong one.
    assert right == Counter(" ".join(pairs.bad).lower().split())


# Files


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def test_tables_of_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", ["sentence_good\tsentence_bad\tUID", "a b\tb a\tx", "c\td\ty"])
    found = load_set(f"{path}(items=1)", Pairs.read)
    assert (found.good, found.bad, found.groups, found.total) == (("a b",), ("b a",), ("x",), 2)
    assert found.content() != Pairs.read(path).content()


# Settings


RECORDED: dict[str, tuple[dict[str, Any], list[str]]] = {
    # the settings of a recorded study; the list that names the same measures
    "none": ({"bound": 0, "pseudo_perplexity": 0, "cloze": [], "pairs": []}, []),
    "rows of the bound": ({"bound": 8, "rows": 192}, ["bound(8, rows=192)"]),
    "sets with arguments": (
        {"cloze": ["lama/a b.jsonl(items=5)"], "pairs": "bundled:pairs"},
        ["cloze('lama/a b.jsonl', items=5)", "pairs('bundled:pairs')"],
    ),
    "beside others": (
        {"word_loss": 9, "pseudo_perplexity": 3, "measures": ["text-loss('g.txt')"]},
        ["pseudo-perplexity(3)", "word-loss(9)", "text-loss('g.txt')"],
    ),
}


@pytest.mark.parametrize("case", RECORDED)
def test_settings_of_recorded_studies_name_the_same_measures(case: str) -> None:
    """Measures had settings of their own; a recipe with one is refused with what to write."""
    settings, measures = RECORDED[case]
    assert as_measures(settings).get("measures", []) == measures
    with pytest.raises(MaskwiseError) as caught:
        validate({"evaluation": settings}, origin="here")
    said = str(caught.value)
    assert json.dumps(measures) in said and "evaluation.measures" in said and "\n" not in said
    written = {key: settings[key] for key in ("rows",) if key in settings}
    assert validate({"evaluation": written | {"measures": measures}}, origin="here")


# One checkpoint


@pytest.fixture(scope="module")
def data() -> Any:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(VOCABULARY[5:17], k=30)) for _ in range(60)]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    pieces = read_pieces(tokenise(documents, TOKENIZER), tokenizer=TOKENIZER, length=32)
    training, held_out = split(pieces, held_out=0.3)
    return SimpleNamespace(tokenizer=TOKENIZER, training=training, held_out=held_out)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = new_config("bert", TOKENIZER, 32, **sizes, intermediate_size=16)
    folder = tmp_path_factory.mktemp("checkpoint")
    new_model(config, seed=0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def order(tmp_path: Path) -> Path:
    """A file with one minimal pair."""
    pair = {"sentence_good": "the cat sat", "sentence_bad": "cat the sat"}
    return write(tmp_path / "order.jsonl", [pair])


def test_evaluate(data: Any, checkpoint: Path, tmp_path: Path, order: Path) -> None:
    lines = [
        {"sub_label": fact.subject, "obj_label": fact.answer, "masked_sentences": [fact.text]}
        for fact in SENTENCES.facts
    ]
    facts = write(tmp_path / "facts.jsonl", lines)
    sets = (f"cloze({str(facts)!r})", f"pairs({str(order)!r})")
    settings = EvaluationSettings(rows=8, measures=("pseudo-perplexity(3)", *sets))
    found = evaluate(checkpoint, data, settings)
    heldout = [row for row in found if row.kind == "heldout"]
    masks = [(row.ratio, row.measure, row.split) for row in heldout]
    assert masks == [
        (ratio, name, split)
        for ratio in (0.15, 0.4)
        for name in ("token", "whole-word")
        for split in ("test", "unigram")
    ]
    rest = found[len(heldout) :]
    names = [(row.measure, row.metric) for row in rest]
    assert len(set(names)) == len(names)
    assert {name for name, _ in names} == {"pseudo-perplexity", "facts", "order"}
    assert all(math.isfinite(row.value) for row in rest)
    json.dumps([row.line() for row in found])
    assert not evaluate(checkpoint, data, EvaluationSettings(masks=()))
    # The same again, and with the model in hand, which stays as it was.
    model = load_model(checkpoint).train()
    assert evaluate(model, data, settings) == found and model.training


def test_a_checkpoint_is_measured_on_the_accelerator_and_a_model_where_it_is(
    data: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is asked for once, for a folder: "meta" stands for one on which this cannot go
    on.
    """
    module = sys.modules["maskwise.evaluation.evaluate"]
    monkeypatch.setattr(module, "best_device", lambda: torch.device("meta"))
    settings = EvaluationSettings(rows=4, ratios=(0.15,), masks=("token",))
    assert evaluate(load_model(checkpoint), data, settings)[0].value > 0
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        evaluate(checkpoint, data, settings)


def test_what_cannot_be_evaluated(data: Any, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="cannot load a model from"):
        evaluate(tmp_path, data, EvaluationSettings())
    broken = Frequencies(cat=math.nan)
    for measure in (Pairs("p", ("the cat",), ("cat the",), ("",), 1), SENTENCES):
        with pytest.raises(MaskwiseError, match="predictions are not numbers; got nan"):
            measure.measure(broken, TOKENIZER)
    model = load_model(checkpoint)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    said = "measure token: a value is not a finite number; got nan"
    with pytest.raises(MaskwiseError, match=said):
        evaluate(model, data, EvaluationSettings(rows=4))
    small = Known()
    small.config.vocab_size = 3
    with pytest.raises(MaskwiseError, match="tokenizer and model do not match"):
        evaluate(small, data, EvaluationSettings())


def test_the_command(
    checkpoint: Path, tmp_path: Path, order: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS * 8))
    measures = [
        "--with",
        f"pairs({str(order)!r}),pseudo-perplexity(2)",
        "--text",
        str(text),
        "--json",
    ]
    assert maskwise("evaluate", checkpoint, *measures) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["kind"] for line in found] == ["heldout"] * 8 + ["evaluation"] * 3
    assert not {"arm", "seed"} & set().union(*found)
    # The reference beside a loss is that of the text's own word frequencies.
    assert found[1]["split"] == "unigram" and 0 < found[1]["value"] < math.log(5000)


@pytest.mark.parametrize(
    "written", ["heldout(0.15, 'token', rows=4)", "heldout((0.15,), (token,))"]
)
def test_the_masks_of_the_held_out_loss_can_be_chosen(
    checkpoint: Path, tmp_path: Path, written: str
) -> None:
    """They were accepted, and replaced by the default."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS * 8))
    found = evaluate_checkpoint(str(checkpoint), [written], text=str(text))
    assert {(row.measure, row.ratio) for row in found} == {("token", 0.15)}


def test_masks_of_words_are_refused_for_a_text_without_words(data: Any, checkpoint: Path) -> None:
    """A slow tokenizer finds no words. Unless they are asked for, they are left out."""
    pieces = data.held_out.pieces
    ids = {"input_ids": pieces.columns["input_ids"]}
    rows = replace(data.held_out, pieces=replace(pieces, columns=ids))
    text = HeldOutText(rows, torch.zeros(len(TOKENIZER)))
    model = load_model(checkpoint).requires_grad_(requires_grad=False)
    found = FixedMasks((0.15,), rows=4).on(text).measure(model, TOKENIZER)
    assert {row.measure for row in found} == {"token"}
    with pytest.raises(MaskwiseError, match="masks whole-word need words"):
        FixedMasks((0.15,), ("token", "whole-word"), 4).on(text).measure(model, TOKENIZER)
    with pytest.raises(MaskwiseError, match="masks sentence need a layer"):
        FixedMasks((0.15,), ("sentence",), 4).on(text).measure(model, TOKENIZER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with", "perplexity"], "unknown measure 'perplexity'"),
        (["--with", "pseudo-perplexity"], "pseudo-perplexity needs a text; give --text FILE"),
        (["--with", "pairs"], "measure pairs: missing a required argument: 'source'"),
        (["--with", "pairs(7)"], "source is not valid; got 7"),
        (["--with", "heldout:5"], "unknown measure 'heldout:5'"),
        (["--with", "heldout"], "heldout needs a text; give --text FILE"),
        (["--with", "pseudo-perplexity(0)"], "rows of pseudo-perplexity is not valid; got 0"),
        (["--with", "bound(none)"], "draws is not valid; got 'none'"),
        (
            ["--with", "bound(2), bound(3)"],
            "two measures are called 'bound'; keep one",
        ),
        (["--with", "bound(2, rows=-3)"], "rows of bound is not valid; got -3"),
        (["--with", "heldout(rows=-1)"], "rows of heldout is not valid; got -1"),
        (
            ["--with", "heldout(ratios=(0.15, 0.15))"],
            "ratios of heldout are invalid; got [0.15, 0.15]",
        ),
        (["--with", "heldout(ratios=())"], "ratios of heldout are invalid; got []"),
        (["--with", "heldout(ratios=(0, 0.3))"], "ratios of heldout are invalid; got [0, 0.3]"),
        (["--with", "heldout(ratios=high)"], "ratios of heldout are invalid; got ['high']"),
        (["--with", "heldout(masks='words')"], "unknown policy 'words'"),
        (["--with", "heldout(masks=())"], "heldout needs masks; got ()"),
        (["--with", "heldout(masks=3)"], "this is not a policy; got 3"),
        (["--with", "bound"], "bound needs a text; give --text FILE"),
        ([], "nothing to measure"),
        (["--with", "pairs('none.jsonl')"], "no evaluation file 'none.jsonl'"),
    ],
)
def test_bad_commands_are_one_line(
    checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maskwise("evaluate", checkpoint, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# Overlap


WORDS = [f"word{number}" for number in range(400)]


def places(documents: list[str], items: list[tuple[str, ...]]) -> list[int]:
    """The items that occur in the documents."""
    hits, count, _ = occurring(documents, items, least=4)
    assert count == len(documents)
    return hits.nonzero()[0].tolist()


def test_overlap_by_hand() -> None:
    document = " ".join(WORDS[:100])
    short = " ".join(WORDS[60:66])
    items = {
        "copied": ["new", *WORDS[20:33], "end"],
        "cut": ["new", *WORDS[20:32], "end"],
        "disguised": ["«" + ",\n".join(word.upper() for word in WORDS[40:53]) + "!»"],
        "short": [short],
        "unlike": [*WORDS[60:65], "else"],
        "tiny": WORDS[70:73],
        "across documents": [*WORDS[90:100], *WORDS[200:210]],
    }
    texts: list[tuple[str, ...]] = [(" ".join(words),) for words in items.values()]
    texts.append(("nothing of it", short))
    other = " ".join(WORDS[200:300])
    assert places([document, other], texts) == [0, 2, 3, 7]
    task = SimpleNamespace(name="t", texts=lambda: texts)
    found = overlap_record([Document("1", document), other], task, corpus="c")
    assert f"nothing of it / {short}" in found["examples"] and len(found["examples"]) == 4
    # The items with the largest shares of their words stand first.
    assert found["examples"][-1] == " ".join(items["copied"])
    expected = {"kind": "overlap", "task": "t", "corpus": "c", "items": 8, "overlapping": 4}
    assert {**expected, "short": 1, "documents": 2, "n": 13}.items() <= found.items()
    assert (found["covered"], found["run_words"], found["run"]) == (4, 13, " ".join(WORDS[20:33]))
    assert overlap_record([document], pairs_of((document, "x")), corpus="c")["overlapping"] == 1
    with pytest.raises(MaskwiseError, match="there are no test items"):
        overlap_record(["a"], SimpleNamespace(name="t", texts=list), corpus="c")


def test_an_overlap_is_found_within_a_clause_without_spaces() -> None:
    sentence = "北京大学的学生在图书馆学习数学"
    documents = [f"昨天下午{sentence}和物理。", "昨天下午没有人。"]
    other = "上海大学的老师在图书馆讲授物理课"
    assert places(documents, [(f"是否{sentence}？",), (other,)]) == [0]


def test_overlap_agrees_with_sets_of_tuples(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    for n in (4, 6, 13):
        documents = [" ".join(draw.choices("abc", k=draw.randrange(0, 60))) for _ in range(20)]
        items = [" ".join(draw.choices("abc", k=draw.randrange(0, 18))) for _ in range(60)]

        def grams(text: str, k: int) -> set[tuple[str, ...]]:
            words = text.split()
            return {tuple(words[at : at + k]) for at in range(len(words) - k + 1)}

        expected = []
        for place, item in enumerate(items):
            k = min(n, len(item.split()))
            if k >= 4 and any(grams(item, k) & grams(text, k) for text in documents):
                expected.append(place)
        monkeypatch.setattr("maskwise.evaluation.measures.overlap.N", n)
        for batch in (1 << 20, 50):
            monkeypatch.setattr("maskwise.evaluation.measures.overlap.BATCH_CHARACTERS", batch)
            assert places(documents, [(item,) for item in items]) == expected


@pytest.mark.parametrize("batch", [1 << 20, 50])
def test_the_covered_share_agrees_with_sets_of_tuples(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    draw = random.Random(2)
    monkeypatch.setattr("maskwise.evaluation.measures.overlap.N", 5)
    monkeypatch.setattr("maskwise.evaluation.measures.overlap.BATCH_CHARACTERS", batch)

    def text(most: int) -> str:
        return " ".join(draw.choices("abcde", k=draw.randrange(0, most)))

    documents = [text(60) for _ in range(20)]
    items = [tuple(text(30) for _ in range(draw.randrange(1, 3))) for _ in range(80)]
    covered = longest = 0
    for item in items:
        words = found = 0
        for part in map(str.split, item):
            k = min(5, len(part))
            if k < 4:
                continue
            starts = [f" {' '.join(part[at : at + k])} " for at in range(len(part) - k + 1)]
            hits = [any(start in f" {each} " for each in documents) for start in starts]
            inside = [any(hits[max(0, at - k + 1) : at + 1]) for at in range(len(part))]
            words += len(part)
            found += sum(inside)
            runs = "".join("x" if each else " " for each in inside).split()
            longest = max([longest, *map(len, runs)])
        covered += words > 0 and found >= words / 2
    task = SimpleNamespace(name="t", texts=lambda: items)
    record = overlap_record(documents, task, corpus="c")
    assert 0 < covered < record["overlapping"]
    assert (record["covered"], record["run_words"]) == (covered, longest)
    assert len(record["run"].split()) == longest
    assert any(record["run"] in f"{part}" for item in items for part in item)


@pytest.mark.slow
@pytest.mark.skipif(not LAMA.is_dir(), reason="needs ../shared/data")
def test_lama_files_are_read_whole() -> None:
    trex = load_set(f"{LAMA / 'trex_subset.jsonl.gz'}(items=None)", Cloze.read)
    assert len(trex.facts) + sum(trex.skipped.values()) == trex.total == 22881
    assert len({fact.relation for fact in trex.facts}) == 28
    google = load_set(f"{LAMA / 'google_re.jsonl.gz'}(items=None)", Cloze.read)
    assert google.total == 5528 and len({fact.relation for fact in google.facts}) == 3


@torch.no_grad()
def test_right_answers_beyond_the_candidates_do_not_count_against_a_model() -> None:
    """Such as that of a fact beyond ``items``, or of another part."""
    facts = facts_of(("1", "cat", "[MASK] ran"), ("2", "bird", "the [MASK]"))
    facts = Cloze("some", (facts.facts[0]._replace(others=("dog",)), facts.facts[1]), 3, {})
    found = by_metric(Frequencies(dog=3, cat=2, bird=1), facts)
    assert found["open-mrr"]["value"] == pytest.approx((1 + 1 / 3) / 2)


def test_answers_with_and_without_a_space_are_one_candidate() -> None:
    """A token for the space alone belongs to the answer."""
    words = ["<unk>", "<mask>", "▁", "x", "ab", "cd", "▁cd", "▁x"]
    model = models.Unigram([(word, -float(n + 1)) for n, word in enumerate(words)], 0)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = {"unk_token": "<unk>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    facts = facts_of(("1", "ab", "[MASK] x"), ("2", "ab", "x [MASK]"), ("3", "cd", "x [MASK]"))
    ((start, end, _),) = questions_of(facts.facts, 20, tokenizer, 64, Counter())
    assert start.candidates == ((4,), (5,)) and end.candidates == ((2, 4), (6,))
