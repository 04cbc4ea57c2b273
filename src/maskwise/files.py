"""Types of the files of a study; docs/files.md describes the files.

A study writes ``study.json``, ``records.jsonl`` and, with the verdicts, ``summary.json``. The
report and the commands read all three. Every type is a ``TypedDict``: mypy checks it, and at run
time it is plain JSON.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

RULES = 2
"""Version of the verdict rules. Summaries without a version follow earlier rules."""

Verdict = Literal["decided", "no difference that matters", "open", "not comparable"]
Effect = Literal["invalid", "caps", "notes"]


class ArmFacts(TypedDict):
    """An arm in study.json."""

    policy: str
    ratio: str
    overrides: dict[str, object]
    units: NotRequired[str]
    """Masking units, a value of ``maskwise.masking.UnitKind``. If a file written by hand lacks this
    key, the policy stands for the units."""
    setting: NotRequired[dict[str, object]]
    """Settings that a search chose, keyed by dotted name."""
    judged_on: NotRequired[list[str]]
    """Held-out masks on which the arm is evaluated; they suit the policy of the arm."""
    tokenizer: NotRequired[str]
    runs: NotRequired[dict[str, str]]
    """Folders of the pre-training runs, keyed by seed."""
    sampler: NotRequired[str]


class TaskFacts(TypedDict, total=False):
    """A task in study.json."""

    metric: str
    kind: str
    classes: int
    test_items: int
    test_texts: str
    """Hash of the test texts. Scores of two tasks with the same texts have correlated errors."""
    majority: float | None
    """Score of the best guess that ignores the text; see ``tasks.Task.majority``."""
    notes: list[str]
    skipped: dict[str, int]
    """Number of skipped rows, keyed by "split: reason"."""
    higher_is_better: bool
    """Present only if false."""


class Matching(TypedDict):
    """The quantity in which all arms are equal, such as steps, and the planned costs of arms."""

    by: str | None
    arms: dict[str, dict[str, float]]


class Search(TypedDict, total=False):
    grid: object
    own: object
    by: str | None
    seeds: list[int]
    """Only in older files: the seeds of the runs that chose one setting for all runs of an arm."""


class Gate(TypedDict):
    """A positive control: the contrasts ``closes`` are tested only if ``contrast`` is decided."""

    contrast: tuple[str, str]
    closes: list[tuple[str, str]]


class Look(TypedDict):
    """An earlier verdict of the study: its runs, seeds, number of contrasts, and planned looks."""

    runs: int
    seeds: list[int]
    contrasts: int
    looks: list[int] | None
    settings_changed: NotRequired[bool]
    """Present, and true, only if the contrasts or a verdict rule were different."""


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
    """Primary outcome, if the recipe names one."""
    match: Matching | None
    companions: list[float]
    margin: NotRequired[float | None]
    looks: NotRequired[list[int] | None]
    looked: NotRequired[list[Look]]
    helps: NotRequired[float]
    search: Search | None
    share: NotRequired[tuple[str, str] | None]
    """The arm with the whole gain, and the baseline of all gains (``study.share``)."""
    gate: NotRequired[Gate | tuple[str, str] | None]
    """In older files, a pair of arms, which is also one of the contrasts."""
    pending: NotRequired[list[int]]
    """Seeds of planned runs that are missing; present only if there are any."""
    learned: NotRequired[dict[str, str]]
    """Task from which the policy of each arm was learned; only in studies of transfer."""


class Candidate(TypedDict):
    """A point of the grid of a search."""

    setting: dict[str, object]
    score: float | None
    """Mean over outcomes, each standardised over the grid; None if the run failed."""
    mean: NotRequired[float | None]
    """The same as ``score``, in older files."""
    scores: dict[str, float] | None
    """Score of each outcome; higher is better. In older files, a list of such dicts, one per
    seed."""


class Record(TypedDict, total=False):
    """A line of records.jsonl, with the keys that maskwise reads; docs/files.md lists all keys."""

    kind: str
    arm: str
    seed: int
    fraction: float
    """Length of a companion run, as a share of the steps; absent in full runs."""
    task: str
    metric: str
    score: float
    majority: float | None
    """Score of the best guess that ignores the text, for tasks with free-text answers."""
    item_error: float
    """Standard error of the score over test items, from resampled sentences and documents."""
    item_sd: float
    """Standard deviation of the scores of items, for tasks with free-text answers."""
    dev: list[float | None]
    others: dict[str, float]
    """Scores in further metrics on the same items, such as macro-f1 in addition to accuracy."""
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
    """Seed of the search runs; ``seed`` is the seed of the compared run."""
    chosen: dict[str, object] | None
    candidates: list[Candidate]
    tied: bool
    """Whether all points of the grid have the same scores."""
    role: str
    """"gate" for a run at the settings in the recipe, for the gate of a study with a search."""
    corpus: str
    overlapping: int
    standing: int
    """Number of items with a correct answer that occurs in the corpus."""
    occurrences: int
    """Number of occurrences of correct answers in the masked rows. All tokens of the answer were
    masked in ``whole`` of these occurrences, and some tokens in ``part`` of these occurrences."""
    whole: int
    part: int


class Ends(TypedDict):
    low: float
    high: float


class Estimate(TypedDict):
    """A mean difference and its interval; a value is None if there are too few runs."""

    mean: float | None
    low: float | None
    high: float | None


class Compute(TypedDict):
    """The matched quantity, whether it is equal in both arms, and the ratios of the arm's costs to
    the baseline's costs."""

    by: str | None
    matched: bool
    ratios: dict[str, float]


