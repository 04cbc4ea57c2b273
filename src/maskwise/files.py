"""What stands in the files of a study, as types: docs/files.md in code.

The study writes ``study.json`` and ``records.jsonl``, the verdicts make ``summary.json`` of them,
the report and the command line read all three. Every type is a ``TypedDict``: plain JSON at run
time, checked by mypy.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

RULES = 2
"""The version of the rules that verdicts are made by; summaries without one were made by earlier
rules.
"""

Verdict = Literal["decided", "no difference that matters", "open", "not comparable"]
Effect = Literal["invalid", "caps", "notes"]


class ArmFacts(TypedDict):
    """An arm in study.json."""

    policy: str
    ratio: str
    overrides: dict[str, object]
    units: NotRequired[str]
    """The value of a ``maskwise.masking.UnitKind``; the policy where a file made by hand does not
    say it.
    """
    setting: NotRequired[dict[str, object]]
    """What a search chose for it, by dotted name."""
    judged_on: NotRequired[list[str]]
    """Kinds of held-out masks that are the arm's own."""
    tokenizer: NotRequired[str]
    runs: NotRequired[dict[str, str]]
    """The folder of the pre-training run, by seed."""
    sampler: NotRequired[str]


class TaskFacts(TypedDict, total=False):
    """A task in study.json."""

    metric: str
    kind: str
    classes: int
    test_items: int
    test_texts: str
    """A hash of the texts of test: tasks that share it share the luck of their sentences."""
    majority: float | None
    """The score of guessing: see ``tasks.Task.majority``."""
    notes: list[str]
    skipped: dict[str, int]
    """Rows that were left out: "split: reason" → how many."""
    higher_is_better: bool
    """There where it is false."""


class Matching(TypedDict):
    """Which quantity every arm spends as much of as the baseline, and what each arm was planned to
    spend.
    """

    by: str | None
    arms: dict[str, dict[str, float]]


class Search(TypedDict, total=False):
    grid: object
    own: object
    by: str | None
    seeds: list[int]
    """In older files: the seeds that chose one setting for all runs of an arm."""


class Gate(TypedDict):
    """A positive control: the contrast that must be decided, and those that are not judged
    otherwise.
    """

    contrast: tuple[str, str]
    closes: list[tuple[str, str]]


class Look(TypedDict):
    """An earlier verdict of a study: its number of runs, their seeds, and the contrasts and looks
    that it had then.
    """

    runs: int
    seeds: NotRequired[list[int]]
    contrasts: NotRequired[int]
    looks: list[int] | None
    settings_changed: NotRequired[bool]
    """Whether the margin, gate, search or matching was another one; there only if so."""


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
    match: Matching | None
    companions: list[float]
    margin: NotRequired[float | None]
    looks: NotRequired[list[int] | None]
    looked: NotRequired[list[Look]]
    helps: NotRequired[float]
    search: Search | None
    share: NotRequired[tuple[str, str] | None]
    """The arm whose gain over the other is shared out (``study.share``)."""
    gate: NotRequired[Gate | tuple[str, str] | None]
    """In older files, which put it among the contrasts too, the pair alone."""
    pending: NotRequired[list[int]]
    """The seeds of runs to be compared that have not run yet; there only while it is not empty."""
    learned: NotRequired[dict[str, str]]
    """By arm, the task that its policy was learned from; in studies of transfer."""


class Candidate(TypedDict):
    """A point of a searched grid."""

    setting: dict[str, object]
    score: float | None
    """The mean over outcomes, each standardised over the grid; None where the run failed."""
    mean: NotRequired[float | None]
    """The score in older files."""
    scores: dict[str, float] | None
    """By outcome; more is better. In older files a list of one for each seed."""


class Record(TypedDict, total=False):
    """The keys of records.jsonl that are read; ``kind`` says which of them a line has.
    docs/files.md
    names all.
    """

    kind: str
    arm: str
    seed: int
    fraction: float
    """The share of the steps of a companion run; whole runs have no fraction."""
    task: str
    metric: str
    score: float
    majority: float | None
    """The task's majority; there where it depends on the tokenizer or on nothing."""
    item_error: float
    """The standard error of the score over test items, by resampling sentences and documents."""
    item_sd: float
    """The standard deviation of the items' scores, in tasks that are answered in words."""
    dev: list[float | None]
    others: dict[str, float]
    """Further metrics on the same items, such as macro-f1 beside accuracy."""
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
    """The seed of the runs that a setting was chosen from; ``seed`` is that of the run that is
    compared.
    """
    chosen: dict[str, object] | None
    candidates: list[Candidate]
    tied: bool
    """Whether all points of the grid have the same scores."""
    role: str
    """"gate": a run at settings as written, for the gate of a study with a search."""
    corpus: str
    overlapping: int
    standing: int
    """Items of which a right answer stands in the corpus."""
    occurrences: int
    """How often right answers stand in the rows of which an arm's masks were drawn; all of their
    tokens were masked ``whole`` times, some of them ``part`` times."""
    whole: int
    part: int


