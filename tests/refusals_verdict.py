"""Records and rules of a study from which no verdict can be drawn."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from maskwise.recipe import read_recipe
from maskwise.verdict import summarise
from refusals import Refusal
from report_fixture import failure_record, heldout_record, make_records, make_study
from tiny import write_inputs

OBJECTIVES: list[tuple[Any, ...]] = [
    (["objective.atd=adt"], "'adt'; allowed: atd, clm, cse"),
    (["objective.low.weight=2"], "objective.low: 'weight'; allowed: masking, objective"),
    (["sampler=mometa"], "'mometa'", "did you mean 'mometas'"),
    (["sampler=single(dtd)"], "'dtd'"),
    (["sampler=shares(1, 2)"], "2 shares for 4 objectives"),
    (["objective.low.masking.corruption=delete"], "delete", "length", "objective mlm, choose"),
    (
        ["objective.low.masking.corruption=replace(target='detect')"],
        "0 and 1, not tokens; for objective mlm, choose",
    ),
    (["objective.atd.masking.corruption=insert"], "not 0 and 1; for objective atd, choose"),
    (
        ["objective.twins={objective: cse, masking: {ratio: 0.3}}"],
        "objective.twins",
        "got ratio",
        "remove masking",
    ),
    (["phases=[{}, {objective: {cse: {masking: {policy: token}}}}]"], "phases.1", "cse", "got pol"),
    (
        ["objective.rtd=", "masking.predict=0.1"],
        "objective.rtd",
        "got predict constant(0.1)",
        "masking: {predict: 1.0}",
    ),
    (["study.equal_by=targets"], "matched by steps"),
    (
        [
            "objective=mlm",
            "sampler=uniform",
            "study={arms: {a: {}, b: {objective: {cse: }}}, equal_by: targets}",
        ],
        "arm 'b'",
        "steps",
        "study.equal_by=targets",
    ),
]
STUDY = make_study(runs=3)
GOOD = make_records(STUDY, {})
FIRST = GOOD[0]
RULES: list[tuple[Any, ...]] = [
    ({"gate": ["oracel", "b"]}, "study.gate", "'oracel'"),
    ({"gate": ["a", "a"]}, "study.gate", "two different arms"),
    ({"gate": ["a", "b"]}, "got [b, a]", "study.gate=", "study.baseline=b"),
    (
        {"gate": ["b", "a"], "contrasts": [["b", "a"], ["a", "b"]]},
        "got [a, b]",
        "study.gate=['b', 'a']",
        "remove this contrast",
    ),
    ({"seeds": 8, "interim_looks": [10, 20]}, "study.seeds", "got 8; allowed: [10, 20]"),
    ({"seeds": 10, "interim_looks": [10]}, "study.interim_looks"),
    ({"seeds": 10, "interim_looks": [20, 10]}, "study.interim_looks", "numbers of runs"),
    ({"margin": 0}, "study.margin", "got 0; allowed: > 0"),
]


def ruled(study: dict[str, Any], folder: Path) -> object:
    return read_recipe({"tasks": ["sst2"], "study": {"arms": {"a": {}, "b": {}}, **study}})


def several(overrides: list[str], folder: Path) -> object:
    """Read a recipe of four objectives."""
    names = (
        "{mlm: , low: {objective: mlm, masking: {ratio: 0.15}}, atd: , cse: cse(temperature=0.1)}"
    )
    four = [f"objective={names}", "sampler=mometas", "masking={ratio: 0.3, corruption: mask-only}"]
    return read_recipe(write_inputs(folder), [*four, *overrides])


ROWS = [
    *(Refusal(f"rules {settings}", partial(ruled, settings), facts) for settings, *facts in RULES),
    *(
        Refusal(f"records: {said}", lambda _, given=given: summarise(given, STUDY), (said,))
        for said, given in {
            "lacks a seed": [
                line for line in GOOD if (line["arm"], line.get("seed")) != ("token-30", 2)
            ],
            "lacks a seed that the other arm has": [
                line for line in GOOD if line["arm"] != "token-30"
            ],
            "finite number": [FIRST | {"value": math.nan}, *GOOD[1:]],
            "measured twice": [*GOOD, FIRST],
            "arm in records 'x'": [FIRST | {"arm": "x"}, *GOOD],
            "arm in records 'y'": [*GOOD, failure_record("y", 0)],
            "allowed: [0, 1, 2]": [*GOOD, FIRST | {"seed": 9}],
            "lacks an outcome": [
                *GOOD,
                heldout_record("token-15", 0, "token", 4.0) | {"ratio": 0.4},
            ],
        }.items()
    ),
    *(
        Refusal(f"objectives {overrides}", partial(several, overrides), facts)
        for overrides, *facts in OBJECTIVES
    ),
]
