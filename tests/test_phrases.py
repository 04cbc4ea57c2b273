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

from maskwise.annotate.counts import Table, blocks, find, fold, keys_of, words_of
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
from maskwise.errors import MaskwiseError
from maskwise.text.layers import CharSpans, check_spans

few = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
letters = st.sampled_from(["a", "b", "s", "A", "d", ",", ".", "\n", "it's", "d’s"])
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
        word = fold(text[start:end])
        glued = start > 1 and text[start - 1] in "'’" and not text[start - 2].isspace()
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
    return {
        tuple(text.split(" ")): (count, documents)
        for n, level in enumerate(counted.levels, 1)
        for text, count, documents in zip(
            counted.texts(n, np.arange(len(level.keys))),
            level.counts.tolist(),
            level.documents.tolist(),
        )
    }


@few
@given(
    texts=st.lists(st.text(max_size=30) | letters | st.sampled_from(ODD), min_size=1, max_size=5)
)
def test_words_stand_where_the_annotator_of_words_sees_them(texts):
    words = words_of(texts)
    every = np.arange(len(words.key))
    for (start, end, key), text, seen in zip(
        words.spans(every, every, words.key), texts, words_annotator().annotate(texts)
    ):
        assert (
            start.tolist() == seen["words"].start.tolist()
            and end.tolist() == seen["words"].end.tolist()
        )
        alone = words_of([text])
        assert key.tolist() == alone.key.tolist(), (
            "a hash does not depend on what stands around the text"
        )
        assert key.tolist() == keys_of([text[s:e] for s, e in zip(start, end)]).tolist()
    names = [words.name(place) for place in range(len(words.key))]
    assert len(set(names)) == len(set(words.key.tolist()))


def test_lower_case_keeps_places():
    for text in ODD:
        assert len(fold(text)) == len(text)
    assert keys_of(["ΟΔΟΣ"]) == keys_of(["οδος"]) == keys_of(["οδοσ"])
    # Letters that change places, or stand far apart, are another word.
    long = "ab" + "x" * 300
    assert (
        len(
            set(keys_of(["ab", "ba", "aab", "abb", "", long, "ba" + long[2:], long + "x"]).tolist())
        )
        == 8
    )


@few
@given(
    keys=st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=8), limit=st.integers(4, 40)
)
def test_a_table_counts_and_says_what_it_lost(keys, limit):
    exact, small, truth = Table(), Table(limit=limit), Counter(chain.from_iterable(keys))
    for block in keys:
        exact.add(np.array(block, dtype=np.uint64))
        small.add(np.array(block, dtype=np.uint64))
        assert len(small.keys) <= limit
    assert dict(zip(exact.keys.tolist(), exact.counts.tolist())) == truth and not exact.lost
    assert exact.total == small.total == sum(truth.values())
    kept = dict(zip(small.keys.tolist(), small.counts.tolist()))
    assert all(truth[key] - small.lost <= kept.get(key, 0) <= truth[key] for key in truth)
    assert find(exact.keys, np.array([5, 99], dtype=np.uint64)).tolist() == [
        sorted(truth).index(5) if 5 in truth else -1,
        -1,
    ]


@few
@given(
    texts=texts, min_count=st.integers(0, 3), min_documents=st.integers(1, 2), paper=st.booleans()
)
def test_counts_and_scores_equal_those_of_enumeration(
    tmp_path_factory, texts, min_count, min_documents, paper
):
    counts, documents = brute_counts(texts)
    counted = count_ngrams(
        texts, tmp_path_factory.mktemp("c"), min_count=min_count, min_documents=min_documents
    )
    expected = {
        gram: (count, len(documents[gram]))
        for gram, count in counts.items()
        if count > min_count and len(documents[gram]) >= min_documents
    }
    assert counted_grams(counted) == expected
    assert (
        counted.total == sum(count for gram, count in counts.items() if len(gram) == 1)
        and not counted.lost
    )
    for n, scores in score_ngrams(counted, paper=paper).items():
        for text, score in zip(counted.texts(n, np.arange(len(scores))), scores.tolist()):
            assert score == pytest.approx(
                brute_score(tuple(text.split(" ")), counts, counted.total, paper=paper), abs=1e-9
            )


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


@few
@given(texts=texts, data=st.data())
def test_phrases_are_found_longest_first(texts, data):
    grams = sorted(gram for gram in brute_counts(texts)[0] if len(gram) > 1)
    phrases = data.draw(st.lists(st.sampled_from(grams), max_size=8, unique=True)) if grams else []
    found = found_in(texts, [" ".join(gram) for gram in phrases])
    for text, spans in zip(texts, found):
        expected = []
        for run in plain_runs(text):
            begins: dict[int, list[str]] = {}
            for n in (5, 4, 3, 2):
                for i in range(len(run) - n + 1):
                    free = all(i + n <= j or j + len(other) <= i for j, other in begins.items())
                    if tuple(run[i : i + n]) in phrases and free:
                        begins[i] = run[i : i + n]
            expected += [words for _, words in sorted(begins.items())]
        assert [
            fold(text[s:e]).split() for s, e in zip(spans.start.tolist(), spans.end.tolist())
        ] == expected
        check_spans(spans, Phrases.layers["phrase"], len(text))


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
    for text, one in zip(ODD, found_in(ODD, phrases)):
        check_spans(one, Phrases.layers["phrase"], len(text))