class Ends(TypedDict):
    low: float
    high: float


class Estimate(TypedDict):
    """A mean difference with its interval; None without runs, or with too few."""

    mean: float | None
    low: float | None
    high: float | None


class Compute(TypedDict):
    """What was matched, whether it is, and the arm's compute as a multiple of the baseline's."""

    by: str | None
    matched: bool
    ratios: dict[str, float]


class Detectable(TypedDict):
    """The difference that this many runs find with a probability of .8, in plain scores, or in the
    row's unit.
    """

    runs: int
    difference: float


class Equivalence(TypedDict):
    """The interval that lies within the margin of a study, in plain scores or nats, and its
    confidence.
    """

    margin: float
    confidence: float
    low: float
    high: float


class RaisedFlag(TypedDict):
    """What makes a row not comparable, caps its verdict at *open*, or must be known beside it."""

    code: str
    effect: Effect
    sentence: str
    facts: dict[str, object]


class Contrast(TypedDict):
    """One pair of arms and one outcome: a row of summary.json."""

    arm: str
    baseline: str
    outcome: str
    primary: bool
    gate: NotRequired[bool]
    """There where it is true: the contrast that must be decided before any other is judged."""
    n: int
    higher_is_better: bool
    unit: str
    mean: float | None
    low: float | None
    high: float | None
    metric: str | None
    natural: NotRequired[Estimate]
    """The same in plain scores, for the outcome "tasks" only."""
    compute: Compute
    items: Ends | None
    p: float | None
    p_adjusted: float | None
    verdict: Verdict | None
    """None of rows that are not primary, unless they are not comparable."""
    better: Literal["arm", "baseline"] | None
    """The side that is decided to be better."""
    scope: str
    """Whether the verdict holds "at these settings", or for arms that were each tuned."""
    flags: list[RaisedFlag]
    equivalence: NotRequired[Equivalence]
    runs_to_decide: int | None
    detectable: Detectable | None
    brief: str
    sentence: str


class Point(TypedDict, total=False):
    """A run of any length: its plain qualities by outcome, and its compute."""

    arm: str
    seed: int
    fraction: float
    steps: float
    tokens: float
    targets: float
    flops: float
    values: dict[str, float]


class Crossing(TypedDict):
    """By seed, the share of the baseline's compute at which an arm first has the baseline's final
    quality.

    None where it never has; a string stands for a seed, as in JSON.
    """

    arm: str
    baseline: str
    outcome: str
    by: str
    shares: dict[str, float | None]


class TransferCell(TypedDict):
    """What an arm's policy, learned from one task, adds to the baseline on a task: above 0 where it
    helps.
    """

    arm: str
    learned_from: str
    task: str
    n: int
    mean: float | None
    low: float | None
    high: float | None


class GainShare(TypedDict):
    """How much of what the ``best`` arm adds to the ``baseline`` on a task another arm adds: 1 is
    all of it.

    Of ``n`` pairs of runs ``failed`` learned nothing, with the exact interval of that share.
    ``share`` and its 95 % interval are those of the other runs; None where there is none, or arms
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
    """The share of runs in which pre-training helps on a task (None: not known), and whether the
    task counts.
    """

    helped: float | None
    counted: bool


class Efficiency(TypedDict):
    points: list[Point]
    crossings: list[Crossing]


class ArmSummary(TypedDict):
    """What came of an arm; ``scores`` are by outcome and in the order of the study's seeds, None
    where a run failed.
    """

    units: str
    gap_nats: float | None
    """By how much the loss is below that of word frequencies, on the arm's own masks."""
    failures: int
    compute: dict[str, float]
    scores: dict[str, list[float | None]]


class Planned(TypedDict):
    """What a study can see: its runs, its contrasts without the gate, and the probability of
    deciding a true difference of 1 and 1.5 spreads between paired runs.
    """

    runs: int
    contrasts: int
    power: dict[str, float]


class Pending(TypedDict):
    """How many replicates a study has, of those that it planned."""

    planned: int
    done: int


class Summary(TypedDict):
    """summary.json."""

    rules: NotRequired[int]
    """``RULES``; a summary of earlier rules does not have it."""
    planned: NotRequired[Planned]
    pending: NotRequired[Pending | None]
    """There while planned runs are missing: nothing is tested then."""
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
