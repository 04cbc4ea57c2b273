"""Learned policies in use: what they say of words, as layers of a corpus and as masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from maskwise.annotate.registry import annotator
from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.store import Store
from maskwise.errors import MaskwiseError
from maskwise.learning.annotator import best_spans, score_words, span_chances
from maskwise.learning.scorer import PolicyModel
from maskwise.masking import Masker
from maskwise.masking.policies import policy
from maskwise.recipe import read_recipe, validate
from maskwise.text import Document, Rows, encode, read_pieces, tokenise, train_tokenizer
from maskwise.text.tokenizers import load_tokenizer
from tiny import WORDS, maskwise, write_inputs

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


def test_a_words_weight_is_the_exponential_of_the_mean_of_its_logits(words, tokenizer):
    text = "Bada kefe loninu; (zun)"
    (scores,) = score_words(PolicyModel.from_pretrained(words), [text])
    cut = [text[start:end] for start, end in zip(scores.start, scores.end)]
    assert cut == ["Bada", "kefe", "loninu", ";", "(", "zun", ")"]
    row = encode(tokenizer, [text])[0]
    model = PolicyModel.from_pretrained(words)
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids))[0].double().numpy()
    numbers = np.array(row["word_ids"])
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
    for piece in range(2):
        every = {
            (i, j): first[piece, i] * last[piece, j]
            for i in range(7)
            for j in range(i, min(7, i + 3))
        }
        for (i, j), value in every.items():
            assert chance[piece, i, j - i] == pytest.approx(value)
        best, left = [], dict(every)
        while left and len(best) < 3:
            i, j = max(left, key=left.__getitem__)
            best.append((i, j, left[i, j]))
            left = {(a, b): value for (a, b), value in left.items() if b < i or a > j}
        found = [part[best_spans(chance, 3)[0] == piece] for part in best_spans(chance, 3)]
        assert [(i, i + k) for i, k in zip(found[1], found[2])] == [
            (i, j) for i, j, _ in sorted(best)
        ]
        np.testing.assert_allclose(found[3], [value for *_, value in sorted(best)])


def test_the_weight_of_a_word_under_a_span_head_is_its_chance_to_be_inside(spans):
    model = PolicyModel.from_pretrained(spans)
    text = "bada kefe lonin zun wix"
    (scores,) = score_words(model, [text], spans=100)
    row = encode(model.tokenizer, [text])[0]
    ids, numbers = torch.tensor([row["input_ids"]]), np.array(row["word_ids"])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids))[0].double().numpy()
    count = numbers.max() + 1
    sides = np.array(
        [[logits[numbers == w][0, 0], logits[numbers == w][-1, 1]] for w in range(count)]
    )
    start, end = (np.exp(side) / np.exp(side).sum() for side in sides.T)
    inside = [
        sum(start[i] * end[j] for i in range(w + 1) for j in range(w, count) if j - i < 4)
        for w in range(count)
    ]
    np.testing.assert_allclose(scores.weight, inside / np.mean(inside), rtol=1e-5)


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


def test_words_are_masked_by_their_weights(words):
    texts = [" ".join(np.random.default_rng(n).permutation(WORDS)[:12]) for n in range(200)]
    tokenizer, rows = rows_of(words, texts, length=64)
    masker = Masker(
        tokenizer, policy=f"learned({words!r}, power=3)", ratio=0.2, corruption="mask-only"
    )
    batch = masker(rows.batch(np.arange(len(rows))), epoch=0)
    weight = batch.source.layer(f"learned {words}", scores=True)
    content = batch.source.eligible
    chosen = np.zeros_like(content)
    chosen[np.flatnonzero(batch.choice.tokens)] = True
    assert weight[chosen].mean() > 1.3 * weight[content].mean()


def test_one_span_a_piece_is_masked_the_best_or_drawn_from_the_best(spans):
    texts = [" ".join(np.random.default_rng(n).permutation(WORDS)[:5]) for n in range(100)]
    tokenizer, rows = rows_of(spans, texts)
    pieces = rows.batch(np.arange(len(rows)))
    masked = {}
    for take in ("top-1", "top-2"):
        spec = f"learned({spans!r}, take={take!r})"
        masker = Masker(tokenizer, policy=spec, ratio=1.0, corruption="mask-only")
        masked[take] = [masker(pieces, epoch=epoch) for epoch in (0, 1)]
    batch = masked["top-1"][0].source
    marked, score = (
        batch.layer(f"learned {spans}_{name}", scores=True) for name in ("span", "score")
    )
    chosen = {take: [each.choice.tokens for each in own] for take, own in masked.items()}
    assert (chosen["top-1"][0] == chosen["top-1"][1]).all()
    assert (chosen["top-2"][0] != chosen["top-2"][1]).any()
    for piece in range(len(rows)):
        inside = (batch.piece == piece) & (marked >= 0)
        ranked = sorted({(-score[at], marked[at]) for at in np.flatnonzero(inside)})
        best = [inside & (marked == number) for _, number in ranked[:2]]
        own = batch.piece == piece
        assert (chosen["top-1"][0][own] == best[0][own]).all()
        assert any((chosen["top-2"][0][own] == one[own]).all() for one in best)


def test_a_recipe_needs_to_name_the_policy_only(words, spans, tmp_path):
    path = write_inputs(tmp_path / "in")
    spec = f"learned({words!r})"
    recipe = read_recipe(
        path,
        [
            f"masking.policy={spec}",
            f"study.arms.token-15.masking.policy=learned({spans!r}, take='top-1')",
        ],
    )
    arm = recipe.arm("token-15", seed=0).links()[0]
    layers = recipe.links()[0].corpus.layers
    assert [annotator(each).folder.name for each in layers] == ["words"]
    assert [annotator(each).folder.name for each in arm.corpus.layers] == ["words", "spans"]
    assert validate(json.loads(arm.model_dump_json()), origin="again").corpus == arm.corpus
    assert recipe.policies == [spec]


def test_a_learned_policy_can_be_inspected(words, capsys):
    options = ["--policy", f"learned({words!r})", "--ratio", "0.4", "--json"]
    assert maskwise("inspect", "Bada kefe loninu", *options) == 0
    shown = json.loads(capsys.readouterr().out)
    assert any(piece["state"] != "shown" for piece in shown[0]["pieces"])


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


def test_scores_that_are_not_finite_end_the_run(words, tmp_path):
    made = PolicyModel.from_pretrained(words)
    with torch.no_grad():
        made.head.bias += float("nan")
    made.save_pretrained(tmp_path / "broken")
    with pytest.raises(MaskwiseError, match="not finite"):
        annotate_corpus(["bada kefe"], [f"learned({str(tmp_path / 'broken')!r})"], tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("learned('x', take='top')", "weights, spans, top-1"),
        ("learned('x', take='spans', power=2)", "power and explore need"),
        ("learned('x', take='top-1', explore=0.1)", "power and explore need"),
        ("learned('x', explore=1.5)", "explore .*got 1.5; allowed: a number from 0 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(spec, said):
    with pytest.raises(MaskwiseError, match=said):
        policy(spec)


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
