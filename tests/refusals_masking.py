"""Policies, schedules, samplers, corruptions and settings of masking that cannot be meant."""

from __future__ import annotations

from typing import Any

from masking_tools import vocabulary
from maskwise import Masker
from maskwise.base.specs import parse_call
from maskwise.masking import schedules
from maskwise.masking.corruptions import corruption
from maskwise.masking.line import Line
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.models.lora import lora
from maskwise.objectives import MaskedDiffusion
from maskwise.samplers import Mometas, sampler
from maskwise.text.words import word_ids, word_rule
from refusals import Refusal, cases

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
SCHEDULES = [
    ("linear(0.3, 1.2)", "got 1.002", "0 to 1"),
    ("cosine-decay(0.5)", "got 1.02"),
    ("1.5", "got 1.5"),
    ("-0.1", "0 to 1"),
    ("nan", "0 to 1"),
    ('linear("a", 1)', "got 'a'; allowed: a number"),
    ("linear(None, 1)", "got None; allowed: a number"),
    ("piecewise(0, a, 1, 0.15)", "got 'a'; allowed: a number"),
    ("linear(0.3)", "end"),
    ("liner(0.3, 0.1)", "'linear'"),
    ("uniform(-1, 1)", "got -1"),
    ("uniform(0, 2)", "got 2"),
    ("scaled(uniform(0, 1), 2)", "got 2.0"),
    ("piecewise(0, 0.1, 0.001, 2, 1, 0.1)", "0.001, 2", "pairs"),
    ("piecewise(0.5, 0.1, 0, 0.1)", "rising"),
    ("piecewise(0, 0.3, 1000, 0.15)", "1000", "0 to 1"),
    ("step(0.3, 0.15, 500)", "at", "got 500"),
    ("mixture(0.1, -1)", "shares"),
    ("mixture(0.1, 0)", "shares"),
    ("mixture(2, 1)", "0 to 1"),
    ("beta(0, 1)", "positive"),
    ("warm-up(0.15, 0)", "share"),
    ("then(0.1, 1.5, 0.2)", "got 1.5"),
    ("then(0.3, 1, 0.1)", "got 1; allowed: above 0 and below 1"),
    ("0.3,0.15", "did you mean linear(0.3, 0.15)?"),
    (".3 , .15", "did you mean linear(.3, .15)?"),
    ("0,15", "did you mean 0.15?"),
    ("clipped(0.1, 0.5, 0.2)", "low of clipped"),
    ("warm-decay(0.15, 1)", "warm"),
    *(True, None, [0.1]),
]
OBJECTIVES = ["mlm", "emlm", "atd", "cse"]
SAMPLERS = [
    (("uniform", ["a", "a"]), "different names"),
    (("uniform", []), "different names"),
    (("single(atdd)", OBJECTIVES), "'atdd'", "did you mean 'atd'"),
    (("shares(1, 2)", OBJECTIVES), "2 shares for 4 objectives"),
    (("shares(1, -1)", OBJECTIVES[:2]), "share", "0"),
    (('shares(2, "linear(0, 1)")', OBJECTIVES[:2]), "from 0 to 1"),
    (("shares(0, 0)", OBJECTIVES[:2]), "all shares are 0"),
    (('shares(0, "step(1, 0)")', OBJECTIVES[:2]), "all shares are 0", "0.5"),
    (("sequential(0)", OBJECTIVES), "block", "got 0"),
    (("mometas(lr=0)", OBJECTIVES), "lr 0"),
    (("mometas(every=0)", OBJECTIVES), "steps between probes", "got 0"),
    (("mometas-plus(floor=2)", OBJECTIVES), "floor 2"),
    (("momentas", OBJECTIVES), "'momentas'", "mometas"),
]
RULES = ("letters", "regex:", "regex:(", "regex:a*", r"regex:\B", r"regex:\b", r"regex:(?<=\s)|\w+")
# Policies, and the layer that they need.
LAYERS = {
    "whole-word": "word_ids",
    "span": "word_ids",
    "salient": "salient",
    "weighted(units='token')": "weight",
    "frequency(units='token')": "frequency",
    "pos-weighted": "pos",
}
UNREADABLE = [
    *("", "linear(", "linear(0.1))", "a b", "1 + 1", "f(1) + f(2)", "f(*x)", "f(**x)", "f(x.y)"),
    *("f(lambda: 1)", "f({[1]: 2})", "__import__('os').system('x')", "f(\0)", "f(1 if 2 else 3)"),
    "f(" * 4000 + ")" * 4000,
]


