"""Policies, settings of masked diffusion and rules of words that cannot be meant."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from maskwise.masking.line import Line
from maskwise.masking.policies import policy
from maskwise.objectives import MaskedDiffusion
from maskwise.text.words import word_rule
from refusals import Refusal

POLICIES: dict[str, tuple[str, ...]] = {
    "mixture(token)": ("mixture", "two or more"),
    "mixture(token, type-weighted)": ("TypeWeighted", "losses"),
    "mixture(token, mixture(token, span))": ("mixture", "none of them"),
    "mixture(token, span, shares=(1.0,))": ("share", "1 shares for 2"),
    "mixture(tokens, span)": ("tokens", "did you mean 'token'"),
    "mixture(token, span, shares=(0, step(1, 0)))": ("all shares are 0", "0.5"),
    "mixture(token, span, shares=(-1, 1))": ("mixture", "share", "got -1", "from 0 to 1"),
    "span(p=0)": ("span", "above 0 and below 1"),
    "span(max_words=2, min_words=3)": ("min_words", "got 3", "from 1 to 2"),
    "span(over='char')": ("char", "token, word"),
    "t5-span(mean_span=0.5)": ("mean_span", "got 0.5"),
    "t5-span(ratio=2)": ("ratio", "got 2", "from 0 to 1"),
    "span-layer(rest='words')": ("words", "none, token, word"),
    "frequency(floor=0)": ("floor", "above 0"),
}
# Settings with which the weights of masked diffusion would be wrong.
DIFFUSION: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0.0}, "rates above 0"),
    ({"ratio": "uniform(0, 0)"}, "rates above 0"),
    ({"ratio": "mixture(0, 0.5, 0.5, 0.5)"}, "rates above 0"),
    ({"budget": "roughly"}, "budget"),
    ({"corruption": "bert(mask=0.9)"}, "by the mask"),
    ({"corruption": "replace"}, "by the mask"),
    ({"predict": 0.5}, "predict"),
    ({"policy": "whole-word"}, "bernoulli"),
    ({"policy": "t5-span", "budget": "bernoulli"}, "rate"),
    ({"policy": "mixture(token, t5-span)", "budget": "bernoulli"}, "rate"),
    ({"policy": "mixture(token, learned('x', explore=0.5))", "budget": "bernoulli"}, "split"),
    ({"policy": "salient", "budget": "bernoulli", "fill": "skip-row"}, "fill"),
]
RULES = ("letters", "regex:", "regex:(", "regex:a*", r"regex:\B", r"regex:\b", r"regex:(?<=\s)|\w+")


def made(spec: str, folder: Path) -> object:
    return policy(spec)


def diffused(settings: dict[str, Any], folder: Path) -> object:
    return MaskedDiffusion.check(MaskedDiffusion.own_masking(settings))


def ruled(rule: str, folder: Path) -> object:
    return word_rule(rule)


ROWS = [
    *(Refusal(f"policy {spec}", partial(made, spec), POLICIES[spec]) for spec in POLICIES),
    *(Refusal(f"diffusion {it}", partial(diffused, it), (said,)) for it, said in DIFFUSION),
    *(
        Refusal(f"words by {rule}", partial(ruled, rule), (rule.removeprefix("regex:"),))
        for rule in RULES
    ),
    Refusal("no lines to join", lambda folder: Line.joined([]), ("at least one",)),
]
