"""Types for the files of a study, which docs/files.md describes.

The study writes ``study.json`` and ``records.jsonl``, the verdicts write ``summary.json``, and the
report and the commands read all three. Every type is a ``TypedDict``: plain JSON at run time,
checked by mypy.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

RULES = 2
"""The version of the verdict rules; summaries without a version were written by earlier rules."""

Verdict = Literal["decided", "no difference that matters", "open", "not comparable"]
Effect = Literal["invalid", "caps", "notes"]


class ArmFacts(TypedDict):
    """An arm in study.json."""

    policy: str
    ratio: str
    overrides: dict[str, object]
    units: NotRequired[str]
    """The value of a ``maskwise.masking.UnitKind``. Files written by hand may omit this key; the
    policy is then used instead."""
    setting: NotRequired[dict[str, object]]
    """The settings that a search chose, by dotted name."""
    judged_on: NotRequired[list[str]]
    """The held-out masks that suit the arm's policy, and on which the arm is evaluated."""
    tokenizer: NotRequired[str]
    runs: NotRequired[dict[str, str]]
    """For each seed, the folder of the pre-training run."""
    sampler: NotRequired[str]


class TaskFacts(TypedDict, total=False):
    """A task in study.json."""

    metric: str
    kind: str
    classes: int
    test_items: int
    test_texts: str
    """A hash of the test texts: if two tasks have the same texts, their scores have correlated
    errors."""
    majority: float | None
    """The score that guessing gets; see ``tasks.Task.majority``."""
    notes: list[str]
    skipped: dict[str, int]
    """The number of skipped rows, keyed by "split: reason"."""
    higher_is_better: bool
    """Present only if false."""


class Matching(TypedDict):
    """The quantity by which arms are matched to the baseline, and the planned cost of each arm."""

    by: str | None
    arms: dict[str, dict[str, float]]


class Search(TypedDict, total=False):
    grid: object
    own: object
    by: str | None
    seeds: list[int]
    """In older files: the seeds that chose one setting for all runs of an arm."""


class Gate(TypedDict):
    """A positive control: a contrast that must be decided before others are tested (``closes``)."""

    contrast: tuple[str, str]
    closes: list[tuple[str, str]]


class Look(TypedDict):
    """An earlier verdict of a study, with its runs, seeds, contrasts and planned looks."""

    runs: int
    seeds: list[int]
    contrasts: int
    looks: list[int] | None
    settings_changed: NotRequired[bool]
    """Present, and true, only if the contrasts or a verdict rule (``study.records``) differed."""


class Study(TypedDict, total=False):
    """study.json."""

    name: str
    description: str
    maskwise: str
    started: str
    seconds: float | None
    versions: dict[str, str]
    hardware: dict[str, object]
    recipe: dict[str, object]
    recipe_yaml: str
    baseline: str
    reference: str | None
    seeds: list[int]
    arms: dict[str, ArmFacts]
    tasks: dict[str, TaskFacts]
    contrasts: list[tuple[str, str]]
    outcome: NotRequired[str | None]
    """The outcome that decides, if the recipe names an outcome."""
    match: Matching | None
    companions: list[float]
    margin: NotRequired[float | None]
    looks: NotRequired[list[int] | None]
    looked: NotRequired[list[Look]]
    helps: NotRequired[float]
    search: Search | None
    share: NotRequired[tuple[str, str] | None]
    """The two arms whose difference counts as the whole gain (``study.share``)."""
    gate: NotRequired[Gate | tuple[str, str] | None]
    """Older files contain only the pair, which is then also one of the contrasts."""
    pending: NotRequired[list[int]]
    """The seeds of compared runs that have not run yet; present only if there are any."""
    learned: NotRequired[dict[str, str]]
    """For each arm, the task from which its policy was learned; only in studies of transfer."""


class Candidate(TypedDict):
    """A point of a searched grid."""

    setting: dict[str, object]
    score: float | None
    """The mean over outcomes, each standardised over the grid; None if the run failed."""
    mean: NotRequired[float | None]
    """The score in older files."""
    scores: dict[str, float] | None
    """The score of each outcome; higher is better. Older files contain a list of such dicts, with
    one dict per seed."""


class Record(TypedDict, total=False):
    """The keys of records.jsonl that are read; docs/files.md lists all keys of each ``kind``."""

    kind: str
    arm: str
    seed: int
    fraction: float
    """The length of a companion run, as a share of the steps; absent in full runs."""
    task: str
    metric: str
    score: float
    majority: float | None
    """The score that guessing gets, for tasks that are answered in words."""
    item_error: float
    """The standard error of the score over test items, from resampled sentences and documents."""
    item_sd: float
    """The standard deviation of the items' scores, for tasks that are answered in words."""
    dev: list[float | None]
    others: dict[str, float]
    """Further metrics on the same items, such as macro-f1 in addition to accuracy."""
    masks: str
    ratio: float
    loss: float
    unigram: float | None
    name: str
    value: float
    chance: float | None
    higher_is_better: bool
    items: int
    steps: int
    flops: float
    probe_flops: float
    stage: str
    error: str
    by: str
    search_seed: int
    """The seed of the search runs; ``seed`` is the seed of the compared run."""
    chosen: dict[str, object] | None
    candidates: list[Candidate]
    tied: bool
    """Whether all points of the grid have the same scores."""
    role: str
    """"gate": a run at the settings as written, for the gate of a study with a search."""
    corpus: str
    overlapping: int
    standing: int
    """How many items have a correct answer that occurs in the corpus."""
    occurrences: int
    """How often correct answers occur in the masked rows. In ``whole`` of these occurrences, all
    tokens of the answer were masked; in ``part`` of them, only some tokens were."""
    whole: int
    part: int