def small_corpus() -> list[str]:
    rng = np.random.default_rng(1)
    words = [f"word{number}" for number in range(60)]
    made = []
    for _ in range(40):
        pieces = [words[i] for i in rng.integers(0, 60, 60)]
        for place in (5, 20, 40):
            pieces[place:place] = ["New", "York"] if place != 20 else ["the", "Prime", "Minister"]
        made.append(" ".join(pieces))
    return made


def test_a_fitted_vocabulary_is_used_again(tmp_path):
    corpus = small_corpus()
    fresh = annotator("phrases(size=40, min_count=10)")
    assert not fresh.fitted and fresh.version == annotator("phrases(size=40)").version
    (tmp_path / "a").mkdir()
    spec = fresh.fit(iter(corpus), tmp_path / "a")
    again = annotator(spec)
    assert again.fitted and sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "facts.json",
        "phrases.parquet",
    ]
    assert json.loads((tmp_path / "a" / "facts.json").read_text())["counts_too_low_by_at_most"] == 0
    text = "He saw New York, the prime minister and York"
    spans = again.annotate([text])[0]["phrase"]
    assert [text[s:e] for s, e in zip(spans.start, spans.end)] == ["New York", "the prime minister"]

    listed = tmp_path / "mine.txt"
    listed.write_text("New York\n\nthe prime minister\n", encoding="utf-8")
    mine = Phrases(vocabulary=str(listed))
    assert mine.annotate([text])[0]["phrase"].start.tolist() == spans.start.tolist()
    assert len({mine.version, again.version, fresh.version, Phrases(paper=True).version}) == 4
    (tmp_path / "b").mkdir()
    assert annotator(fresh.fit(corpus, tmp_path / "b")).version == again.version, (
        "by content, not by path"
    )


def test_the_size_follows_the_corpus():
    assert vocabulary_size(2_600_000_000) == 800_000 and vocabulary_size(26_000_000) == 80_000


def test_mistakes_are_one_line(tmp_path):
    for settings_, says in (({"size": 1}, "size ≥ 2"), ({"min_documents": 0}, "min_documents ≥ 1")):
        with pytest.raises(MaskwiseError, match=says):
            Phrases(**settings_)
    with pytest.raises(MaskwiseError, match="cannot read"):
        Phrases(vocabulary=str(tmp_path / "none"))
    with pytest.raises(MaskwiseError, match="maskwise annotate"):
        Phrases(vocabulary=str(tmp_path))
    (tmp_path / "phrases.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(MaskwiseError, match="cannot read"):
        Phrases(vocabulary=str(tmp_path))
    (tmp_path / "bad.txt").write_text("new york\nrock 'n' roll\n")
    with pytest.raises(MaskwiseError, match="must not have punctuation"):
        Phrases(vocabulary=str(tmp_path / "bad.txt")).annotate(["x"])


@pytest.mark.parametrize("texts", [[], ["a b c"], ["", "?!"]])
def test_too_little_text_makes_an_empty_vocabulary_with_a_notice(texts, tmp_path):
    made = annotator(Phrases(min_count=3).fit(texts, tmp_path))
    assert made.fitted and made.version == Phrases(vocabulary=str(tmp_path)).version
    assert "(min_count=3, min_documents=5)" in made.notice
    assert [len(found["phrase"].start) for found in made.annotate(["a b c", ""])] == [0, 0]


def test_a_notice_says_that_phrases_are_few(tmp_path):
    texts = [f"one of the birds in the woods, {n}" for n in range(8)]
    made = annotator(Phrases(min_count=3, size=1000).fit(texts, tmp_path))
    assert re.match(r"only \d phrases among these 64 words .*pairs such as 'of the'", made.notice)
    assert annotator(Phrases(min_count=3, size=4).fit(texts, tmp_path)).notice is None
    listed = tmp_path / "mine.txt"
    for content, notice in (("\n", "mine.txt"), ("new york\n", "None")):
        listed.write_text(content)
        assert notice in str(Phrases(vocabulary=str(listed)).notice)
    assert Phrases().notice is None


def test_bad_vocabularies_are_told_in_one_line(tmp_path):
    Phrases(min_count=3, min_documents=1, size=4).fit(["new york is far"] * 9, tmp_path)
    (tmp_path / "facts.json").write_text("{")
    assert "facts.json is damaged" in str(Phrases(vocabulary=str(tmp_path)).notice)
    with pytest.raises(MaskwiseError, match="vocabulary is empty"):
        Phrases(vocabulary="")
    with pytest.raises(MaskwiseError, match="must not have punctuation; got so, so"):
        phrase_keys(["new york", "so, so"])


def test_a_notice_advises_no_higher_floor_than_the_one_there_is(tmp_path):
    made = annotator(Phrases(min_count=1, min_documents=10**6).fit(["new york"] * 5, tmp_path))
    assert "phrases(min_count=1, min_documents=1)" in made.notice


def test_fragments_chain():
    """Of 100, 90 and 81 occurrences, as the documentation of the module says, one is kept."""
    texts = ["p q r s"] * 81 + ["p q r"] * 9 + ["p q"] * 10 + ["p", "q", "r", "s"] * 50
    with tempfile.TemporaryDirectory() as folder:
        chosen = choose_phrases(count_ngrams(texts, Path(folder)), size=80)
    phrases = chosen["phrase"].to_pylist()
    assert "p q r s" in phrases and not {"p q", "p q r"} & set(phrases)
