"""What a policy masks, for people: its top words, parts of speech and examples; the card that goes with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from maskwise import __version__
from maskwise.annotate.learned import WordScores, score_words
from maskwise.annotate.registry import annotator
from maskwise.constants import UPOS
from maskwise.learning.scorer import PolicyModel

EXAMPLES, EXAMPLE_WORDS = 5, 60
TOP_WORDS, LEAST_COUNT = 20, 3
MOST_TEXTS = 500


class Shown(TypedDict):
    """What is shown of a policy; weights average 1 over a text.

    ``words`` and ``tags``: name → (mean weight, number); ``examples``: texts as words with their weights before and
    after learning.
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
    scores = score_words(policy, some)
    cut = _cut(some, scores)
    folded = np.array([word.casefold() for own in cut for word in own])
    tags = [layers["pos"] for layers in annotator("pos").annotate(some)]
    tag = np.concatenate([np.zeros(0, np.int64), *(
        _tag_of(scores.start[scores.words(number)], spans) for number, spans in enumerate(tags)
    )])  # fmt: skip
    names = np.array(["none", *UPOS])
    return {
        "words": _means(folded, scores.weight, least=LEAST_COUNT, most=TOP_WORDS),
        "tags": _means(names[tag], scores.weight, least=1, most=len(names)),
        "examples": [
            [
                (word, round(float(old), 4), round(float(new), 4))
                for word, old, new in zip(cut[number], earlier, scores.weight[scores.words(number)])
            ][:EXAMPLE_WORDS]
            for number, earlier in enumerate(before[:EXAMPLES])
        ],
    }


def weights_of(policy: PolicyModel, texts: Sequence[str]) -> list[np.ndarray]:
    """The weights of the words of each text."""
    scores = score_words(policy, list(texts))
    return [scores.weight[scores.words(number)] for number in range(len(texts))]


def watching(texts: Sequence[str]) -> Callable[[PolicyModel], list[list[float]]]:
    """What a learning logs of its policy as it goes: the weights of the words of the first texts."""

    def watch(policy: PolicyModel) -> list[list[float]]:
        some = weights_of(policy, texts[:EXAMPLES])
        return [[round(weight, 3) for weight in own[:EXAMPLE_WORDS].tolist()] for own in some]

    return watch


def _cut(texts: Sequence[str], scores: WordScores) -> list[list[str]]:
    """The words of each text."""
    return [
        [text[start:end] for start, end in zip(scores.start[own].tolist(), scores.end[own].tolist())]
        for text, own in zip(texts, map(scores.words, range(len(texts))))
    ]


def _tag_of(start: np.ndarray, spans: Any) -> np.ndarray:
    """(W,) the code of the tag that each word has; 0 for none."""
    if not len(spans.start):
        return np.zeros(len(start), np.int64)
    at = np.maximum(np.searchsorted(spans.start, start, side="right") - 1, 0)
    return np.where((spans.start[at] <= start) & (start < spans.end[at]), spans.value[at], 0).astype(np.int64)


def _means(name: np.ndarray, weight: np.ndarray, *, least: int, most: int) -> dict[str, tuple[float, int]]:
    """The mean weight and the number of each name that is there so often, the heaviest first."""
    if not len(name):
        return {}
    names, place, count = np.unique(name, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weight) / count
    order = [at for at in np.argsort(-mean, kind="stable") if count[at] >= least][:most]
    return {str(names[at]): (round(float(mean[at]), 3), int(count[at])) for at in order}


def policy_card(choices: Mapping[str, object], measures: Mapping[str, Any], shown: Shown) -> str:
    """The card of a policy, in the hub's format: task, data and method, how good it is, and what it masks.

    Args:
        measures: of the policy, by name; ``salient`` holds those of salient spans.
    """
    salient = measures.get("salient", {})
    facts = "\n".join(f"| {name} | `{value}` |" for name, value in choices.items())
    figures = "\n".join(
        f"| {name} | {_figure(value)} | {_figure(salient.get(name, ''))} |"
        for name, value in measures.items()
        if not isinstance(value, dict)
    )
    words = ", ".join(f"{word} ({mean:.1f})" for word, (mean, _) in shown["words"].items())
    tags = ", ".join(f"{tag} {mean:.2f}" for tag, (mean, _) in shown["tags"].items())
    examples = "\n".join(f"> {_marked(words)}\n" for words in shown["examples"])
    return f"""---
library_name: maskwise
tags: [maskwise, masking-policy]
---

# A masking policy learned with maskwise {__version__}

It weighs the words of a text: masking takes heavy ones more often. Name it in a recipe,
`masking.policy: learned("FOLDER or hub id")`, or load it with `maskwise.learning.scorer.PolicyModel.from_pretrained`.

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