class Detectable(TypedDict):
    """The smallest difference that ``runs`` runs detect with probability .8, in plain scores or in
    the unit of the row."""

    runs: int
    difference: float


class Equivalence(Ends):
    """An interval inside the margin of the study, in plain scores or nats, and its confidence."""

    margin: float
    confidence: float


class RaisedFlag(TypedDict):
    """A problem of a row, which makes it *not comparable*, *open* at most, or is only noted."""

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
    """Present only if true: other contrasts are tested only after this contrast is decided."""
    n: int
    higher_is_better: bool
    unit: str
    metric: str | None
    natural: NotRequired[Estimate]
    """The estimate in plain scores, only for the outcome "tasks"."""
    compute: Compute
    items: Ends | None
    p: float | None
    p_adjusted: float | None
    verdict: Verdict | None
    """None for a secondary row, unless it is not comparable."""
    better: Literal["arm", "baseline"] | None
    """The better side, if the verdict is *decided*."""
    scope: str
    """Whether the verdict holds "at these settings" only, or for tuned arms."""
    flags: list[RaisedFlag]
    equivalence: NotRequired[Equivalence]
    runs_to_decide: int | None
    detectable: Detectable | None
    brief: str
    sentence: str


class Point(TypedDict, total=False):
    """The compute of a full or companion run, and the run's score on each outcome."""

    arm: str
    seed: int
    fraction: float
    steps: float
    tokens: float
    targets: float
    flops: float
    values: dict[str, float]


class TransferCell(Estimate):
    """The gain over the baseline on ``task``, with a policy learned from ``learned_from``."""

    arm: str
    learned_from: str
    task: str
    n: int


class GainShare(TypedDict):
    """The gain of an arm over the ``baseline`` as a share of the gain of the ``best`` arm.

    In ``failed`` of ``n`` pairs of runs, the arm learned nothing. ``failed_low`` and
    ``failed_high`` are the ends of an exact interval for this failure rate. ``share`` and its 95 %
    interval are estimated from the other runs, and are None if there are no other runs or the arms
    cannot be compared.
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
    task counts in the outcome "tasks"."""

    helped: float | None
    counted: bool


class ArmSummary(TypedDict):
    """The results of an arm. ``scores`` has a score per seed, or None, keyed by outcome."""

    units: str
    gap_nats: float | None
    """Unigram loss minus loss of the arm, in nats, on masks of the arm's policy."""
    failures: int
    compute: dict[str, float]
    scores: dict[str, list[float | None]]


class Planned(TypedDict):
    """The number of runs of each arm, the number of contrasts without the gate, and the power to
    decide a true difference of 1 and of 1.5 SDs of paired differences."""

    runs: int
    contrasts: int
    power: dict[str, float]
    detectable: NotRequired[float]
    """As in ``Detectable``, in SDs of the paired differences; older files lack it."""


class Pending(TypedDict):
    """The numbers of planned and of finished runs of each arm."""

    planned: int
    done: int


class Efficiency(TypedDict):
    points: list[Point]


class Summary(TypedDict):
    """summary.json."""

    rules: NotRequired[int]
    """Version of the verdict rules (``RULES``); absent in summaries of earlier rules."""
    planned: NotRequired[Planned]
    pending: NotRequired[Pending | None]
    """Present while planned runs are missing. Nothing is tested until all runs are finished."""
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
