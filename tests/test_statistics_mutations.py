"""Each rule of evidence is turned off, one at a time, and a test that stands elsewhere must then fail.

A test that passes whether or not the rule is there guards nothing. The named tests are run as they are, first with the
rule and then without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_verdict_reasons

import test_verdict
import test_verdict_rules as rules
from maskwise.study import design
from maskwise.study.verdict import contrasts, reasons, table


def unpaired(arm: dict[int, float], baseline: dict[int, float]) -> np.ndarray:
    """Differences of runs of different seeds: the one side is turned by one."""
    return np.array([*arm.values()]) - np.roll([*baseline.values()], 1)


def nothing(*_: Any, **__: Any) -> list[Any]:
    return []


SIX = [{"runs": 6, "looks": None}]
MUTANTS: dict[str, tuple[Any, str, object, Callable[[], None]]] = {
    "holm": (contrasts, "holm", list, test_verdict.test_ten_clear_runs_decide),
    "pairing": (
        contrasts, "paired_differences", unpaired,
        test_verdict.test_arms_whose_interval_lies_within_the_margin_are_equal,
    ),
    "selection on dev seeds": (
        reasons.Reasons, "_unselected", lambda self, arms: None,
        rules.test_what_one_dev_seed_chose_is_at_most_a_suggestion,
    ),
    "selection inside the grid": (
        reasons.Reasons, "caps", nothing,
        test_verdict_reasons.test_a_best_setting_at_the_border_of_the_grid_is_at_most_a_suggestion,
    ),
    "inner choice": (
        design, "_standard_error", lambda scores, spread: 0.0,
        lambda: rules.test_a_choice_at_the_edge_gives_way_to_an_inner_one_that_is_as_good(
            [[3.0, 3.4], [3.1, 3.2], [2.0, 2.2], [0.0, 0.1]], 1, False
        ),
    ),
    "void: plateau": (
        reasons.Reasons, "void", nothing, test_verdict_reasons.test_plateau_at_the_arms_own_masks_and_any_ratio,
    ),
    "void: chance": (reasons.Reasons, "void", nothing, test_verdict_reasons.test_chance_level),
    "gate": (contrasts, "_opens", lambda row: True, rules.test_behind_a_closed_gate_nothing_is_judged),
    "gate's own level": (
        contrasts, "_decide",
        lambda comparisons, reasons, *, alpha, decide=contrasts._decide: decide(comparisons, reasons, alpha=alpha / 10),
        rules.test_an_open_gate_lets_the_others_be_judged_at_the_full_level,
    ),
    "false discovery": (
        contrasts, "benjamini_hochberg", list,
        rules.test_of_many_secondary_rows_only_those_are_shown_that_chance_does_not_explain,
    ),
    "spent error of looks": (
        contrasts, "look_weights", lambda looks: [1.0] * len(looks),
        rules.test_planned_looks_share_one_error_whichever_of_them_decides,
    ),
    "looks without a plan": (
        reasons.Reasons, "_looked_before", lambda self: None,
        lambda: rules.test_runs_that_are_added_without_a_plan_are_no_proof(SIX, None, "suggests"),
    ),
    "tasks that can tell": (
        table.Table, "_helped", lambda self, task: 1.0,
        rules.test_a_task_that_ignores_pre_training_is_left_out_of_the_primary_outcome,
    ),
    "all tasks against the start": (
        table.Table, "measured", lambda self, outcome, *pair: self.counted if outcome == "tasks" else [outcome],
        rules.test_against_the_start_every_task_counts,
    ),
    "level of the margin": (
        reasons, "interval_by_rule", lambda plain, confidence, rule=reasons.interval_by_rule: rule(plain),
        rules.test_a_margin_has_a_wider_interval_where_more_contrasts_share_it,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_rule_that_is_turned_off_fails_a_test(rule, monkeypatch):
    place, name, mutant, test = MUTANTS[rule]
    test()
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises(AssertionError):
        test()
