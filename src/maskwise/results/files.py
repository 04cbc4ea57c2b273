"""Types of the files of a study, which docs/files.md describes.

A study writes ``study.json`` (its settings), ``records.jsonl`` (results of runs) and
``summary.json`` (verdicts). The report and the commands read all three. All types are
``TypedDict``: mypy checks them, and at run time, they are plain JSON.

An *arm* is one of the compared settings, and it is trained with several seeds. A *contrast* is a
comparison of two arms, the second of which is the baseline. An *outcome* is what they are compared
on: a task, a held-out loss, or another evaluation.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypeAlias

from annotated_types import Ge
from typing_extensions import TypedDict

RULES = 5
"""Version of the rules of verdicts. It rises if a rule changes that can change a verdict or a note.
``maskwise report`` judges results of other versions anew."""

Decision = Literal["decided", "no difference that matters", "open", "not comparable"]
Effect = Literal["invalid", "caps", "notes"]
Number: TypeAlias = Annotated[int, Ge(0)]
"""How many of something there are."""


class ArmFacts(TypedDict):
    """An arm in study.json."""

    policy: str
    ratio: str
    overrides: dict[str, object]
    units: NotRequired[str]
    """What the policy masks as a whole, a value of ``maskwise.masking.UnitKind``. If the key is
    missing, as in files written by hand, the name of the policy is used."""
    judged_on: NotRequired[list[str]]
    """Names of the held-out masks on which the loss of the arm is computed."""
    tokenizer: NotRequired[str]
    extended: NotRequired[bool]
    """Whether the arm has other tokens than its model had (``model.changes``)."""
    runs: NotRequired[dict[str, str]]
    """Folders of the pre-training runs, keyed by seed."""
    sampler: NotRequired[str]
    learns: NotRequired[bool]
    """True if each run learns its policy or its sampler; otherwise not written."""


class TaskFacts(TypedDict, total=False):
    """A task in study.json."""

    metric: str | None
    kind: str
    classes: Number
    test_items: Number
    test_texts: str
    """Hash of the test texts. If two tasks have the same texts, their errors are correlated."""
    majority: float | None
    """Score of the best answer that is the same for all texts; see ``tasks.Task.majority``."""
    notes: list[str]
    skipped: dict[str, int]
    """Number of skipped rows, keyed by "split: reason"."""
    higher_is_better: bool
    """Written only if false."""


class Matching(TypedDict):
    """How training costs are matched.

    Attributes:
        by: the cost that is the same in all arms, such as steps; None if it was not recorded.
        arms: the planned costs of each arm, keyed by cost.
    """

    by: str | None
    arms: dict[str, dict[str, float]]


class Search(TypedDict, total=False):
    grid: object
    own: object
    by: str | None


class Gate(TypedDict):
    """A positive control. The contrasts in ``closes`` are tested only if ``contrast`` is decided,
    which shows that the study can detect a known effect."""

    contrast: tuple[str, str]
    closes: list[tuple[str, str]]


class Look(TypedDict):
    """An earlier verdict of the same study.

    Attributes:
        runs: the number of runs of each arm at that time.
        seeds: their seeds.
        contrasts: the number of contrasts.
        looks: the planned numbers of runs at which results are read; None without a plan.
    """

    runs: Number
    seeds: list[int]
    contrasts: int
    looks: list[int] | None
    settings_changed: NotRequired[bool]
    """True if contrasts or rules of verdicts were different then; otherwise not written."""


class Study(TypedDict, total=False):
    """study.json."""

    name: str
    description: str
    format: int
    """Version of the format of study.json and of the files beside it (``folders.FORMATS``)."""
    maskwise: str
    started: str
    seconds: float | None
    versions: dict[str, str]
    hardware: dict[str, object]
    """The machine of the last call. ``precision`` is the one that ``training.precision: auto``
    chooses there."""
    earlier_hardware: list[dict[str, object]]
    """Other machines on which seeds of the study ran, or on which it was judged."""
    recipe: dict[str, object]
    recipe_yaml: str
    baseline: str
    untrained: dict[str, str]
    """The arms that are not trained, and how pages call them. There is at most one: the model from
    which the baseline starts."""
    seeds: list[int]
    arms: dict[str, ArmFacts]
    tasks: dict[str, TaskFacts]
    inputs: str
    """Hash of the contents of all files that the study reads; "" if it was not recorded."""
    contrasts: list[tuple[str, str]]
    outcome: str | None
    """Outcome on which contrasts are decided, if the recipe names one."""
    match: Matching | None
    margin: float | None
    looks: list[int] | None
    looked: list[Look]
    secondary: list[str]
    """Tasks that are reported only (``study.secondary``); the key may be missing."""
    search: Search | None
    gate: Gate | None
    pending: list[int]
    """Seeds of planned runs that are missing."""
    compared: str
    """What a pair repeats, a key of ``verdict.sentences.REPLICATES``, in comparisons of scores from
    elsewhere (``maskwise compare``)."""
    shared_stages: str
    """The folder of stages that the study shares with others, if there is one."""


class Candidate(TypedDict):
    """A point of the grid of a search for settings, and the result of its run."""

    setting: dict[str, object]
    score: float | None
    """Mean over outcomes after each outcome was standardised over the grid; None if the run
    failed."""
    scores: NotRequired[dict[str, float] | None]
    """Score of each outcome; higher is better."""


class Record(TypedDict, total=False):
    """A line of records.jsonl, with the keys that maskwise reads; docs/files.md lists all keys."""

    kind: str
    """"task", "heldout" or "evaluation" for a number that was measured. The columns of its line are
    those of ``maskwise.results.measurements.Measurement``; the other keys are facts about it."""
    arm: str
    seed: int
    measure: str
    """What was measured: a task, a kind of masks, a set of items, or a quantity."""
    value: float
    metric: str | None
    unit: str
    higher_is_better: bool
    split: str
    ratio: float
    chance: float | None
    items: Number
    item_error: float
    """Standard error of the value over test items; of a task, computed by resampling sentences or
    documents."""
    role: str
    """"gate" if the run has the settings of the recipe, because a search does not apply to runs
    for the gate."""
    fine_tuning: list[float]
    """The score of each fine-tuning seed."""
    item_sd: float
    """Standard deviation of the scores of items, in tasks with free-text answers."""
    item_sums: list[float]
    """Contributions of groups of test rows to the numerator of the score, summed over fine-tuning
    seeds: correct answers, words of entities, F1 or nats of answers, or the pseudo-values of a
    jackknife if the metric is not a ratio of sums. Some recorded studies have none."""
    item_sizes: list[float]
    """Contributions to the denominator; one number if all are equal."""
    steps: Number
    flops: Annotated[float, Ge(0)]
    flops_formulas: list[int]
    """The formulas (``flops.FORMULA``) by which the trainings of the run counted; absent for 1."""
    best_step: Number
    """If the run chose its weights: the step whose weights were kept, of ``planned_steps``."""
    planned_steps: Number
    probe_flops: float
    task: str
    stage: str
    error: str
    by: str
    search_seed: int
    """Seed of the runs of the search. ``seed`` is the seed of the run that is compared later. Both
    are null if one search served all runs of an arm, as in recorded studies."""
    chosen: dict[str, object] | None
    candidates: list[Candidate]
    tied: bool
    """Whether all points of the grid have the same scores."""
    corpus: str
    overlapping: Number
    """Number of test items that share ``n`` words in a row, or all their words, with the corpus."""
    covered: Number
    """Number of test items of which such runs have half of the words. Older records lack this."""
    run: str
    """The longest part of an item that such runs cover, of ``run_words`` words."""
    run_words: Number
    n: Number
    standing: Number
    """Number of items with a correct answer that occurs in the corpus."""
    occurrences: Number
    """Number of times that correct answers occur in the masked rows. ``whole`` times, all tokens of
    the answer were masked, and ``part`` times, only some of them."""
    whole: Number
    part: Number


class Ends(TypedDict):
    low: float
    high: float


class ItemsInterval(TypedDict):
    """What the choice of test items adds to the uncertainty of a difference, in natural units.

    Attributes:
        low, high: the 95 % interval if runs and items vary together; None with fewer than six runs.
        alone: half of the 95 % interval over the choice of items, for these runs.
        paired: true if it is computed from the differences of single items between the two arms;
            not written if it rests on an assumption, because the records have no such sums.
    """

    low: float | None
    high: float | None
    alone: float
    paired: NotRequired[bool]


class Estimate(TypedDict):
    """A mean difference and its interval. A value is None if there are too few runs for it."""

    mean: float | None
    low: float | None
    high: float | None


class Compute(TypedDict):
    """The training costs of two arms.

    Attributes:
        by: the cost that should be equal, such as steps; None if it was not recorded.
        matched: whether this cost is equal in both arms.
        ratios: the arm's cost divided by the baseline's cost, keyed by cost.
    """

    by: str | None
    matched: bool
    ratios: dict[str, float]


class Detectable(TypedDict):
    """The smallest difference that is detected with probability 0.8 by ``runs`` pairs of runs, in
    plain scores or in the unit of the row; None for a mean over tasks without a common unit."""

    runs: int
    difference: float | None


class Equivalence(Ends):
    """An interval that lies within the margin of the study, the largest difference that does not
    matter. Interval and margin are in plain scores or nats."""

    margin: float
    confidence: float


class Worth(TypedDict):
    """Whether a decided lead is a reason to use the side that is better.

    Attributes:
        above: whether the whole interval of the lead is above the margin.
        margin: the largest difference that does not matter, in plain scores or nats; None for an
            outcome in another unit.
        assumed: whether the margin is none of the study's (``constants.ASSUMED_MARGINS``).
        against: the tasks on which the better side is behind by more than their margin.
    """

    above: bool
    margin: float | None
    assumed: bool
    against: list[str]


class Failures(TypedDict):
    """The failures of one side of a row.

    Attributes:
        runs: the number of runs, with those that failed.
        failed: the number of runs of which a stage failed, or that ended at the untrained floor.
        high: the exact upper bound of the rate of failures, with confidence 95 %.
        learned: whether each run learns its masking policy or its sampler.
    """

    runs: int
    failed: int
    high: float
    learned: bool


class RaisedFlag(TypedDict):
    """A problem of a contrast. By its ``effect``, the contrast becomes *not comparable*
    ("invalid"), at most *open* ("caps"), or only has a note ("notes")."""

    code: str
    effect: Effect
    sentence: str
    facts: dict[str, object]


class Contrast(Estimate):
    """The comparison of two arms on one outcome: a row of summary.json."""

    arm: str
    baseline: str
    outcome: str
    primary: bool
    gate: NotRequired[bool]
    """True if other contrasts are tested only after this one is decided; otherwise not written."""
    n: int
    higher_is_better: bool
    unit: str
    metric: str | None
    natural: NotRequired[Estimate]
    """The estimate in plain scores instead of SDs, only for the outcome "tasks"."""
    least_sd: NotRequired[bool]
    """True if a task's runs vary by less than one test item, whose value then counts as their SD;
    otherwise not written."""
    compute: Compute
    items: ItemsInterval | None
    p: float | None
    p_adjusted: float | None
    verdict: Decision | None
    """None if ``primary`` is false, unless the verdict is *not comparable*."""
    better: Literal["arm", "baseline"] | None
    """Which of the two is better, if the verdict is *decided*."""
    scope: str
    """"at these settings", or "each arm tuned" if each arm had its own search for settings."""
    flags: list[RaisedFlag]
    equivalence: NotRequired[Equivalence]
    worth: NotRequired[Worth]
    """Only if the verdict is *decided*."""
    reason: NotRequired[str]
    """What ``worth`` says, in words."""
    failures: dict[str, Failures]
    """Failures of the two sides, keyed by "arm" and "baseline"."""
    break_even: float | None
    """The share of runs of the leading side whose failure would cancel its lead; None if the score
    of an untrained model is unknown."""
    runs_to_decide: int | None
    detectable: Detectable | None
    brief: str
    """The sentence without details. That of an open contrast names no leader and no amount."""
    outlook: str
    """What keeps an open contrast open, or would decide it; otherwise ""."""
    sentence: str


class Point(TypedDict, total=False):
    """The training cost of a run, and its score on each outcome."""

    arm: str
    seed: int
    steps: float
    tokens: float
    targets: float
    flops: float
    values: dict[str, float]


class ArmSummary(TypedDict):
    """The results of an arm. ``scores`` has, for each outcome, a score or None for each seed."""

    units: str
    gap_nats: float | None
    """Loss of guessing by token frequencies minus loss of the arm, in nats, on masks of the arm's
    policy."""
    failures: int
    compute: dict[str, float]
    scores: dict[str, list[float | None]]


class MeanLosses(TypedDict):
    """A held-out loss in nats a target: the mean over runs of each arm; lower is better.

    Attributes:
        outcome: the masks and their ratio, as in the rows of contrasts.
        frequencies: the loss of a model that knows only word frequencies, if it is known.
        means: the means, keyed by arm, also of the start if it is a pre-trained model.
    """

    outcome: str
    frequencies: float | None
    means: dict[str, float]


class Planned(TypedDict):
    """What the planned runs can decide.

    Attributes:
        runs: the number of runs of each arm.
        contrasts: the number of contrasts, without the gate.
        power: the probability that a true difference of 1 (or 1.5) SDs of paired differences is
            decided.
    """

    runs: int
    contrasts: int
    power: dict[str, float]
    detectable: float
    """The difference that is detected with probability 0.8, in SDs of paired differences."""


class Pending(TypedDict):
    """The numbers of planned and of finished runs of each arm."""

    planned: int
    done: int


class Efficiency(TypedDict):
    points: list[Point]


class Summary(TypedDict):
    """summary.json."""

    rules: NotRequired[int]
    """Version of the rules of verdicts (``RULES``)."""
    planned: NotRequired[Planned]
    pending: NotRequired[Pending | None]
    """Written while planned runs are missing. Nothing is tested until all runs are finished."""
    baseline: str
    matched_by: str | None
    arms: dict[str, ArmSummary]
    contrasts: list[Contrast]
    verdict: Decision | None
    headline: str
    advice: list[str]
    advice_codes: list[str]
    """What the advice is about, such as "use", "new-study" or the code of a flag."""
    overlap: list[Record]
    efficiency: Efficiency
    guessed: list[str]
    """Tasks that show nothing: no arm, and not the start, is shown to score better than guessing.
    The headline names them."""
    losses: list[MeanLosses]
    """The held-out losses of the arms, for each kind of masks and ratio."""
