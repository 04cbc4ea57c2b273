"""Learned policies in use: what they say of words, as layers of a corpus and as masks."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from maskwise import encode
from maskwise.annotate.kept import Store
from maskwise.annotate.registry import annotator
from maskwise.annotate.run import annotate_corpus
from maskwise.base.errors import MaskwiseError
from maskwise.learning.annotator import best_spans_in_windows, score_words, span_chances
from maskwise.learning.scorer import PolicyModel
from maskwise.masking import Masker
from maskwise.masking.policies import policy
from maskwise.recipe import read_recipe, validate
from maskwise.text import Document, Rows, read_pieces, tokenise, train_tokenizer
from maskwise.text.tokenizers import load_tokenizer
from tiny import WORDS, write_inputs

TEXTS = ["Bada kefe loninu; (zun) wixtal.", "", "  \n", "bada " * 200 + "zunwix.", "lofe"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS) + " ( ) ; ."] * 9, vocab_size=80)


def saved(folder, tokenizer, **settings) -> str:
    """The folder of a policy that says something."""
    made = PolicyModel.new(tokenizer, settings={"hidden_size": 8}, length=16, **settings)
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(1))
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory, tokenizer) -> str:
    return saved(tmp_path_factory.mktemp("made") / "words", tokenizer)


@pytest.fixture(scope="module")
def spans(tmp_path_factory, tokenizer) -> str:
    return saved(tmp_path_factory.mktemp("made") / "spans", tokenizer, head="spans", longest=4)


def test_a_words_weight_is_the_exponential_of_the_mean_of_its_logits(words):
    text = "Bada kefe loninu; (zun)"
    (scores,) = score_words(PolicyModel.from_pretrained(words), [text])
    cut = [text[start:end] for start, end in zip(scores.start, scores.end)]
    assert cut == ["Bada", "kefe", "loninu", ";", "(", "zun", ")"]
    logits, numbers = logits_of(words, text)
    by_hand = np.exp([logits[numbers == word].mean() for word in range(len(cut))])
    np.testing.assert_allclose(scores.weight, by_hand / by_hand.mean(), rtol=1e-5)


def test_the_weights_of_a_text_average_one_and_texts_do_not_see_each_other(words, spans):
    for folder in (words, spans):
        model = PolicyModel.from_pretrained(folder)
        together = score_words(model, TEXTS)
        for number, text in enumerate(TEXTS):
            (alone,) = score_words(model, [text])
            part = together[number]
            np.testing.assert_allclose(part.weight, alone.weight, rtol=1e-4)
            assert part.start.tolist() == alone.start.tolist()
            np.testing.assert_allclose(part.score, alone.score, rtol=1e-4)
            if len(alone.weight):
                assert alone.weight.mean() == pytest.approx(1) and alone.weight.min() > 0


def test_spans_are_scored_as_by_enumeration():
    draw = np.random.default_rng(0)
    first, last = draw.dirichlet(np.ones(7), 2), draw.dirichlet(np.ones(7), 2)
    chance = span_chances(first, last, longest=3)
    pieces, *columns = best_spans_in_windows(chance, 3)
    for piece in range(2):
        left = {}
        for i, j in itertools.product(range(7), range(7)):
            if i <= j < i + 3:
                left[i, j] = first[piece, i] * last[piece, j]
                assert chance[piece, i, j - i] == pytest.approx(left[i, j])
        best = []
        while left and len(best) < 3:
            i, j = max(left, key=left.__getitem__)
            best.append((i, j - i, left[i, j]))
            left = {(a, b): value for (a, b), value in left.items() if b < i or a > j}
        found = np.stack([column[pieces == piece] for column in columns], axis=1)
        np.testing.assert_allclose(found, sorted(best))


def test_the_windows_of_a_long_text_share_its_probability(words):
    """Each window had a sum of 1, so the spans of a short last window seemed the best."""
    model = PolicyModel.from_pretrained(words)
    text = " ".join(["bada kefe lonin zun wix"] * 20)
    (scores,) = score_words(model, [text], spans=100)
    assert len(scores.score) == 100 and scores.score.sum() == pytest.approx(1)
    np.testing.assert_allclose(scores.score, scores.weight / 100, rtol=1e-6)


def logits_of(folder: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The policy's logits for the tokens of a text, and the word of each token."""
    model = PolicyModel.from_pretrained(folder)
    row = encode(model.tokenizer, [text])[0]
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        return model(ids, torch.ones_like(ids))[0].double().numpy(), np.array(row["word_ids"])


def test_the_weight_of_a_word_under_a_span_head_is_its_chance_to_be_inside(spans):
    text = "bada kefe lonin zun wix"
    (scores,) = score_words(PolicyModel.from_pretrained(spans), [text], spans=100)
    logits, numbers = logits_of(spans, text)
    count = numbers.max() + 1
    first = np.exp([logits[numbers == word][0, 0] for word in range(count)])
    last = np.exp([logits[numbers == word][-1, 1] for word in range(count)])
    chance = np.outer(first / first.sum(), last / last.sum())
    inside = np.zeros(count)
    for i, j in itertools.product(range(count), range(count)):
        if i <= j < i + 4:
            inside[i : j + 1] += chance[i, j]
    np.testing.assert_allclose(scores.weight, inside / inside.mean(), rtol=1e-5)


