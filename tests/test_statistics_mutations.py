"""Each rule of evidence is turned off, one at a time, and a test that stands elsewhere must then
fail.

A test that passes whether or not the rule is there guards nothing. The named tests are run as they
are, first with the rule and then without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import test_verdict
import test_verdict_flags as flags_tests
import test_verdict_rules as rules
from maskwise.study import outcomes
from maskwise.study.verdict import contrasts, flags, gains


def unpaired(table: outcomes.Outcomes, outcome: str, arm: str, baseline: str) -> np.ndarray:
    """Differences of runs of different seeds: the one side is turned by one."""
    return table.runs(outcome, arm) - np.roll(table.runs(outcome, baseline), 1)


def closing(all_pairs: bool) -> Callable[[Any], Any]:
    """A gate that closes every contrast, or none."""
    return lambda study: {
        "contrast": ("oracle", "random"),
        "closes": study["contrasts"] if all_pairs else [],
    }


def without(code: str) -> tuple[flags.Flag, ...]:
    return tuple(flag for flag in flags.FLAGS if flag.code != code)


def noted(code: str) -> tuple[flags.Flag, ...]:
    """The flag is raised, and changes nothing."""
    changed = [
        flags.Flag(f.code, "notes", f.test, f.sentence, f.advice) if f.code == code else f
        for f in flags.FLAGS
    ]
    return tuple(changed)


SIX = [{"runs": 6, "looks": None}]
GAP = outcomes.Outcomes.gap_nats
WIDE = contrasts.sign_flip_interval
MUTANTS: dict[str, tuple[Any, str, object, Callable[[], None]]] = {
    "holm": (contrasts, "holm", list, test_verdict.test_ten_clear_runs_decide),
    "pairing": (
        contrasts,
        "_paired",
        unpaired,
        test_verdict.test_arms_whose_interval_lies_within_the_margin_do_not_differ_in_what_matters,
    ),
    "one search for all": (
        flags,
        "FLAGS",
        noted("settings-differ"),
        flags_tests.test_one_search_for_all_seeds_decides_only_where_both_sides_kept_the_same_setting,
    ),
    "scope": (
        contrasts,
        "scope_of",
        lambda row, table: "each arm tuned",
        flags_tests.test_without_a_search_a_study_decides_at_its_settings_and_says_so,
    ),
    "floor": (
        flags,
        "FLAGS",
        without("floor"),
        flags_tests.test_two_sides_at_the_floor_of_word_frequencies_void_the_loss_and_not_the_task,
    ),
    "floor of one side": (
        outcomes.Outcomes,
        "gap_nats",
        lambda self, arm, of=None: 1.0 if of else GAP(self, arm),
        flags_tests.test_one_side_above_the_floor_and_one_at_it_is_an_answer,
    ),
    "floor of losses alone": (
        flags,
        "is_loss",
        lambda outcome: True,
        flags_tests.test_two_sides_at_the_floor_of_word_frequencies_void_the_loss_and_not_the_task,
    ),
    "chance": (
        flags,
        "FLAGS",
        without("chance"),
        flags_tests.test_chance_is_that_of_each_task_and_voids_the_task_alone,
    ),
    "gate": (
        contrasts,
        "gate_of",
        closing(False),
        rules.test_a_gate_closes_the_contrasts_that_it_names_and_no_others,
    ),
    "a gate closes no others": (
        contrasts,
        "gate_of",
        closing(True),
        rules.test_a_gate_closes_the_contrasts_that_it_names_and_no_others,
    ),
    "spent error of looks": (
        contrasts,
        "look_weights",
        lambda looks: [1.0] * len(looks),
        rules.test_planned_looks_share_one_error_whichever_of_them_decides,
    ),
    "looks without a plan": (
        flags,
        "FLAGS",
        noted("looked-before"),
        lambda: rules.test_runs_that_are_added_without_a_plan_are_no_proof(SIX, None, "open"),
    ),
    "tasks that can tell": (
        outcomes.Outcomes,
        "_helped",
        lambda self, task: 1.0,
        rules.test_a_task_that_ignores_pre_training_is_left_out_of_the_primary_outcome,
    ),
    "all tasks against the start": (
        contrasts,
        "ALL_TASKS",
        "tasks",
        rules.test_against_the_start_every_task_counts,
    ),
    "level of the margin": (
        contrasts,
        "sign_flip_interval",
        lambda plain, confidence: WIDE(plain),
        rules.test_a_margin_has_a_wider_interval_where_more_contrasts_share_it,
    ),
    "failed runs": (
        gains,
        "learned_something",
        lambda gains, whole: np.full(len(gains), fill_value=True),
        test_verdict.test_runs_that_failed_outright_are_counted_and_not_averaged,
    ),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_rule_that_is_turned_off_fails_a_test(rule, monkeypatch):
    place, name, mutant, test = MUTANTS[rule]
    test()
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises(AssertionError):
        test()
