"""Words, counts, n-grams and phrases against plain Python that counts one thing after the other."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from itertools import chain, combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskwise.annotate.counts import CountTable, blocks, keys_of, lower_case, words_of
from maskwise.annotate.phrases import (
    FRAGMENT,
    SHARES,
    Phrases,
    choose_phrases,
    count_ngrams,
    find_phrases,
    phrase_keys,
    score_ngrams,
    vocabulary_size,
)
from maskwise.annotate.registry import annotator
from maskwise.annotate.registry import words as words_annotator
from maskwise.base.errors import MaskwiseError
from maskwise.text.layers import CharSpans, check_spans

few = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
letters = st.sampled_from(["a", "b", "s", "A", "d", ",", ".", "\n", "it's", "d’s", "a'll", "a'bad"])
texts = st.lists(st.lists(letters, max_size=40).map(" ".join), min_size=1, max_size=6)
ODD = [
    "",
    " \n",
    "don't stop",
    "naïve café 😀👍🏽 東京タワー",
    "a\u00a0b\u200bc",
    "İstanbul ΟΔΟΣ.Σ",
    "x" * 200,
    "'s",
    "''",
    "🇩🇪!",
]


def found_in(texts: list[str], phrases: list[str]) -> list[CharSpans]:
    keys = phrase_keys(phrases)
    return [spans for words in blocks(texts) for spans in find_phrases(words, keys)]


def plain_runs(text: str) -> list[list[str]]:
    """The stretches of a text that n-grams may stand in: words in lower case between borders."""
    found = words_annotator().annotate([text])[0]["words"]
    runs, run, before = [], [], 0
    for start, end in zip(found.start.tolist(), found.end.tolist()):
        word = lower_case(text[start:end])
        glued = start > 1 and text[start - 1] in "'’" and not text[start - 2].isspace()
        glued = glued and end - start <= 2
        if "\n" in text[before:start] or not word[0].isalnum() or glued:
            runs.append(run)
            run = []
        if word[0].isalnum() and not glued:
            run.append(word)
        else:
            runs.append(run)
            run = []
        before = end
    return [run for run in [*runs, run] if run]


def brute_counts(
    texts: list[str], longest: int = 5
) -> tuple[Counter, dict[tuple[str, ...], set[int]]]:
    counts: Counter = Counter()
    documents: dict[tuple[str, ...], set[int]] = {}
    for number, text in enumerate(texts):
        for run in plain_runs(text):
            for n in range(1, longest + 1):
                for i in range(len(run) - n + 1):
                    gram = tuple(run[i : i + n])
                    counts[gram] += 1
                    documents.setdefault(gram, set()).add(number)
    return counts, documents


def brute_score(gram: tuple[str, ...], counts: Counter, total: int, *, paper: bool) -> float:
    def log_p(part: tuple[str, ...]) -> float:
        return math.log(counts[part] / total)

    n, sums = len(gram), []
    for cuts in range(1, n):
        for places in combinations(range(1, n), cuts):
            sums.append(sum(log_p(gram[i:j]) for i, j in pairwise([0, *places, n])))
    return min((1 if paper else 2) * log_p(gram) - one for one in sums)


def counted_grams(counted) -> dict[tuple[str, ...], tuple[int, int]]:
    found = {}
    for n, level in enumerate(counted.levels, 1):
        texts = counted.texts(n, np.arange(len(level.keys)))
        for text, *facts in zip(texts, level.counts.tolist(), level.documents.tolist()):
            found[tuple(text.split(" "))] = tuple(facts)
    return found


@few
@given(
    texts=st.lists(st.text(max_size=30) | letters | st.sampled_from(ODD), min_size=1, max_size=5)
)
def test_words_stand_where_the_annotator_of_words_sees_them(texts):
    words = words_of(texts)
    every = np.arange(len(words.key))
    found = words.spans(every, every, words.key)
    for (start, end, key), text, seen in zip(found, texts, words_annotator().annotate(texts)):
        np.testing.assert_equal((start, end, None), tuple(seen["words"]))
        # A hash does not depend on what stands around the text.
        assert key.tolist() == words_of([text]).key.tolist()
        assert key.tolist() == keys_of([text[s:e] for s, e in zip(start, end)]).tolist()
    names = {words.name(place) for place in range(len(words.key))}
    assert len(names) == len(set(words.key.tolist()))


def test_lower_case_keeps_places():
    assert [len(lower_case(text)) for text in ODD] == [len(text) for text in ODD]
    assert keys_of(["ΟΔΟΣ"]) == keys_of(["οδος"]) == keys_of(["οδοσ"])
    # Letters that change places, or stand far apart, are another word.
    far = "x" * 300
    words = ["ab", "ba", "aab", "abb", "", f"ab{far}", f"ba{far}", f"ab{far}x"]
    assert len(set(keys_of(words).tolist())) == len(words)


@few
@given(
    keys=st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=8), limit=st.integers(4, 40)
)
def test_a_table_counts_and_says_what_it_lost(keys, limit):
    exact, small, truth = CountTable(), CountTable(limit=limit), Counter(chain.from_iterable(keys))
    for block in keys:
        for table in (exact, small):
            table.add(np.array(block, dtype=np.uint64))
        assert len(small.keys) <= limit
    assert dict(zip(exact.keys.tolist(), exact.counts.tolist())) == truth and not exact.lost
    assert exact.total == small.total == truth.total()
    wanted = np.array([*truth, 99], dtype=np.uint64)
    for key, count in zip(truth, small.of(wanted).tolist()):
        assert truth[key] - small.lost <= count <= truth[key]
    assert exact.of(wanted).tolist() == [*truth.values(), 0]


@few
@given(
    texts=texts, min_count=st.integers(0, 3), min_documents=st.integers(1, 2), paper=st.booleans()
)
def test_counts_and_scores_equal_those_of_enumeration(
    tmp_path_factory, texts, min_count, min_documents, paper
):
    counts, documents = brute_counts(texts)
    floors = {"min_count": min_count, "min_documents": min_documents}
    counted = count_ngrams(texts, tmp_path_factory.mktemp("c"), **floors)
    expected = {}
    for gram, count in counts.items():
        if count > min_count and len(documents[gram]) >= min_documents:
            expected[gram] = (count, len(documents[gram]))
    assert counted_grams(counted) == expected and not counted.lost
    assert counted.total == sum(count for gram, count in counts.items() if len(gram) == 1)
    for n, scores in score_ngrams(counted, paper=paper).items():
        grams = [tuple(text.split(" ")) for text in counted.texts(n, np.arange(len(scores)))]
        brute = [brute_score(gram, counts, counted.total, paper=paper) for gram in grams]
        assert scores.tolist() == pytest.approx(brute, abs=1e-9)


@few
@given(texts=texts, size=st.integers(2, 60))
def test_the_vocabulary_has_the_best_of_each_length_without_fragments(
    tmp_path_factory, texts, size
):
    counts, _ = brute_counts(texts)
    counted = count_ngrams(texts, tmp_path_factory.mktemp("c"), min_count=1)
    frequent = {gram: count for gram, count in counts.items() if count > 1}
    scores = {
        gram: brute_score(gram, counts, counted.total, paper=False)
        for gram in frequent
        if len(gram) > 1
    }
    chosen = choose_phrases(counted, size=size).to_pylist()
    inside: set[tuple[str, ...]] = set()
    for n in (5, 4, 3, 2):
        mine = [tuple(one["phrase"].split(" ")) for one in chosen if one["length"] == n]
        covered = {part: 0 for part in scores if len(part) == n}
        for longer in inside:
            for part in (longer[:-1], longer[1:]):
                covered[part] = max(covered[part], frequent[longer])
        fragments = {gram for gram, most in covered.items() if most >= FRAGMENT * frequent[gram]}
        rest = sorted((scores[gram] for gram in set(covered) - fragments), reverse=True)[
            : round(size * SHARES[n])
        ]
        assert [scores[gram] for gram in mine] == pytest.approx(rest, abs=1e-9) and not set(
            mine
        ) & fragments
        inside = set(mine) | fragments
    for one in chosen:
        assert one["count"] == frequent[tuple(one["phrase"].split(" "))]


def test_phrases_by_hand():
    phrases = ["new york", "new york city", "york city", "in new", "the united states of america"]
    text = (
        "In New York City, New\nYork; new-york NEW  YORK. York City in New York's United "
        "States of America"
    )
    spans = found_in([text, "", "york"], phrases)
    assert [text[s:e] for s, e in zip(spans[0].start, spans[0].end)] == [
        "New York City",
        "NEW  YORK",
        "York City",
        "in New",
    ]
    assert [len(one.start) for one in spans] == [4, 0, 0]
    text = "L'intelligence artificielle, l’intelligence artificielle"
    [spans] = found_in([text], ["intelligence artificielle"])
    assert (spans.start.tolist(), spans.end.tolist()) == ([2, 31], [27, 56])
    for text, one in zip(ODD, found_in(ODD, phrases)):
        check_spans(one, Phrases.layers["phrase"], len(text))


def small_corpus() -> list[str]:
    rng = np.random.default_rng(1)
    made = []
    for _ in range(40):
        words = [f"word{number}" for number in rng.integers(0, 60, 60)]
        words[5:5] = words[40:40] = ["New", "York"]
        words[20:20] = ["the", "Prime", "Minister"]
        made.append(" ".join(words))
    return made


def test_a_fitted_vocabulary_is_used_again(tmp_path):
    corpus = small_corpus()
    fresh = annotator("phrases(size=40, min_count=10)")
    assert not fresh.fitted and fresh.version == annotator("phrases(size=40)").version
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        made.append(annotator(fresh.fit(iter(corpus), tmp_path / name)))
    again, other = made
    assert again.fitted and again.version == other.version, "by content, not by path"
    assert json.loads((tmp_path / "a" / "facts.json").read_text())["counts_too_low_by_at_most"] == 0
    text = "He saw New York, the prime minister and York"
    listed = tmp_path / "mine.txt"
    # Some editors write a byte-order mark.
    listed.write_text("New York\n\nthe prime minister\n", encoding="utf-8-sig")
    mine = Phrases(vocabulary=str(listed))
    for one in (again, mine):
        start, end, _ = one.annotate([text])[0]["phrase"]
        assert [text[s:e] for s, e in zip(start, end)] == ["New York", "the prime minister"]
    assert len({mine.version, again.version, fresh.version, Phrases(paper=True).version}) == 4
    assert vocabulary_size(2_600_000_000) == 800_000 and vocabulary_size(26_000_000) == 80_000


@pytest.mark.parametrize(
    ("settings", "content", "message"),
    [
        ({"size": 1}, None, "size ≥ 2"),
        ({"min_documents": 0}, None, "min_documents ≥ 1"),
        ({"vocabulary": ""}, None, "vocabulary is empty"),
        ({"vocabulary": "none"}, None, "cannot read"),
        ({"vocabulary": "."}, None, "maskwise annotate"),
        ({"vocabulary": "."}, ("phrases.parquet", "PAR1 no"), "cannot read"),
        (
            {"vocabulary": "bad.txt"},
            ("bad.txt", "new york\nso, so\n"),
            "must not have punctuation; got so, so",
        ),
    ],
)
def test_mistakes_are_one_line(settings, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        Path(content[0]).write_text(content[1])
    with pytest.raises(MaskwiseError, match=message) as error:
        Phrases(**settings).annotate(["x"])
    assert "\n" not in str(error.value)


FEW = [f"one of the birds in the woods, {n}" for n in range(8)]


@pytest.mark.parametrize(
    ("texts", "settings", "notice"),
    [
        ([], {"min_count": 3}, r"no phrases .*\(min_count=3, min_documents=5\)"),
        (["a b c"], {"min_count": 3}, r"no phrases"),
        (["", "?!"], {"min_count": 3}, r"no phrases"),
        (FEW, {"min_count": 3, "size": 1000}, r"only \d phrases .*64 words .*such as 'of the'"),
        (FEW, {"min_count": 3, "size": 4}, None),
        # The advice is never a higher threshold than the one there is.
        (FEW, {"min_count": 1, "min_documents": 99}, r"phrases\(min_count=1, min_documents=1\)"),
    ],
)
def test_a_vocabulary_with_few_phrases_has_a_notice(texts, settings, notice, tmp_path):
    made = annotator(Phrases(**settings).fit(texts, tmp_path))
    assert made.fitted and Phrases().notice is None
    if notice is None:
        assert made.notice is None
        (tmp_path / "facts.json").write_text("{")
        notice = "facts.json is damaged"
    assert re.search(notice, made.notice)
    assert len(made.annotate(["a b c", ""])) == 2


@pytest.mark.parametrize(("content", "notice"), [("\n", "mine.txt"), ("new york\n", "None")])
def test_a_list_without_phrases_has_a_notice(content, notice, tmp_path):
    (tmp_path / "mine.txt").write_text(content)
    assert notice in str(Phrases(vocabulary=str(tmp_path / "mine.txt")).notice)


def test_fragments_chain():
    """Of 100, 90 and 81 occurrences, as the documentation of the module says, one is kept."""
    texts = ["p q r s"] * 81 + ["p q r"] * 9 + ["p q"] * 10 + ["p", "q", "r", "s"] * 50
    with tempfile.TemporaryDirectory() as folder:
        chosen = choose_phrases(count_ngrams(texts, Path(folder)), size=80)
    phrases = chosen["phrase"].to_pylist()
    assert "p q r s" in phrases and not {"p q", "p q r"} & set(phrases)
