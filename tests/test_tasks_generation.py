"""Tasks that are answered in words: metrics against published examples, cards, records, fine-tuning, predictions."""

from __future__ import annotations

import pytest

from maskwise.tasks.metrics import ITEMS, METRICS, bootstrap_interval

# Metrics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "answer", "rights", "score"),
    [
        # SQuAD's normalisation is tested in test_tasks_kinds.py; KILT's is the same, word for word.
        ("exact-match", "a Zürich", ["Zürich"], 1),
        ("exact-match", "Zurich", ["Zürich"], 0),  # no accent is dropped
        ("exact-match", "“Zürich”", ["Zürich"], 0),  # only ASCII punctuation is
        ("exact-match", "", ["14 December 1972 UTC", "December 1972"], 0),
        ("exact-match", "december, 1972", ["14 December 1972 UTC", "December 1972"], 1),
        ("f1", "december 1972", ["14 December 1972 UTC"], 2 / 3),
        ("f1", "", ["a thing"], 0),
        # KILT's accuracy is strict: guess_answer in gold_candidate_answers, stripped, and nothing else.
        ("accuracy", " Barack Obama ", ["Barack Obama", "Obama"], 1),
        ("accuracy", "barack obama", ["Barack Obama"], 0),
        ("accuracy", "the SUPPORTS", ["SUPPORTS"], 0),
        ("accuracy", "", ["SUPPORTS"], 0),
        # DrQA's regex_match_score: from the beginning, whatever the case.
        ("pattern-match", "oct 10", [r"Oct(.|ober)?\s* 10|1954"], 1),
        ("pattern-match", "October 10, 1954", [r"Oct(.|ober)?\s* 10|1954"], 1),
        ("pattern-match", "in 1954", [r"Oct(.|ober)?\s* 10|1954"], 0),
        ("pattern-match", "20,320 feet", [r"20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t"], 1),
        ("pattern-match", "", ["China"], 0),
        # The README of rouge-score: F of 6 of 8 and 6 of 9 words, and of 5.
        ("rouge-1", "The quick brown dog jumps on the log.", ["The quick brown fox jumps over the lazy dog"], 12 / 17),
        ("rouge-l", "The quick brown dog jumps on the log.", ["The quick brown fox jumps over the lazy dog"], 10 / 17),
        # Lin 2004, section 3: S1 police killed the gunman; S2 police kill the gunman; S3 the gunman kill police.
        ("rouge-l", "police kill the gunman", ["police killed the gunman"], 1),  # the stemmer: killed is kill
        ("rouge-l", "the gunman kill police", ["police killed the gunman"], 0.5),
        ("rouge-2", "the gunman kill police", ["police killed the gunman"], 1 / 3),
        # The union of two lines (Lin 2004, section 3.2): the lines of a summary are its sentences.
        ("rouge-lsum", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", ["w1 w2 w3 w4 w5"], 2 * (4 / 10) * (4 / 5) / (4 / 10 + 4 / 5)),
        ("rouge-1", "", ["something"], 0),
        ("rouge-1", "!?", ["something"], 0),
        ("rouge-l", "red cat", ["blue dog", "a red cat"], 0.8),
    ],
)  # fmt: skip
def test_published_and_worked_examples(metric, answer, rights, score):
    assert ITEMS[metric](rights, answer) == pytest.approx(score)


def test_rouge_is_that_of_rouge_score_and_a_test_set_is_the_mean():
    from rouge_score.rouge_scorer import RougeScorer

    rights = [["The cat sat.\nIt was big.", "A cat"], ["Dogs are running quickly"], ["x"]]
    answers = ["the cats sit.\nIt is big", "a dog runs quick", ""]
    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL", "rouge-lsum": "rougeLsum"}
    for ours, theirs in names.items():
        scorer = RougeScorer([theirs], use_stemmer=True)
        expected = [
            scorer.score_multi(gold, answer)[theirs].fmeasure for gold, answer in zip(rights, answers)
        ]
        assert METRICS[ours](rights, answers) == pytest.approx(sum(expected) / 3)


def test_the_interval_over_items_is_that_of_a_mean():
    items = [0.0] * 60 + [1.0] * 40
    low, high = bootstrap_interval(items)
    half = 1.96 * (0.4 * 0.6 / 100) ** 0.5
    assert low == pytest.approx(0.4 - half, abs=0.02) and high == pytest.approx(0.4 + half, abs=0.02)
    assert bootstrap_interval(items) == (low, high)  # nothing random
    assert bootstrap_interval([0.25, 0.25]) == (0.25, 0.25) == bootstrap_interval([0.25])
