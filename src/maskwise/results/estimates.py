"""Convert estimates from summary.json to the units of reports, and name outcomes.

An outcome is what arms are compared on: a task, a held-out loss, or another evaluation.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from itertools import chain

from maskwise.base.constants import DIFFUSION, NATS, NEXT_TOKEN
from maskwise.base.errors import in_percent
from maskwise.results.files import Contrast, Estimate, ItemsInterval, MeanLosses, Record, Summary

WRITTEN = {
    "full": "full text",
    "spans": "masked spans",
    "sentinels": "masked spans after sentinels",
}
"""What a decoder writes, keyed by the name of the format in outcomes."""
SPREADS = "SDs of runs within an arm"


def failure_lines(failures: Iterable[Record]) -> list[str]:
    """Return a line for each failed run, with its error."""
    return [f"failed: {line['arm']}, seed {line['seed']}: {line['error']}" for line in failures]


def reasons(rows: Iterable[Contrast]) -> list[str]:
    """Return the sentences of the flags of verdicts. One of several verdicts names their arms."""
    rows = list(rows)
    arms_of: dict[str, dict[str, None]] = {}
    for row in rows:
        for flag in row["flags"]:
            # An assumed error over items is large for nearly all tasks; the page shows it.
            if not flag["facts"].get("assumed"):
                arms_of.setdefault(flag["sentence"], {})[row["arm"]] = None
    all_arms = {row["arm"] for row in rows}
    sentences = []
    for sentence, arms in arms_of.items():
        words = set(re.findall(r"[^\s,;:()]+", sentence))
        named = arms.keys() == all_arms or any(words.issuperset(arm.split()) for arm in arms)
        sentences.append(sentence if named else f"{', '.join(arms)}: {sentence}")
    return sentences


def summary_lines(summary: Summary) -> list[str]:
    """Return the primary contrasts of a summary as a table, its headline, flags and advice."""
    primary = [row for row in summary["contrasts"] if row["primary"]]
    table = aligned_cells(contrast_table(primary)) if primary else []
    return [
        *("  ".join(cells).rstrip() for cells in table),
        summary["headline"],
        *(f"· {reason}" for reason in reasons(primary)),
        *(f"→ {advice}" for advice in summary["advice"]),
    ]


@dataclass(frozen=True)
class Shown:
    """A difference between an arm and its baseline in the displayed unit, positive if the arm is
    better.

    Attributes:
        mean, low, high: the estimate and the ends of its interval; None if unknown.
        scale: the factor that converts the recorded unit into the displayed unit.
        unit: points, nats, SDs of runs within an arm, or an evaluation's own unit.
        digits: the number of decimals to show.
    """

    mean: float | None
    low: float | None
    high: float | None
    scale: float
    unit: str
    digits: int

    def size(self) -> str:
        """Return the mean without its sign: "2.1 accuracy points"."""
        return f"{in_decimals(abs(self.mean or 0.0), self.digits)} {self.unit}"

    def figure(self) -> str:
        """Return the mean with its sign ("+2.1"), or "" if the mean is unknown."""
        if self.mean is None:
            return ""
        return with_minus(in_decimals(self.mean, self.digits, "+"))

    def ends(self, *, ahead: bool = False) -> str:
        """Return the interval: "−0.4 to 4.6".

        Args:
            ahead: whether to change the sign if the mean is negative, so that the interval is about
                the better arm's lead.
        """
        low = self.low or 0.0
        high = self.high or 0.0
        if ahead and (self.mean or 0.0) <= 0:
            # Subtraction from 0 avoids −0.
            low, high = 0.0 - high, 0.0 - low
        # "z" turns −0.0 into 0.0.
        first, last = (in_decimals(end, self.digits, "z") for end in (low, high))
        return with_minus(f"{first} to {last}")


def shown(row: Contrast) -> Shown:
    """Return the estimate in a row of summary.json, in the displayed unit."""
    higher = row["higher_is_better"]
    return shown_in(row["unit"], row["metric"], row, row.get("natural"), higher=higher)


def shown_in(
    unit: str,
    metric: str | None,
    estimate: Estimate,
    natural: Estimate | None,
    *,
    higher: bool,
) -> Shown:
    """Return an estimate in the displayed unit.

    If an estimate is a mean over tasks in SDs of runs within an arm, the plain mean is shown
    instead. SDs are shown only if the tasks have no common unit, or if the two means or the ends of
    their intervals differ in sign: the test is about the mean in SDs.

    Args:
        unit, metric, higher: the scale of the estimate (``measurements.Scale``).
        estimate: a mean difference and its interval.
        natural: those of a mean over tasks in plain scores, if there are any.
    """
    scale = 1.0
    digits = 3
    if unit == "SDs":
        unit = SPREADS
        digits = 1
        # Plain scores are easier to understand than SDs.
        if natural is not None and _agree(natural, estimate):
            estimate = natural
            unit = "score"
            digits = 3
    if unit == "score" and metric == NATS:
        unit = NATS
    elif unit == "score":
        # Scores are between 0 and 1 and are shown in percentage points.
        scale = 100.0
        digits = 1
        unit = f"{metric or ''} points".lstrip()
    factor = scale if higher else -scale

    def scaled(value: float | None) -> float | None:
        # Adding 0 turns −0 into 0.
        return None if value is None else factor * value + 0.0

    low = scaled(estimate["low"])
    high = scaled(estimate["high"])
    if factor < 0:
        # A change of sign swaps the ends of the interval.
        low, high = high, low
    return Shown(scaled(estimate["mean"]), low, high, scale, unit, decimals(digits, low, high))


def in_decimals(value: float, digits: int, form: str = "") -> str:
    """Format a number with so many decimals. A half is rounded away from 0, as in sums by hand.

    >>> in_decimals(100 * 0.09749999999999999, 1, "+"), f"{100 * 0.09749999999999999:+.1f}"
    ('+9.8', '+9.7')

    Args:
        value: the number.
        digits: the number of decimals.
        form: what the format of a float has before the decimals, such as "+".
    """
    # Means of scores differ from exact ones by rounding errors, far below the tenth decimal.
    exact = Decimal(str(round(value, 10)))
    with localcontext(rounding=ROUND_HALF_UP):
        return f"{exact:{form}.{digits}f}"


MOST_DECIMALS = 9


def decimals(least: int, low: float | None, high: float | None) -> int:
    """Return the number of decimals that show whether an interval contains 0.

    The end next to 0 is not written as 0 if the interval excludes 0. If it contains 0, not both
    ends are written as 0, unless both are 0.

    >>> decimals(1, 0.02, 3.0), decimals(1, -0.02, 3.0), decimals(1, -0.02, 0.003)
    (2, 1, 2)

    Args:
        least: the usual number of decimals.
        low, high: the ends of the interval; None without one.
    """
    if low is None or high is None:
        return least
    choose = min if low * high > 0 else max
    end = choose(abs(low), abs(high))
    digits = least
    while end and digits < MOST_DECIMALS and not float(in_decimals(end, digits)):
        digits += 1
    return digits


def items_words(row: Contrast) -> str:
    """Return a phrase with the interval over runs and test items; "" if it is unknown."""
    items = row.get("items")
    if not items or items["low"] is None:
        return ""
    ends = items_ends(items, row["unit"], row["metric"], higher=row["higher_is_better"])
    said = f"other runs and other test items: {ends} (95 % interval if both vary together"
    assumed = "" if items.get("paired") else "; the arms' answers are assumed to correlate at .5"
    return f"{said}{assumed})"


def items_ends(items: ItemsInterval, unit: str, metric: str | None, *, higher: bool) -> str:
    """Return the interval over runs and test items, with its unit."""
    bounds: Estimate = {"mean": None, "low": items["low"], "high": items["high"]}
    # A mean over tasks is in SDs, and its items in scores.
    unit = "score" if unit == "SDs" else unit
    amount = shown_in(unit, metric, bounds, None, higher=higher)
    return f"{amount.ends()} {amount.unit}"


def _agree(estimate: Estimate, other: Estimate) -> bool:
    """Return whether two means, and the ends of their intervals, have the same signs."""
    for name in ("mean", "low", "high"):
        value = estimate[name]
        if value != other[name] and (value or 0.0) * (other[name] or 0.0) <= 0:
            return False
    return True


def detected_words(size: float) -> str:
    """Return a phrase for the difference that a plan detects, in SDs of paired differences."""
    sds = f"{size:.1f} standard deviations (of the paired differences)"
    return f"a difference of {sds} is detected with probability 0.8, a smaller one less often"


def loss_table(
    losses: Sequence[MeanLosses], names: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Return the mean held-out losses of arms as a table: a line of heads, and a line per arm.

    The last line is the loss of a model that knows only word frequencies.

    Args:
        losses: the ``losses`` of summary.json.
        names: how to call arms, if not by their names.

    >>> means = {"15 %": 5.31249, "30 %": 5.2}
    >>> loss_table([{"outcome": "heldout:token@0.15", "frequencies": 6.1, "means": means}])
    [['held-out loss, nats', 'token masks, 15 %'], ['15 %', '5.312'], ['30 %', '5.200'], \
['word frequencies alone', '6.100']]
    """
    if not losses:
        return []
    arms = dict.fromkeys(chain.from_iterable(loss["means"] for loss in losses))
    lines = [["held-out loss, nats", *(outcome_label(loss["outcome"]) for loss in losses)]]
    for arm in arms:
        cells = [_nats(loss["means"].get(arm)) for loss in losses]
        lines.append([(names or {}).get(arm, arm), *cells])
    frequencies = [loss["frequencies"] for loss in losses]
    if any(known is not None for known in frequencies):
        lines.append(["word frequencies alone", *map(_nats, frequencies)])
    return lines