def masked(policy: Any, rows: Any = ({"input_ids": [5, 6], "example_id": 0},)) -> object:
    return Masker(vocabulary(), policy=policy)([*rows], epoch=0)


ROWS = [
    *(Refusal(f"policy {spec}", lambda _, s=spec: policy(s), POLICIES[spec]) for spec in POLICIES),
    *cases(
        "diffusion",
        lambda given: MaskedDiffusion.check(MaskedDiffusion.own_masking(given)),
        *DIFFUSION,
    ),
    *cases("words by rule", word_rule, *((rule, rule.removeprefix("regex:")) for rule in RULES)),
    Refusal("no lines to join", lambda folder: Line.joined([]), ("at least one",)),
    *cases("schedule", schedule, *SCHEDULES),
    *cases(
        "schedule of a function",
        lambda function: schedule(function)(3),
        (lambda step, total: step / total, "ZeroDivisionError: division by zero"),
        (lambda step, total: None, "TypeError"),
        facts=["step 3"],
    ),
    Refusal(
        "schedule of a function, scaled",
        lambda _: schedules.scaled(schedule(lambda step, total: 0.3), 0.5),
        ("inside the function",),
    ),
    Refusal(
        "schedule without its steps",
        lambda _: schedule("linear(0.3, 0.1)")(5),
        ("total_steps",),
        lambda _: schedule("linear(0.3, 0.1)")(5, 9),
    ),
    *cases("sampler", lambda given: sampler(*given), *SAMPLERS),
    *cases(
        "losses of Mometas",
        lambda losses: Mometas(OBJECTIVES).update(losses, losses),
        ({"mlmm": 1.0}, "'mlmm'", "did you mean 'mlm'"),
        ([1.0, 1.0, 1.0], "'losses'", "(3,)", "(4,)"),
    ),
    *cases(
        "corruption",
        corruption,
        ("t5(target='ful')", "did you mean 'full'"),
        ("insert(target='spans')", "full"),
        ("infill(mean=0)", "got 0; allowed: at least ln 2 = 0.6931, or None"),
        ("infill(mean=0.69)", "half of all spans"),
        ("delete(share=1)", "allowed: delete"),
    ),
    *cases(
        "masker",
        lambda more: Masker(vocabulary(), **more),
        ({"ratio": 1.5}, "0 to 1"),
        ({"budget": "exakt"}, "'exact'"),
        ({"fill": "all"}, "fill"),
        ({"policy": "wholeword"}, "'whole-word'"),
        ({"corruption": "brt"}, "'bert'"),
    ),
    *cases(
        "policy that learned",
        policy,
        ("learned('x', take='top')", "weights, spans, or top-N"),
        ("learned('x', take='top-1', explore=0.1)", "power and explore"),
        ("learned('x', explore=1.5)", "explore", "got 1.5; allowed: a number from 0 to 1"),
        ("type-weighted(kept=2)", "kept"),
        ("type-weighted(every=0)", "every"),
    ),
    *cases("layers of", masked, *((spec, f"'{layer}'") for spec, layer in LAYERS.items())),
    *cases("settings", parse_call, *UNREADABLE, facts=["setting"]),
    *cases(
        "LoRA",
        lora,
        ("lora(rank=0)", "rank"),
        ("lora(alpha=-1)", "alpha"),
        ("lora(dropout=1.0)", "dropout"),
        ("dora", "'dora'"),
    ),
    *cases(
        "word_ids of",
        lambda given: word_ids("text", given[0], special=given[1]),
        *((([offset], None), "offsets") for offset in ((0, 9), (3, 1), (-1, 1), (0.5, 1.0))),
        (([(0, 1)], [0, 1]), "'special'", "(2,)", "(1,)"),
        (([(0, 1)], [2]), "'special'"),
        (([0, 1], None), "'offsets'"),
    ),
]