def test_stored_layers_and_live_ones_are_equal(words, spans, tmp_path):
    for number, folder in enumerate((words, spans)):
        annotate_corpus(TEXTS, [f"learned({folder!r})"], tmp_path / str(number))
        kept = [text for text in TEXTS if text.strip()]
        live = annotator(f"learned({folder!r})").annotate(kept)
        np.testing.assert_equal(Store(tmp_path / str(number)).annotate(kept), live)


def test_a_policy_of_another_tokenizer_is_mapped_through_characters(words):
    other = train_tokenizer([" ".join(WORDS) + " ( ) ; ."] * 9, kind="bpe", vocab_size=300)
    made = annotator(f"learned({words!r})")
    text = TEXTS[0]
    own = made.annotate([text])[0]["learned"]
    (tokens,) = tokenise([Document("a", text)], other, layers=made)
    for start, end, value in zip(*own):
        (at,) = {
            int(w)
            for w, (a, _) in zip(tokens.columns["word_ids"], _offsets(other, text))
            if start <= a < end and w >= 0
        }
        weights = tokens.columns["learned"][tokens.columns["word_ids"] == at]
        assert set(weights) == {value}, text[start:end]


def _offsets(tokenizer, text):
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (a + len(text[a:b]) - len(text[a:b].lstrip()), b) for a, b in encoding["offset_mapping"]
    ]


def rows_of(folder: str, texts: list[str], length: int = 32):
    """Rows that carry the layers which the policy asks for."""
    tokenizer = load_tokenizer(folder, needs_mask=False)
    (spec,) = policy(f"learned({folder!r})").annotators()
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    tokens = tokenise(documents, tokenizer, layers=annotator(spec))
    return tokenizer, Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=length), "document")


def test_one_span_a_piece_is_masked_the_best_or_drawn_from_the_best(spans):
    texts = [" ".join(np.random.default_rng(n).permutation(WORDS)[:5]) for n in range(100)]
    tokenizer, rows = rows_of(spans, texts)
    pieces = rows.line(np.arange(len(rows)))
    chosen = {}
    for take in ("top-1", "top-2"):
        spec = f"learned({spans!r}, take={take!r})"
        masker = Masker(tokenizer, policy=spec, ratio=1.0, corruption="mask-only")
        batches = [masker(pieces, epoch=epoch) for epoch in (0, 1)]
        chosen[take] = [batch.choice.tokens for batch in batches]
        source = batches[0].line
    marked = source.layer(f"learned {spans}_span", scores=True)
    score = source.layer(f"learned {spans}_score", scores=True)
    best, other = chosen["top-1"]
    drawn, again = chosen["top-2"]
    assert (best == other).all() and (drawn != again).any()
    for piece in range(len(rows)):
        own = source.piece == piece
        inside = own & (marked >= 0)
        ranked = sorted({(-score[at], marked[at]) for at in np.flatnonzero(inside)})
        first, *rest = [inside & (marked == number) for _, number in ranked[:2]]
        assert (best[own] == first[own]).all()
        assert any((drawn[own] == one[own]).all() for one in (first, *rest))


def test_a_recipe_needs_to_name_the_policy_only(words, spans, tmp_path):
    spec = f"learned({words!r})"
    over = [f"masking.policy={spec}"]
    over += [f"study.arms.token-15.masking.policy=learned({spans!r}, take='top-1')"]
    recipe = read_recipe(write_inputs(tmp_path / "in"), over)
    arm = recipe.arm("token-15", seed=0).links()[0]
    for link, names in ((recipe.links()[0], ["words"]), (arm, ["words", "spans"])):
        assert [annotator(each).folder.name for each in link.corpus.layers] == names
    assert validate(json.loads(arm.model_dump_json()), origin="again").corpus == arm.corpus
    assert [*recipe.policies] == [spec]


def test_another_weight_makes_another_version(words, tokenizer, tmp_path):
    made = PolicyModel.from_pretrained(words)
    made.save_pretrained(tmp_path / "copy")
    versions = [
        annotator(f"learned({str(folder)!r})").version for folder in (words, tmp_path / "copy")
    ]
    assert versions[0] == versions[1]
    with torch.no_grad():
        made.head.bias += 0.5
    made.save_pretrained(tmp_path / "copy")
    assert annotator(f"learned({str(tmp_path / 'copy')!r})").version != versions[0]


def test_a_split_budget_is_not_drawn_unit_by_unit(words):
    """Of weights 1 and nearly 0, bernoulli would mask a tenth of what was asked."""
    tokenizer, _ = rows_of(words, [" ".join(WORDS[:8])])
    for spec in (
        f"learned({words!r}, explore=0.5)",
        f"mixture(token, learned({words!r}, explore=0.5))",
    ):
        with pytest.raises(MaskwiseError, match="bernoulli has no budget to split"):
            Masker(tokenizer, policy=spec, budget="bernoulli")


def test_rows_for_a_masker_with_a_learned_policy(tmp_path):
    """The error for rows without its layers names a call that makes them."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    folder = tmp_path / "a policy"
    PolicyModel.new(tokenizer, settings={"hidden_size": 8}, length=16).save_pretrained(folder)
    masker = Masker(tokenizer, policy=f'learned("{folder}", take="spans")', ratio=0.5)
    with pytest.raises(MaskwiseError) as caught:
        masker(encode(tokenizer, ["the cat sat"]), step=0, total_steps=1)
    makers = masker.policy.annotators()
    assert str([*makers]) in caught.value.do
    batch = masker(encode(tokenizer, ["the cat sat"], layers=makers), step=0, total_steps=1)
    assert (batch.labels != -100).any()