class Ends(TypedDict):
    low: float
    high: float


class Estimate(TypedDict):
    """A mean difference with its interval; values are None if there are too few runs."""

    mean: float | None
    low: float | None
    high: float | None


class Compute(TypedDict):
    """The matched quantity, whether the arms match in it, and the arm's costs divided by the
    baseline's."""

    by: str | None
    matched: bool
    ratios: dict[str, float]


class Detectable(TypedDict):
    """The smallest difference that ``runs`` runs detect with probability .8, in scores or in the
    row's unit."""

    runs: int
    difference: float


class Equivalence(Ends):
    """An interval within the margin of a study, in plain scores or nats, with its confidence."""

    margin: float
    confidence: float


class RaisedFlag(TypedDict):
    """A problem that makes a row not comparable, caps its verdict at *open*, or is only noted."""

    code: str
    effect: Effect
    sentence: str
    facts: dict[str, object]


class Contrast(Estimate):
    """The comparison of a pair of arms on one outcome: a row of summary.json."""

    arm: str
    baseline: str
    outcome: str
    primary: bool
    gate: NotRequired[bool]
    """Present only if true: the contrasts that this gate closes wait until it is decided."""
    n: int
    higher_is_better: bool
    unit: str
    metric: str | None
    natural: NotRequired[Estimate]
    """The same estimate in plain scores, for the outcome "tasks" only."""
    compute: Compute
    items: Ends | None
    p: float | None
    p_adjusted: float | None
    verdict: Verdict | None
    """None for secondary rows, unless they are not comparable."""
    better: Literal["arm", "baseline"] | None
    """The side that is better according to a *decided* verdict."""
    scope: str
    """Whether the verdict holds only "at these settings", or each arm was tuned."""
    flags: list[RaisedFlag]
    equivalence: NotRequired[Equivalence]
    runs_to_decide: int | None
    detectable: Detectable | None
    brief: str
    sentence: str


class Point(TypedDict, total=False):
    """The compute of a run of any length, and its score on each outcome."""

    arm: str
    seed: int
    fraction: float
    steps: float
    tokens: float
    targets: float
    flops: float
    values: dict[str, float]


class TransferCell(Estimate):
    """The gain over the baseline on ``task`` of a policy that was learned from ``learned_from``."""

    arm: str
    learned_from: str
    task: str
    n: int


class GainShare(TypedDict):
    """The gain of an arm over the ``baseline`` as a share of the gain of the ``best`` arm.

    In ``failed`` of ``n`` pairs of runs, the arm learned nothing; ``failed_low`` and
    ``failed_high`` are the ends of an exact interval for this failure rate. ``share`` and its 95 %
    interval are estimated from the other runs; they are None if there are no other runs, or if the
    arms cannot be compared.
    """

    arm: str
    best: str
    baseline: str
    task: str
    n: int
    failed: int
    failed_low: float | None
    failed_high: float | None
    share: float | None
    low: float | None
    high: float | None
    sentence: str


class TaskUse(TypedDict):
    """The share of runs in which pre-training helps on a task (None if unknown), and whether the
    task counts."""

    helped: float | None
    counted: bool


class ArmSummary(TypedDict):
    """An arm's results; for each outcome, ``scores`` has a score per seed, None if it failed."""

    units: str
    gap_nats: float | None
    """The unigram loss minus the arm's loss, on masks of its own policy."""
    failures: int
    compute: dict[str, float]
    scores: dict[str, list[float | None]]


class Planned(TypedDict):
    """The number of runs of each arm, the number of contrasts without the gate, and the probability
    of deciding a true difference of 1 and of 1.5 SDs of paired differences."""

    runs: int
    contrasts: int
    power: dict[str, float]
    detectable: NotRequired[float]
    """As in ``Detectable``, in SDs of the paired differences; older files lack it."""


class Pending(TypedDict):
    """How many runs of each arm are planned, and how many of them are done."""

    planned: int
    done: int


class Efficiency(TypedDict):
    points: list[Point]


class Summary(TypedDict):
    """summary.json."""

    rules: NotRequired[int]
    """The version ``RULES``; absent in summaries of earlier rules."""
    planned: NotRequired[Planned]
    pending: NotRequired[Pending | None]
    """Present while planned runs are missing; nothing is tested until they are done."""
    baseline: str
    matched_by: str | None
    arms: dict[str, ArmSummary]
    contrasts: list[Contrast]
    verdict: Verdict | None
    headline: str
    advice: list[str]
    overlap: list[Record]
    efficiency: Efficiency
    tasks: dict[str, TaskUse]
    shares: NotRequired[list[GainShare]]
    transfer: NotRequired[list[TransferCell]]
