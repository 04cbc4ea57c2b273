"""Layers of weights against examples worked by hand and plain Python; and under the policies that
read them.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from maskwise.annotate.counts import words_of
from maskwise.annotate.registry import annotator
from maskwise.annotate.weights import (
    Difference,
    Informativeness,
    nearest,
    sentences_of,
    tf_icf,
    vectors_of,
)
from maskwise.errors import MaskwiseError
from maskwise.text import train_tokenizer
from maskwise.text.layers import CharSpans, check_spans

few = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "A", "e,", "a.", "b!", "\n"]), max_size=25).map(
        " ".join
    ),
    min_size=1,
    max_size=5,
)
ODD = ["", " \n", "don't 😀👍🏽 東京", "a\u00a0b\u200bc", "İstanbul. ΟΔΟΣ", "'s"]


def said(text: str, spans: CharSpans) -> list[tuple[str, float]]:
    assert spans.value is not None
    return [(text[s:e], round(float(v), 5)) for s, e, v in zip(*spans)]


def fitted(spec: str, corpus: list[str], folder: Path):
    folder.mkdir()
    return annotator(annotator(spec).fit(iter(corpus), folder))


def test_frequency_is_the_count_in_the_corpus(tmp_path):
    made = fitted("frequency", ["The cat, the dog.", "A cat; THE end"], tmp_path / "f")
    text = "the Cat, a zebra."
    expected = [("the", 3), ("Cat", 2), (",", 1), ("a", 1), ("zebra", 0), (".", 1)]
    assert said(text, made.annotate([text])[0]["frequency"]) == expected
    assert (
        made.fitted
        and not annotator("frequency").fitted
        and made.version != annotator("frequency").version
    )
    other = fitted("frequency", ["The cat, the dog.", "A cat; THE end"], tmp_path / "g")
    assert other.version == made.version, "by content, not by path"
    assert fitted("frequency", ["more"], tmp_path / "h").version != made.version


def test_sentences_end_with_final_punctuation_lines_and_texts():
    words = words_of(["One two. Three U.S. x\nfour。five", "six"])
    names = [words.name(place) for place in range(len(words.key))]
    numbers = dict(zip(names, sentences_of(words).tolist()))
    starts = [
        numbers[name] for name in ("one", "two", "three", "u", "s", "x", "four", "five", "six")
    ]
    assert starts == [1, 1, 2, 2, 2, 3, 4, 5, 6]


def test_informativeness_by_hand(tmp_path):
    """Pairs a–b twice, c–d once: c(a) = c(b) = 2, c(c) = c(d) = 1, T = 6; PMI(a, b) = log 3, PMI(c,
    d) = log 6.
    """
    corpus = ["a b", "A b", "c d"]
    made = fitted("informativeness(min_count=1, min_pairs=1)", corpus, tmp_path / "i")
    mean = (4 * math.log(3) + 2 * math.log(6)) / 6
    ab, cd = round(math.log(3) / mean, 5), round(math.log(6) / mean, 5)
    found = made.annotate(["a b, a", "c d. c", "a d", "a zebra"])
    # Each a is beside b (log 3), b beside both; a–a and a–d were never met.
    assert said("a b, a", found[0]["informativeness"]) == [
        ("a", ab),
        ("b", round(2 * math.log(3) / mean, 5)),
        ("a", ab),
    ]
    assert said("c d. c", found[1]["informativeness"]) == [("c", cd), ("d", cd), ("c", 0.0)], (
        "not across sentences"
    )
    assert said("a d", found[2]["informativeness"]) == [("a", 0.0), ("d", 0.0)]
    assert said("a zebra", found[3]["informativeness"]) == [("a", 0.0), ("zebra", 1.0)], (
        "no evidence: the mean"
    )
    word = Informativeness(table=str(tmp_path / "i"), per="word").annotate(["a d zebra", "d"])
    assert said("a d zebra", word[0]["informativeness"]) == [("a", ab), ("d", cd), ("zebra", 1.0)]
    assert word[1]["informativeness"].value[0] == word[0]["informativeness"].value[1]


@few
@given(texts=texts, window=st.integers(1, 4), least=st.integers(1, 3))
def test_informativeness_equals_plain_python(tmp_path_factory, texts, window, least):
    sentences = [[name for name, _ in group] for text in texts for group in _sentences(text)]
    counts = Counter(word for sentence in sentences for word in sentence)
    known = {word for word, count in counts.items() if count >= 2}
    pairs: Counter = Counter()
    for sentence in sentences:
        for i, one in enumerate(sentence):
            for other in sentence[i + 1 : i + 1 + window]:
                if {one, other} <= known:
                    pairs[one, other] += 1
                    pairs[other, one] += 1
    folder = tmp_path_factory.mktemp("i")
    spec = f"informativeness(window={window}, min_count=2, min_pairs={least})"
    if not known:
        with pytest.raises(MaskwiseError, match="min_count"):
            annotator(spec).fit(texts, folder)
        return
    made = annotator(annotator(spec).fit(texts, folder))
    total, marginal = sum(pairs.values()), Counter()
    for (one, _), count in pairs.items():
        marginal[one] += count

    def pmi(one: str, other: str) -> float:
        met = pairs[one, other] // (2 if one == other else 1)
        return (
            math.log(pairs[one, other] * total / (marginal[one] * marginal[other]))
            if met >= least
            else 0.0
        )

    sums: list[float] = []
    for sentence in sentences:
        for i, one in enumerate(sentence):
            near = [
                j for j in range(max(0, i - window), min(len(sentence), i + window + 1)) if j != i
            ]
            whole = sum(pmi(one, sentence[j]) for j in near if {one, sentence[j]} <= known)
            sums.append(max(whole, 0.0) if one in known else math.nan)
    mean = float(np.nanmean(sums)) or 1.0
    expected = [1.0 if math.isnan(one) else one / mean for one in sums]
    found = np.concatenate([one["informativeness"].value for one in made.annotate(texts)])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def _sentences(text: str) -> list[list[tuple[str, int]]]:
    """Words of the letters a to e, cut at "." and "!" and lines."""
    groups: list[list[tuple[str, int]]] = [[]]
    for place, char in enumerate(text):
        if char in ".!\n":
            groups.append([])
        elif char.isalpha():
            groups[-1].append((char.lower(), place))
    return groups


def test_weights_average_one_over_the_corpus(tmp_path):
    rng = np.random.default_rng(0)
    corpus = [" ".join(f"w{i}" for i in rng.zipf(1.5, 80) % 50) for _ in range(60)]
    for spec in (
        "informativeness(min_count=3)",
        "informativeness(per='word', min_count=1)",
        "difference(general='bundled:wikipedia')",
    ):
        made = fitted(spec, corpus, tmp_path / str(len(list(tmp_path.iterdir()))))
        (name,) = made.layers
        values = np.concatenate([one[name].value for one in made.annotate(corpus)])
        assert values.mean() == pytest.approx(1, abs=0.02) and values.min() >= 0


def test_tf_icf_by_hand():
    """10 words here, 40 there (and one more of each of three): log(1 + c) · log(share here / share
    there).
    """
    counts, others = np.array([6, 3, 1]), np.array([0, 36, 4])
    expected = [math.log(7) * math.log(0.6 / (1 / 43)), math.log(4) * 0.0, math.log(2) * 0.0]
    assert tf_icf(counts, others, 40).tolist() == pytest.approx(expected)
    assert nearest(
        np.array([[1, 0], [0, 2], [1, 1], [-1, 0], [0, 0]], dtype=np.float32), np.array([0, 1])
    ).tolist() == (pytest.approx([1, 1, 0.5**0.5, 0, 0]))


def test_difference_and_its_anchors(tmp_path):
    target = ["the enzyme binds the kinase and" + f" hero{i}" * 30 for i in range(8)]
    general = tmp_path / "general.txt"
    general.write_text("the cat and the dog\n\nthe end and the beginning of the day\n" * 20)
    spec = f"difference(general={str(general)!r}, anchors=2, min_documents=5)"
    made = fitted(spec, target, tmp_path / "d")
    text = "The kinase and, the cat"
    weights = dict(said(text, made.annotate([text])[0]["difference"]))
    assert (
        weights["kinase"] > 0 == weights["and"] == weights["The"] == weights["cat"] == 0
        and "," not in weights
    )
    with pytest.raises(MaskwiseError, match="sets this corpus apart"):
        Difference(general=str(general)).fit(["?!"], tmp_path / "d")


def test_vectors_are_means_of_the_embeddings_of_a_word(tmp_path):
    target = ["the enzyme binds the kinase"] * 8
    tokenizer = train_tokenizer([*target, "cats and mats"], vocab_size=64)
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=2)
    model = BertForMaskedLM(config)
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    model.get_input_embeddings().weight.data = table
    model.save_pretrained(tmp_path)
    words = ["kinase", "mattress"]
    for word, vector in zip(words, vectors_of(words, tmp_path)):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert np.allclose(vector, table[ids].mean(0), atol=1e-6)
    spec = f"difference(vectors={str(tmp_path)!r}, anchors=1)"
    made = fitted(spec, target, tmp_path / "d")
    weights = made.annotate(target[:1])[0]["difference"].value
    assert weights.argmax() in (1, 2, 4) and len(set(weights.tolist())) > 1
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MaskwiseError, match="cannot load"):
        vectors_of(words, tmp_path)


def test_mistakes_are_one_line(tmp_path):
    for spec, says in (
        ("informativeness(per='line')", "text, word"),
        ("informativeness(window=0)", "at least 1"),
        ("difference(anchors=0)", "at least 1"),
        (f"frequency(table={str(tmp_path)!r})", "maskwise annotate"),
    ):
        with pytest.raises(MaskwiseError, match=says):
            annotator(spec)


@pytest.mark.parametrize("spec", ["frequency", "informativeness(min_count=1)", "difference"])
def test_odd_texts_have_whole_spans(spec, tmp_path):
    made = fitted(spec, [*ODD, "the enzyme binds"] * 5, tmp_path / "it")
    for text, found in zip(ODD, made.annotate(ODD)):
        for name, layer in made.layers.items():
            check_spans(found[name], layer, len(text))