def contrast_table(
    rows: Sequence[Contrast], names: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Return contrasts as a table: a line of heads, and a line for each row.

    The cells of p and of the verdict are empty in rows that are not tested.

    Args:
        rows: rows of summary.json.
        names: how to call arms, if not by their names.
    """
    lines = [["arm", "against", "outcome", "difference", "95 % interval", "p", "verdict"]]
    gated = has_gated_rows(rows)
    for row in rows:
        amount = shown(row)
        mean = amount.figure()
        if mean:
            mean += f" {'points' if amount.unit.endswith('points') else amount.unit}"
        lines.append(
            [
                (names or {}).get(row["arm"], row["arm"]),
                (names or {}).get(row["baseline"], row["baseline"]),
                # Without the preposition: the column shows "the tasks" and not "on the tasks".
                outcome_words(row["outcome"]).partition(" ")[2],
                mean,
                "needs 6 runs" if amount.low is None else amount.ends(),
                "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}",
                verdict_words(row) + (", gate" if row.get("gate") and gated else ""),
            ]
        )
    return lines


def has_gated_rows(contrasts: Iterable[Contrast]) -> bool:
    """Return whether a gate is tested before other contrasts.

    If the gate is the only contrast, as in maskwise adapt, it is the question of the study.
    """
    return any(row["primary"] and "gate" not in row for row in contrasts)


def verdict_words(row: Contrast) -> str:
    """Return the verdict of a row with its direction and scope, "" without a verdict."""
    verdict: str = row["verdict"] or ""
    if row["better"]:
        direction = "better" if row["better"] == "arm" else "worse"
        small = ", too small to matter" if "equivalence" in row else ""
        verdict = f"{direction} ({verdict}){small}"
    return f"{verdict}, {row['scope']}" if verdict not in ("", "not comparable") else verdict


def aligned_cells(table: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pad the cells of a table, so that its columns are aligned in plain text."""
    widths = [max(map(len, column)) for column in zip(*table)]
    return [[f"{cell:<{width}}" for cell, width in zip(line, widths)] for line in table]


def _nats(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"


def with_minus(text: str) -> str:
    """Replace the hyphen before a number with a minus sign."""
    return re.sub(r"-(?=[\d.])", "−", text)


def outcome_label(outcome: str) -> str:
    """Return the label of an outcome: "token masks, 15 %" for "heldout:token@0.15"."""
    kind, _, rest = outcome.partition(":")
    if kind == "evaluation":
        name, _, metric = rest.rpartition(":")
        return f"{name} ({metric})"
    if kind != "heldout":
        return outcome
    masks, _, ratio = rest.partition("@")
    if masks == DIFFUSION:
        return "bound of masked diffusion"
    if masks == NEXT_TOKEN:
        return "next tokens"
    ending = ""
    for name, words in WRITTEN.items():
        if masks.endswith(f" {name}"):
            masks = masks.removesuffix(f" {name}")
            ending = f" ({words} written)"
    if ratio:
        ending = f", {in_percent(float(ratio))} %{ending}"
    return f"{masks} masks{ending}"


def outcome_words(outcome: str) -> str:
    """Return the phrase that names an outcome in a sentence, such as "on the tasks".

    >>> outcome_words("heldout:token@0.15")
    'in held-out loss on token masks at 15 %'
    """
    label = outcome_label(outcome)
    if outcome == "tasks":
        return "on the tasks"
    if outcome == f"heldout:{DIFFUSION}":
        return f"in the {label}"
    if outcome.startswith("heldout:"):
        # A comma, as in labels of rows, would end the phrase in the middle of a sentence.
        return f"in held-out loss on {label.replace(', ', ' at ')}"
    return f"on {label}"


def outcome_labels(outcomes: Iterable[str]) -> dict[str, str]:
    """Return the labels of outcomes that are shown together. A mean over ratios lists the ratios.

    >>> list(outcome_labels(["heldout:token", "heldout:token@0.15", "heldout:token@0.4"]).values())
    ['token masks, mean of 15 and 40 %', 'token masks, 15 %', 'token masks, 40 %']
    """
    labels = {}
    ratios = defaultdict(list)
    for outcome in dict.fromkeys(outcomes):
        labels[outcome] = outcome_label(outcome)
        mean, _, ratio = outcome.partition("@")
        if ratio and mean.startswith("heldout:"):
            ratios[mean].append(in_percent(float(ratio)))
    for mean, shares in ratios.items():
        if mean in labels:
            labels[mean] += f", mean of {' and '.join(shares)} %"
    return labels
