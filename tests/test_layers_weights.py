"""Layers of weights against examples worked by hand and plain Python; and under the policies that
read them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from maskwise.annotate.counts import words_of
from maskwise.annotate.registry import annotator
from maskwise.annotate.word_weights import (
    Difference,
    Informativeness,
    nearest,
    sentences_of,
    tf_icf,
    vectors_of,
)
from maskwise.base.errors import MaskwiseError
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
    corpus = ["The cat, the dog.", "A cat; THE end"]
    made = fitted("frequency", corpus, tmp_path / "f")
    text = "the Cat, a zebra."
    expected = [("the", 3), ("Cat", 2), (",", 1), ("a", 1), ("zebra", 0), (".", 1)]
    assert said(text, made.annotate([text])[0]["frequency"]) == expected
    again, other = (
        fitted("frequency", texts, tmp_path / name) for name, texts in (("g", corpus), ("h", ["x"]))
    )
    assert again.version == made.version, "by content, not by path"
    assert len({made.version, other.version, annotator("frequency").version}) == 3


def test_sentences_end_with_final_punctuation_lines_and_texts():
    words = words_of(["One two. Three U.S. x\nfour。five", "six"])
    numbers = sentences_of(words)[words.plain]
    assert numbers.tolist() == [1, 1, 2, 2, 2, 3, 4, 5, 6]


def test_informativeness_by_hand(tmp_path):
    """Pairs a–b twice, c–d once: c(a) = c(b) = 2, c(c) = c(d) = 1, T = 6; PMI(a, b) = log 3, PMI(c,
    d) = log 6.
    """
    made = fitted(
        "informativeness(min_count=1, min_pairs=1)", ["a b", "A b", "c d"], tmp_path / "i"
    )
    mean = (4 * math.log(3) + 2 * math.log(6)) / 6
    ab, cd = round(math.log(3) / mean, 5), round(math.log(6) / mean, 5)
    cases = {
        # Each a is beside b (log 3), b beside both; a–a and a–d were never met.
        "a b, a": [("a", ab), ("b", round(2 * math.log(3) / mean, 5)), ("a", ab)],
        # Not across sentences.
        "c d. c": [("c", cd), ("d", cd), ("c", 0.0)],
        "a d": [("a", 0.0), ("d", 0.0)],
        # No evidence: the mean.
        "a zebra": [("a", 0.0), ("zebra", 1.0)],
    }
    for (text, expected), found in zip(cases.items(), made.annotate([*cases])):
        assert said(text, found["informativeness"]) == expected
    word = Informativeness(table=str(tmp_path / "i"), per="word").annotate(["a d zebra"])
    assert said("a d zebra", word[0]["informativeness"]) == [("a", ab), ("d", cd), ("zebra", 1.0)]


@few
@given(texts=texts, window=st.integers(1, 4), least=st.integers(1, 3))
def test_informativeness_equals_plain_python(tmp_path_factory, texts, window, least):
    sentences = [
        re.findall("[a-z]", part) for part in re.split(r"[.!\n]", "\n".join(texts).lower())
    ]
    counts = Counter(chain.from_iterable(sentences))
    known = {word for word, count in counts.items() if count >= 2}
    folder = tmp_path_factory.mktemp("i")
    spec = f"informativeness(window={window}, min_count=2, min_pairs={least})"
    if not known:
        with pytest.raises(MaskwiseError, match="min_count"):
            annotator(spec).fit(texts, folder)
        return

    def near(sentence: list[str], place: int) -> list[str]:
        """The known neighbours of a known word."""
        around = sentence[max(0, place - window) : place] + sentence[place + 1 :][:window]
        return [word for word in around if {word, sentence[place]} <= known]

    pairs: Counter = Counter()
    for sentence in sentences:
        for place, word in enumerate(sentence):
            pairs.update((word, other) for other in near(sentence, place))
    marginal: Counter = Counter()
    for (word, _), count in pairs.items():
        marginal[word] += count

    def pmi(one: str, other: str) -> float:
        met = pairs[one, other] // (2 if one == other else 1)
        expected = marginal[one] * marginal[other] / pairs.total()
        return math.log(pairs[one, other] / expected) if met >= least else 0.0

    sums: list[float] = []
    for sentence in sentences:
        for place, word in enumerate(sentence):
            whole = sum(pmi(word, other) for other in near(sentence, place))
            sums.append(max(whole, 0.0) if word in known else math.nan)
    mean = float(np.nanmean(sums)) or 1.0
    made = annotator(annotator(spec).fit(texts, folder))
    found = np.concatenate([one["informativeness"].value for one in made.annotate(texts)])
    expected = [1.0 if math.isnan(one) else one / mean for one in sums]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "spec",
    ["informativeness(min_count=3)", "informativeness(per='word', min_count=1)", "difference"],
)
def test_weights_average_one_over_the_corpus(spec, tmp_path):
    rng = np.random.default_rng(0)
    corpus = [" ".join(f"w{i}" for i in rng.zipf(1.5, 80) % 50) for _ in range(60)]
    made = fitted(spec, corpus, tmp_path / "it")
    values = np.concatenate([one[made.name].value for one in made.annotate(corpus)])
    assert values.mean() == pytest.approx(1, abs=0.02) and values.min() >= 0


def test_tf_icf_by_hand():
    """10 words here, 40 there (and one more of each of three): log(1 + c) · log(share here / share
    there).
    """
    counts, others = np.array([6, 3, 1]), np.array([0, 36, 4])
    expected = [math.log(7) * math.log(0.6 / (1 / 43)), 0.0, 0.0]
    assert tf_icf(counts, others, 40).tolist() == pytest.approx(expected)
    vectors = np.array([[1, 0], [0, 2], [1, 1], [-1, 0], [0, 0]], dtype=np.float32)
    cosines = nearest(vectors, np.array([0, 1])).tolist()
    assert cosines == pytest.approx([1, 1, 0.5**0.5, 0, 0])


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


def test_the_version_of_an_unfitted_annotator_has_the_texts_that_it_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    general = tmp_path / "general.txt"
    versions = set()
    for text in ("the cat", "the owl"):
        general.write_text(text)
        versions |= {Difference(general=name).version for name in ("~/general.txt", str(general))}
    assert len(versions) == 4
    # A folder with the name of another setting is not read.
    before = Informativeness(per="text").version
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    assert Informativeness(per="text").version == before


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


@pytest.mark.parametrize(
    ("word", "weight", "says"),
    [
        (["a", None], [1.0, 2.0], r"words\.parquet: row 2 has no word"),
        ([1, 2], [1.0, 2.0], r"words\.parquet: row 1 has no word; got 1"),
        (["a", "b"], ["1", "high"], r"words\.parquet: weights must be numbers.*got string"),
        (["a", "b"], [1.0, None], r"words\.parquet: weights must be numbers"),
    ],
)
def test_a_table_that_was_edited_wrongly_is_refused_with_its_row(word, weight, says, tmp_path):
    pq.write_table(pa.table({"word": word, "weight": weight}), tmp_path / "words.parquet")
    with pytest.raises(MaskwiseError, match=says):
        annotator(f"frequency(table={str(tmp_path)!r})")
    pq.write_table(pa.table({"phrase": word}), tmp_path / "phrases.parquet")
    if "no word" in says:
        with pytest.raises(MaskwiseError, match=says.replace("word", "phrase")):
            annotator(f"phrases(vocabulary={str(tmp_path)!r})")


@pytest.mark.parametrize("spec", ["frequency", "informativeness(min_count=1)", "difference"])
def test_odd_texts_have_whole_spans(spec, tmp_path):
    made = fitted(spec, [*ODD, "the enzyme binds"] * 5, tmp_path / "it")
    for text, found in zip(ODD, made.annotate(ODD)):
        for name, layer in made.layers.items():
            check_spans(found[name], layer, len(text))
