"""Near copies across the split of a corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from maskwise.annotate.counts import hashes_of, words_of
from maskwise.evaluation.measures.copies import (
    SIMILAR,
    Shingles,
    near_copies,
    shingles_of,
    similarity,
)
from maskwise.studies.forecast import check
from maskwise.text import Document, read_documents
from maskwise.text.rows import holds_out


def in_test(document: Document) -> bool:
    return document.name.startswith("test")


@pytest.fixture(scope="module")
def articles() -> list[str]:
    return [document.text[:900] for document in read_documents("bundled:wikipedia", limit=200)]


def changed(text: str, words: int) -> str:
    """Replace so many words, at equal distances."""
    parts = text.split()
    for number in range(words):
        parts[(number + 1) * len(parts) // (words + 1)] = "otherwise"
    return " ".join(parts)


def set_of(text: str) -> Shingles:
    [shingles] = shingles_of([text])
    return np.unique(shingles)


def test_the_similarity_is_that_of_sets_of_five_words():
    text = " ".join(map(str, range(100)))
    assert len(set_of(text)) == 96
    assert similarity(set_of(text), set_of(text.replace(" ", "\n") + "  ")) == 1
    # A changed word is in five of 96 runs.
    assert similarity(set_of(text), set_of(changed(text, 1))) == 91 / 101
    assert len(set_of("The cat sat.")) == 1
    assert similarity(set_of("The CAT sat."), set_of("the cat, sat")) == 1
    # Letters of a text without words, and ideographs.
    assert len(set_of("MKVLAAGIVGLLLAQWERTYMKHG")) == 20
    assert len(set_of("我们在北京大学学习")) == 5


def test_a_text_has_the_same_runs_alone_and_among_others(articles: list[str]) -> None:
    texts = [*articles[:9], "The cat sat.", "MKVLAAGIVGLLLAQWERTYMKHG" * 9, *articles[9:20]]
    for text, shingles in zip(texts, shingles_of(texts), strict=True):
        assert np.array_equal(np.unique(shingles), set_of(text))


def test_hashes_alone_are_those_of_the_words_of_letters_and_digits(articles: list[str]) -> None:
    texts = [*articles[:9], "", "Don't ΣΑΣ İ", " \n ", "👩‍🔬 我们é"]
    words = words_of(texts)
    written = np.array([chr(letter).isalnum() for letter in words.letter])
    found = hashes_of(texts)
    assert found.key.tolist() == words.key[written].tolist()
    assert found.sizes.tolist() == np.bincount(words.text[written], minlength=13).tolist()
    assert found.sizes.tolist()[9:] == [0, 4, 0, 3]
    whole = "\n".join(texts)
    parts = [whole[start:end] for start, end in zip(found.start, found.end)]
    assert parts[-7:] == ["Don", "t", "ΣΑΣ", "İ", "我", "们", "é"]
    assert not len(hashes_of([]).key) and hashes_of([""]).sizes.tolist() == [0]


@pytest.mark.parametrize(("words", "near"), [(12, 0), (13, 1), (14, 1)])
def test_four_fifths_are_a_near_copy(words: int, near: int) -> None:
    """Texts that differ in the last word share all runs of five words but one: 8 of 10 for 13."""
    text = [f"w{number}" for number in range(words)]
    documents = [Document("train", " ".join(text)), Document("test", " ".join([*text[:-1], "x"]))]
    assert similarity(*(set_of(each.text) for each in documents)) == (words - 5) / (words - 3)
    assert near_copies(documents, in_test).near == near


def test_no_pair_is_missed(articles: list[str]) -> None:
    """Texts with all similarities, of which many share half of their words, against all pairs."""
    whole = " ".join(articles[:3])
    documents = []
    for number in range(60):
        text = changed(f"{whole} {articles[number % 10]}", number // 5)
        documents.append(Document(f"{'test' if number % 3 else 'train'}-{number}", text))
    sets = {document.name: set_of(document.text) for document in documents}
    training = [name for name in sets if name.startswith("train")]
    expected = []
    for name in sets:
        near = [each for each in training if similarity(sets[name], sets[each]) >= SIMILAR]
        if name.startswith("test") and near:
            expected.append((name, near[0]))
    found = near_copies(documents, in_test)
    assert found.near == len(expected) and 5 < found.near < found.held_out
    assert found.examples == expected[:2]


def test_planted_copies_are_found_and_others_are_not(articles: list[str]) -> None:
    documents = [Document(f"train-{n}", text) for n, text in enumerate(articles)]
    near = [n for n, text in enumerate(articles) if len(text.split()) > 120][:20]
    documents += [Document(f"test-{n}", changed(articles[n], 2)) for n in near]
    # With many changes, the similarity is below .8.
    documents += [Document(f"test-far-{n}", changed(articles[n], 15)) for n in near]
    documents += [Document(f"test-own-{n}", f"{n} is a text of its own kind.") for n in range(9)]
    random.Random(0).shuffle(documents)
    found = near_copies(documents, in_test)
    assert (found.near, found.held_out, found.training) == (20, 49, 200) and found.whole
    assert found.share == pytest.approx(20 / 49)
    assert all(held == f"test-{name.removeprefix('train-')}" for held, name in found.examples)
    assert len(found.examples) == 2


def test_a_long_text_is_counted_in_its_beginning(
    articles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.evaluation.measures.copies.SAMPLE_CHARACTERS", 2000)
    documents = [Document(f"train-{n}", text) for n, text in enumerate(articles)]
    found = near_copies(documents, in_test)
    assert not found.whole and found.training < 9 and found.near == found.held_out == 0


@pytest.fixture
def planted(tmp_path: Path, articles: list[str]) -> str:
    """Each article, and the article with one word more."""
    texts = [text for article in articles for text in (article, f"{article} Indeed.")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return str(tmp_path / "texts.jsonl")


def test_check_says_which_share_of_held_out_documents_has_copies(planted: str) -> None:
    record = check(planted, ["training.steps=2", "corpus.held_out=0.1"], timing=False)
    copies = record["corpus"]["copies"]
    assert copies["near"] > copies["held_out"] / 2 and copies["whole"]
    [doubt] = [doubt for doubt in record["doubts"] if "near copy" in doubt["what"]]
    assert copies["examples"][0][0] in doubt["what"] and "group_field" in doubt["do"]
    assert f"{copies['near'] / copies['held_out']:.1%}" in doubt["what"]
    held_out = [document.name for document in read_documents(planted) if holds_out(document, 0.1)]
    assert copies["held_out"] == len(held_out) and copies["examples"][0][0] in held_out
