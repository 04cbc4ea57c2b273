"""The card of a policy, and what it masks: top words, parts of speech, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from maskwise import __version__
from maskwise.annotate.registry import annotator
from maskwise.constants import UPOS
from maskwise.learning.annotator import TextScores, score_words
from maskwise.learning.scorer import PolicyModel
from maskwise.text.layers import CharSpans

EXAMPLES, EXAMPLE_WORDS = 5, 60
TOP_WORDS, LEAST_COUNT = 20, 3
MOST_TEXTS = 500


class Shown(TypedDict):
    """What is shown of a policy; weights average 1 over a text.

    ``words`` and ``tags``: name → (mean weight, number); ``examples``: texts as words with their
    weights before and after learning.
    """

    words: dict[str, tuple[float, int]]
    tags: dict[str, tuple[float, int]]
    examples: list[list[tuple[str, float, float]]]


def show(policy: PolicyModel, texts: Sequence[str], before: Sequence[np.ndarray]) -> Shown:
    """What a policy masks in some texts.

    Args:
        before: by ``weights_of``, of the first texts, before it had learned.
    """
    some = list(texts[:MOST_TEXTS])
    tagged = annotator("pos").annotate(some)
    words: list[str] = []
    tags: list[str] = []
    weights: list[float] = []
    examples = []
    for number, scores in enumerate(score_words(policy, some)):
        places = zip(scores.start.tolist(), scores.end.tolist())
        own = [some[number][start:end] for start, end in places]
        weight = scores.weight.tolist()
        words += [word.casefold() for word in own]
        tags += _tags(scores, tagged[number]["pos"])
        weights += weight
        if number < len(before):
            rounded = [np.round(values, 4).tolist() for values in (before[number], scores.weight)]
            examples.append(list(zip(own, *rounded))[:EXAMPLE_WORDS])
    return {
        "words": _means(words, weights, least=LEAST_COUNT, most=TOP_WORDS),
        "tags": _means(tags, weights, least=1, most=len(UPOS) + 1),
        "examples": examples,
    }


def weights_of(policy: PolicyModel, texts: Sequence[str]) -> list[np.ndarray]:
    """The weights of the words of each of the first texts."""
    return [scores.weight for scores in score_words(policy, list(texts[:EXAMPLES]))]


def weights_shown(texts: Sequence[str], policy: PolicyModel) -> list[list[float]]:
    """The weights of words in the first texts, as a learning logs them."""
    every = weights_of(policy, texts)
    return [np.round(weights[:EXAMPLE_WORDS], 3).tolist() for weights in every]


def _tags(scores: TextScores, tagged: CharSpans) -> list[str]:
    """The tag of each word of a text."""
    assert tagged.value is not None
    at = np.searchsorted(tagged.start, scores.start, side="right") - 1
    inside = np.append(tagged.end, 0)[at] > scores.start
    codes = np.where(inside, np.append(tagged.value, 0)[at], 0)
    return [("none", *UPOS)[code] for code in codes]


def _means(
    name: Sequence[str], weight: Sequence[float], *, least: int, most: int
) -> dict[str, tuple[float, int]]:
    """The mean weight and the count of each name with at least ``least``, the heaviest first."""
    names, place, count = np.unique(name, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weight) / count
    order = [at for at in np.argsort(-mean, kind="stable") if count[at] >= least][:most]
    return {str(names[at]): (round(float(mean[at]), 3), int(count[at])) for at in order}


def policy_card(choices: Mapping[str, object], measures: Mapping[str, Any], shown: Shown) -> str:
    """The card of a policy, in the hub's format: task, data and method, how good it is, and what it
    masks.

    Args:
        measures: of the policy, by name; ``salient`` holds those of salient spans.
    """
    salient = measures.get("salient", {})
    facts = "\n".join(f"| {name} | `{value}` |" for name, value in choices.items())
    rows = []
    for name, value in measures.items():
        if name != "salient":
            rows.append(f"| {name} | {_figure(value)} | {_figure(salient.get(name, ''))} |")
    figures = "\n".join(rows)
    words = ", ".join(f"{word} ({mean:.1f})" for word, (mean, _) in shown["words"].items())
    tags = ", ".join(f"{tag} {mean:.2f}" for tag, (mean, _) in shown["tags"].items())
    examples = "\n".join(f"> {_marked(words)}\n" for words in shown["examples"])
    return f"""---
library_name: maskwise
tags: [maskwise, masking-policy]
---

# A masking policy learned with maskwise {__version__}

It weighs the words of a text: masking takes heavy ones more often. Name it in a recipe,
`masking.policy: learned("FOLDER or hub id")`, or load it with
`maskwise.learning.scorer.PolicyModel.from_pretrained`.

| choice | value |
|---|---|
{facts}

## On texts that it has not learned from

| measure | policy | salient spans |
|---|---|---|
{figures}

## What it masks

Weights average 1 over a text.

- Heaviest words, of those that occur {LEAST_COUNT} times: {words or "none"}
- Mean weight by part of speech: {tags or "none"}

Words of three times the mean weight and more are in bold:

{examples}"""


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _marked(words: Sequence[tuple[str, float, float]]) -> str:
    return " ".join(f"**{word}**" if weight >= 3 else word for word, _, weight in words)
