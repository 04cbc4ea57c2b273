"""Test whether further pre-training of an encoder on the user's text helps.

The study reports by how much further training helps, and what it costs. By default it trains one
arm (one way of training), ``words-30``, and compares this arm with the unchanged model. The models
are fine-tuned and evaluated on the user's tasks. Without tasks, they are evaluated by how well they
find the text that belongs to a title. If the model has no head that fills masks, a head is trained
first on the frozen encoder, once for all runs.

    the unchanged model     the model without further training
    words-30                mask 30 % of the tokens in whole words; best in benchmarks/results
    token-15, token-30      mask 15 % (the usual ratio) or 30 % of the tokens
    tsdae                   train a decoder to restore the text from a sentence vector
    learned                 mask by a learned policy, whose folder the user gives
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError, duration, require_known
from maskwise.families import most_tokens, require_kind
from maskwise.folders import CARD, read_json, write_folder, write_json, write_whole
from maskwise.models import (
    has_head,
    load_config,
    load_model,
    load_task_model,
    weights_of,
    without_advice,
)
from maskwise.recipe import Recipe, apply_overrides, validate
from maskwise.recipe.overrides import Plain, nested, parse_override
from maskwise.specs import split_options, with_options
from maskwise.study.checks import check_names, cut_share, row_sizes
from maskwise.study.stages import DONE
from maskwise.study.starter import TextFacts, look_at, write_pairs
from maskwise.study.unread import names_in_study, refuse_unread
from maskwise.tasks import load_task
from maskwise.tasks.finetuning import interpolated
from maskwise.text import load_tokenizer
from maskwise.text.settings import CorpusSettings
from maskwise.verdict.outcomes import ALL_TASKS, read_outcomes
from maskwise.verdict.statistics import P_FROM_RUNS, can_decide

BEST = "words-30"
PAIRS = "title-to-text"
"""The name of the task that is made from the text if the user gives none."""
STEPS = 600
"""Default number of further training steps, and default maximum of the steps of a new head."""
ARMS: dict[str, Plain] = {
    BEST: {"masking.policy": "whole-word", "masking.ratio": 0.30},
    "token-15": {"masking.ratio": 0.15},
    "token-30": {"masking.ratio": 0.30},
    "tsdae": {"objectives": {"tsdae": {}}},
}
OPTIONS = {"training.steps": "--steps", "study.seeds": "--seeds"}
"""Settings that only an option may change, because an option also changes other settings."""
ROW_TOKENS = 128
USUAL_TOKENS = 512
FITTING_SHARE = 0.99
"""Texts are packed into rows of ``ROW_TOKENS``. Labelled rows of up to ``USUAL_TOKENS`` are not
truncated. If more than 1 % of the rows are longer, rows are truncated to the 99th percentile of the
lengths, because the few longest rows would need much memory."""
# With fewer steps, further training has little effect.
LEAST_STEPS = 100
SHORT_TUNING, SHORTEST_TUNING = 250, 100
FEW_TEST_ROWS, FEWEST_TEST_ROWS = 300, 100
SHORT_ROWS = 64
FEWEST_RUNS = 4
"""Fine-tuning steps, test rows, tokens and runs of a study that takes too long even with
``LEAST_STEPS``: see ``_sizes``."""
RATES = {4e6: 1e-3, 22e6: 1e-4, 110e6: 5e-5, 340e6: 3e-5}
"""AdamW's learning rate by number of weights: the bundled encoder, MiniLM, base and large ones."""
SENTENCE_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, maskwise]
---

Sentence embeddings: mean pooling over the token embeddings of the encoder described below.
Load the model with `SentenceTransformer(FOLDER)`.

"""


class Texts:
    """The user's text. What was read of it is kept, for all recipes that a command builds.

    Args:
        source: a corpus, as for ``read_documents``.
    """

    def __init__(self, source: str):
        self.source = source
        self._pairs: dict[tuple[object, ...], tuple[Path, float]] = {}

    @cached_property
    def facts(self) -> TextFacts:
        return look_at(self.source)

    def pairs(
        self, corpus: CorpusSettings, target: Path, *, choose_share: bool, aside: Path | None
    ) -> tuple[Path, float]:
        """Return the file of ``write_pairs`` and the share that is held out for it."""
        # The layout of rows does not change the documents, and smaller plans have shorter rows.
        read = corpus.model_dump_json(exclude={"length", "layout", "attention"})
        key = (read, target, choose_share, aside)
        if key not in self._pairs:
            written, how = write_pairs(corpus, target, choose_share=choose_share, aside=aside)
            self._pairs[key] = (written, how.held_out)
        return self._pairs[key]


def adapt_recipe(
    model: str,
    texts: str | Texts,
    tasks: Sequence[str] = (),
    *,
    arms: Sequence[str] = (BEST,),
    policy: str | None = None,
    steps: int = STEPS,
    head_steps: int | None = None,
    seeds: int | list[int] = 6,
    pairs: Path | None = None,
    aside: Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Build the recipe of the study.

    Args:
        model: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        texts: a corpus, as for ``read_documents``, or ``Texts`` that keeps what was read.
        tasks: files with labelled rows; if empty, a task of titles and texts is made in ``pairs``,
            from documents that are held out from training.
        arms: names in ``ARMS``. The first arm is compared with the unchanged model.
        policy: the folder of a learned masking policy, for an additional arm ``learned``.
        steps: the number of further training steps.
        head_steps: the number of steps that train a new head first; None for the smaller of
            ``steps`` and ``STEPS``.
        seeds: the number of runs of each arm, or their seeds.
        pairs, aside: the arguments ``target`` and ``aside`` of ``write_pairs``.
        overrides: ``key=value`` settings, except those in ``OPTIONS``.

    Raises:
        MaskwiseError: the input is invalid, or there are neither tasks nor titles.
    """
    if isinstance(texts, str):
        texts = Texts(texts)
    for key, _ in map(parse_override, overrides):
        if key in OPTIONS:
            raise MaskwiseError(f"adapt has an option for {key}", do=f"use {OPTIONS[key]}")
    config = load_config(model, kind=None)
    do = "use the recipe intermediate, whose first lines explain how (maskwise list recipes)"
    require_kind(config, "encoder", use="maskwise adapt", do=do)
    changes = {}
    for name in arms:
        require_known("arm", name, ARMS)
        changes[name] = ARMS[name]
    if policy:
        changes["learned"] = {"masking.policy": f"learned({policy!r})", "masking.ratio": 0.30}
    weights = weights_of(config)
    warm = not has_head(model)
    room = most_tokens(config)
    head_steps = head_steps or min(STEPS, steps)

    def with_text(
        corpus: Plain,
        tasks: Sequence[str],
        *,
        spaced: bool,
        max_length: int,
        overrides: Sequence[str] = overrides,
    ) -> Recipe:
        """Return the recipe for a text, after something is known about it."""
        arms_of_text = dict(changes)
        # In text without spaces there are no whole words, so spans of tokens are masked instead.
        if BEST in changes and not spaced:
            arms_of_text[BEST] = {"masking.policy": "span", "masking.ratio": 0.30}
        # Small models learn faster with Muon. Larger ones were pre-trained with AdamW and keep it.
        small = weights < 15_000_000
        contrast = [arms[0], REFERENCE]
        settings: Plain = {
            "name": "adapt",
            "description": f"Does further training on {texts.source} help {model}?",
            "corpus": dict(corpus),
            "model": {"pretrained": model},
            "masking": {"corruption": "mask-only"},
            "training": {
                "steps": steps,
                "batch_size": 16,
                "optimizer": "muon" if small else "adamw",
                "learning_rate": interpolated(weights, RATES),
                "muon_learning_rate": 5e-3,
                "eval_every": max(1, steps // 4),
                "save_every": max(1, steps // 4),
            },
            "evaluation": {"rows": 128, "ratios": [0.15]},
            "tasks": list(tasks),
            "finetune": {"seeds": 1, "max_length": min(max_length, room)},
            "study": {
                "seeds": seeds,
                "contrasts": [contrast],
                # A gate ignores a search. The unchanged model has no settings to search.
                "gate": contrast,
            },
        }
        if warm:
            # The seed of this phase is fixed, so the head is trained once for all arms and seeds.
            head = {"freeze": "encoder", "steps": head_steps, "optimizer": "muon", "seed": 0}
            # The search of benchmarks/recipes/continual-minilm.yaml chose these learning rates.
            head |= {"learning_rate": 1e-2, "muon_learning_rate": 2e-2}
            settings["phases"] = [{"training": head}, {}]
            for name, arm in arms_of_text.items():
                arms_of_text[name] = {f"phases.1.{key}": value for key, value in arm.items()}
        settings["study"]["arms"] = arms_of_text
        apply_overrides(settings, overrides)
        return validate(nested(settings) | {"study": settings["study"]}, origin="adapt")

    # To read the text takes long, so mistakes elsewhere are found first. What the text decides is
    # filled in with examples.
    corpus: Plain = {"source": texts.source, "length": min(ROW_TOKENS, room)}
    known = [load_task(spec) for spec in tasks]
    if not tasks and pairs is None:
        raise MaskwiseError("there is no task to evaluate on", do="give --task FILE")
    draft = with_text(corpus, tasks or [PAIRS], spaced=True, max_length=ROW_TOKENS)
    check_names(draft, known)
    facts = texts.facts
    corpus["text_field"] = facts.text_field
    if not tasks:
        assert pairs is not None
        # The pairs come from documents that are held out, by the rule that the training text uses.
        read = _with_changes(corpus, overrides)
        chosen = all(key != "corpus.held_out" for key, _ in map(parse_override, overrides))
        pairs, share = texts.pairs(read, pairs, choose_share=chosen, aside=aside)
        corpus["held_out"] = share
        tasks = [with_options(str(pairs), kind="retrieval", name=PAIRS)]
    remade = partial(
        with_text, corpus, tasks, spaced=facts.spaced, max_length=_longest(model, tasks)
    )
    recipe = remade()
    refuse_unread(
        recipe,
        overrides,
        read=lambda others: remade(overrides=others),
        names=names_in_study,
        command="adapt",
    )
    new_head = _new_head(recipe)
    if new_head:
        said = f"{recipe.description} It starts with {new_head}."
        recipe = recipe.model_copy(update={"description": said})
    return recipe


def _with_changes(corpus: Plain, overrides: Sequence[str]) -> CorpusSettings:
    """Return the settings of the text that is trained on, with the user's changes to them."""
    settings: Plain = {"name": "adapt", "corpus": dict(corpus)}
    apply_overrides(settings, [text for text in overrides if text.startswith("corpus.")])
    return validate(nested(settings), origin="adapt").corpus


def _new_head(recipe: Recipe) -> str:
    """Describe the new head that is trained first; "" if no head is trained first."""
    first, *further = recipe.links()
    if not further or first.training.freeze != "encoder":
        return ""
    steps = f"{first.training.steps:,} steps on the frozen encoder"
    return f"a new masked-language-model head, trained {steps}"


def _longest(model: str, tasks: Sequence[str]) -> int:
    """Return a length in tokens that is enough for nearly all labelled rows."""
    tokenizer = load_tokenizer(model)
    longest = ROW_TOKENS
    for spec in tasks:
        sizes = sorted(row_sizes(load_task(spec), tokenizer)) or [0]
        most = sizes[math.ceil(FITTING_SHARE * (len(sizes) - 1))]
        # Batches are padded to their own longest row, so a higher limit costs little.
        longest = max(longest, most, min(sizes[-1], USUAL_TOKENS))
    return longest


def cut_rows(recipe: Recipe) -> dict[str, float]:
    """Return the share of truncated rows among the labelled rows of each task."""
    tokenizer = load_tokenizer(recipe.tokenizer_name or "")
    shares = {}
    for spec in recipe.tasks:
        task = load_task(spec)
        shares[task.name] = cut_share(row_sizes(task, tokenizer), recipe.finetune.max_length)
    return shares


@dataclass(frozen=True)
class Size:
    """The options of adapt that decide how long a study takes.

    Attributes:
        steps: the number of further training steps.
        seeds: the number of runs of each arm, or their seeds.
        tasks: the files with labelled rows.
        overrides: more settings as ``key=value``.
    """

    steps: int
    seeds: int | tuple[int, ...]
    tasks: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def first_seeds(self, count: int) -> Size:
        """Keep at most ``count`` runs of each arm."""
        if isinstance(self.seeds, int):
            return replace(self, seeds=min(count, self.seeds))
        return replace(self, seeds=self.seeds[:count])

    def set_to(self, **settings: object) -> Size:
        """Add overrides; dots in the keys are written as two underscores."""
        more = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        return replace(self, overrides=(*self.overrides, *more))


def smaller_plan(
    recipe: Recipe, size: Size, seconds_of: Callable[[Size], float], limit_seconds: float
) -> tuple[Size, bool]:
    """Find a size with which a study finishes within a time limit.

    First, the steps are reduced. If this is not enough, the study also gets shorter fine-tuning,
    fewer test rows, shorter rows and fewer runs, one after the other.

    Args:
        recipe: the recipe that takes too long.
        size: its size.
        seconds_of: a function that forecasts a study's seconds.

    Returns:
        The size, and whether it keeps the limit. If even the smallest study does not, its size is
        returned.
    """
    least = min(LEAST_STEPS, size.steps)
    for smaller in _sizes(recipe, size):
        shortest = replace(smaller, steps=least)
        fewest_seconds = seconds_of(shortest)
        if fewest_seconds > limit_seconds:
            continue
        seconds = seconds_of(smaller)
        while seconds > limit_seconds and smaller.steps > least:
            # Interpolate, because the time is roughly linear in the number of steps.
            share = (limit_seconds - fewest_seconds) / (seconds - fewest_seconds)
            steps = least + 10 * int(share * (smaller.steps - least) / 10)
            smaller = replace(smaller, steps=steps)
            seconds = seconds_of(smaller)
        return smaller, True
    return shortest, False


def _sizes(recipe: Recipe, size: Size) -> Iterator[Size]:
    """Yield smaller and smaller sizes, with the same number of steps."""
    tuning = recipe.finetune
    if len(recipe.study.arms) > 1:
        size = size.set_to(study__arms=recipe.study.pairs[0][0])
    yield size
    if len(recipe.study.seed_list) > P_FROM_RUNS:
        size = size.first_seeds(P_FROM_RUNS)
        yield size
    # Embeddings of a frozen encoder are computed once, so they take no time that matters.
    trained = any(not load_task(task).frozen for task in size.tasks)
    if trained and (tuning.steps or math.inf) > SHORT_TUNING:
        size = size.set_to(finetune__steps=SHORT_TUNING)
        yield size
    fewer = _with_test_rows(size, FEW_TEST_ROWS)
    if fewer != size:
        size = fewer
        yield size
    shorter = size
    if trained and tuning.max_length > ROW_TOKENS:
        shorter = shorter.set_to(finetune__max_length=ROW_TOKENS)
    if recipe.corpus.length > SHORT_ROWS:
        shorter = shorter.set_to(corpus__length=SHORT_ROWS)
    if shorter != size:
        size = shorter
        yield size
    smallest = _with_test_rows(size, FEWEST_TEST_ROWS)
    if trained and (tuning.steps or math.inf) > SHORTEST_TUNING:
        smallest = smallest.set_to(finetune__steps=SHORTEST_TUNING)
    if smallest != size:
        size = smallest
        yield size
    # Too few to decide, but enough for an estimate.
    if len(recipe.study.seed_list) > FEWEST_RUNS:
        yield size.first_seeds(FEWEST_RUNS)


def _with_test_rows(size: Size, count: int) -> Size:
    """Limit the test rows and the dev rows of the tasks, unless the user has limited them."""
    limited = []
    for spec in size.tasks:
        splits = load_task(spec).splits
        if len(splits["test"]) > count or len(splits["dev"]) > count:
            name, written = split_options(spec)
            # A previous, higher limit is replaced.
            kept = re.sub(r"(^|, )test_rows=\d+$", "", written or "")
            spec = with_options(f"{name}({kept})" if kept else name, test_rows=count)
        limited.append(spec)
    return replace(size, tasks=tuple(limited))


# The answer
# ------------------------------------------------------------------------------------------------


ANSWERS = {
    ("decided", "arm"): "Yes, further training helps.",
    ("decided", "baseline"): "No, further training hurts.",
    ("no difference that matters", None): "No, it makes no difference that matters.",
}


def answer_of(result: Plain, recipe: Recipe) -> str:
    """Return the answer in words: whether further training helps, how much, and at what cost."""
    row = _primary(result)
    if row is None:
        return "Nothing was compared."
    if row["verdict"] == "not comparable":
        return row["sentence"]
    answer = ANSWERS.get((row["verdict"], row["better"]), "These runs cannot tell:")
    steps = recipe.arm(row["arm"], seed=0).links()[-1].training.steps
    cost = f"Training takes {steps:,} steps per run"
    head = _new_head(recipe)
    if head:
        cost += f" and starts with {head}, once for all runs"
    # The first words of the answer say already that the result is open.
    sentence = row["sentence"].removeprefix("Open: ")
    said = f"{answer} {sentence} {cost}; the study took {duration(result['seconds'])}."
    for flag in row.get("flags", ()):
        if flag["code"] == "overlap" and not flag["facts"].get("minor"):
            said += f" But {flag['sentence']}: the arms may have memorised them."
    return said


def next_of(
    result: Plain, recipe: Recipe, tasks: Sequence[str], out: Path, command: Callable[..., str]
) -> str:
    """Return advice on what to do next, with a complete command.

    Args:
        tasks: the files with labelled rows that the user gave; empty if the user gave none.
        command: a function that returns the user's command with more overrides and changed options.
    """
    row = _primary(result)
    model = str(recipe.model.pretrained)
    if result["failures"] or row is None:
        return f"Next: fix the errors, then repeat the failed work by this command: {command()}"
    verdict = row["verdict"]
    if verdict == "open" and not can_decide(row["n"], 1):
        used = recipe.study.seed_list
        more = [*used, *range(max(used) + 1, max(used) + 1 + P_FROM_RUNS - len(used))]
        enough = command(seeds=",".join(map(str, more)))
        return f"Next: add runs, because a decision needs at least {P_FROM_RUNS}: {enough}"
    if verdict in ("decided", "no difference that matters"):
        keep = f"keep {model}"
        if arm_that_helps(result):
            model = str(out / "model")
            keep = f"use {model} in place of {recipe.model.pretrained}"
        if not tasks:
            return f"Next: {keep}."
        words = ["maskwise", "finetune", model]
        for task in tasks:
            words += ["--task", task]
        return f"Next: {keep}: {shlex.join(words)}"
    changes = []
    # The new study writes to a new folder, so the results of this study are kept.
    options: dict[str, object] = {"out": out.with_name(f"{out.name}-2")}
    if verdict == "not comparable" and tasks:
        why = "fine-tuning learned nothing; try other learning rates"
        changes.append("finetune.search_rate=true")
    elif row["runs_to_decide"]:
        # The study gets new seeds: to test the same runs again would inflate the error rate.
        last = max(recipe.study.seed_list)
        why = "a study with more runs would decide, if the difference is as large as it looks"
        options["seeds"] = f"{last + 1}-{last + row['runs_to_decide']}"
    else:
        why = "more runs would not decide this, but more steps may"
        options["steps"] = 2 * recipe.training.steps
    return f"Next: keep {model} for now; {why}: {command(*changes, **options)}"


def arm_that_helps(result: Plain) -> str | None:
    """Return the arm that is decided to be better than the unchanged model; None if none is."""
    row = _primary(result)
    if row is None or (row["verdict"], row["better"]) != ("decided", "arm"):
        return None
    return row["arm"]


def _primary(result: Plain) -> Plain | None:
    """Return a primary contrast, preferably on the tasks; None if there is no primary contrast."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    return min(rows, key=lambda row: row["outcome"] != "tasks", default=None)


class Saved(TypedDict):
    """The adapted model of a study: the content of adapted.json, which the page reads.

    ``arm`` and ``seed`` name the run whose checkpoint was saved. ``helps`` says whether the study
    decided that the arm is better than the unchanged model. ``mean_difference`` is the lead of the
    arm's mean in ``unit`` (negative if the arm is worse), which may be due to chance; both are None
    without scores. ``folders`` are the paths for transformers and for sentence-transformers.
    ``sentence`` says all of this, and ``next`` what to do next.
    """

    arm: str
    seed: int
    helps: bool
    mean_difference: float | None
    unit: str | None
    folders: list[str]
    sentence: str
    next: str


ADAPTED = "adapted.json"


def save_best(out: Path, result: Plain, *, next_step: str) -> Saved | None:
    """Save the adapted model, whether or not it is better than the unchanged model.

    The arm with the best mean is saved. If no arm has a score, the first arm that was trained is
    saved. ``out``/adapted.json says what was saved.

    Args:
        out: the folder of the finished study.
        result: the result of ``run_study``.
        next_step: the advice of ``next_of``.

    Returns:
        What was saved; None if no run has finished its training.

    Raises:
        MaskwiseError: the checkpoints of the arm were deleted, and no model of it was saved before.
    """
    gains, unit = gains_of(out)
    if gains:
        arm = max(gains, key=gains.__getitem__)
    else:
        study = read_json(out / "study.json") or {}
        trained = [arm for arm in study["arms"] if _trained_run(out, arm) is not None]
        if not trained:
            return None
        arm = trained[0]
    saved_before = read_json(out / ADAPTED) or {}
    folders = list(map(Path, saved_before.get("folders", ())))
    # Users may delete checkpoints to free disk space. The model that was saved is then kept.
    if _trained_run(out, arm) is None and saved_before.get("arm") == arm and _all_there(folders):
        seed = saved_before["seed"]
    else:
        seed, folders = save_adapted(out, arm)
    helps = arm_that_helps(result)
    saved: Saved = {
        "arm": arm,
        "seed": seed,
        "helps": helps == arm,
        "mean_difference": gains.get(arm),
        "unit": unit if arm in gains else None,
        "folders": [str(folder) for folder in folders],
        "sentence": kept_of(arm, folders, gain=gains.get(arm), helps=helps),
        "next": next_step,
    }
    write_json(out / ADAPTED, saved)
    return saved


def kept_of(arm: str, folders: Sequence[Path], *, gain: float | None, helps: str | None) -> str:
    """Return a sentence that names the saved arm, and says whether it is shown to help.

    Args:
        arm: the arm that was saved.
        folders: the folders in which it was saved.
        gain: its mean gain over the unchanged model; None if it has no score.
        helps: the arm that is decided to be better than the unchanged model; None if none is.
    """
    where = f"is in {' and '.join(map(str, folders))}"
    if gain is None:
        return f"The adapted model ({arm}) {where}. It has no score."
    if gain <= 0:
        return f"The unchanged model did as well or better; the adapted model ({arm}) {where}."
    saved = f"The adapted model ({arm}, which has the best mean) {where}."
    if helps is None:
        return f"{saved} Its lead may be due to chance, so keep the unchanged model for now."
    if helps == arm:
        return saved
    return f"{saved} {helps} is shown to help; the lead of {arm} over it may be due to chance."


class Gains(NamedTuple):
    """The mean gain of each arm over the unchanged model, positive if the arm is better.

    The unit is score (between 0 and 1), nats, or SDs: see ``Contrast`` in docs/files.md.
    """

    means: dict[str, float]
    unit: str


def gains_of(out: Path) -> Gains:
    """Return the gain of each arm over the unchanged model; no gains if there are no scores.

    A gain is the mean of paired differences over the seeds for which the runs of all arms are
    finished. With several tasks, the differences are those of standardised scores.
    """
    table = read_outcomes(out)
    # If every fine-tuning run failed, no arm has a score.
    if table is None or not table.tasks or not table.study["arms"]:
        return Gains({}, "")
    outcome = f"plain:{ALL_TASKS}" if len(table.tasks) == 1 else ALL_TASKS
    unit = table.scales[outcome].unit
    arms = np.array(list(table.study["arms"]))
    runs = np.array([table.runs(outcome, arm) for arm in arms])
    finished = np.isfinite(runs).sum(axis=1)
    # Skip arms that lack runs of other arms, because the missing runs may be the worst ones.
    complete = finished == finished.max()
    gains = runs[complete] - table.runs(outcome, REFERENCE)
    shared = np.isfinite(gains).all(axis=0)
    if not shared.any():
        return Gains({}, unit)
    means = gains[:, shared].mean(axis=1)
    return Gains(dict(zip(map(str, arms[complete]), means.tolist())), unit)


def _all_there(folders: Sequence[Path]) -> bool:
    return bool(folders) and all((folder / "model.safetensors").is_file() for folder in folders)


def save_adapted(out: Path, arm: str) -> tuple[int, list[Path]]:
    """Save a checkpoint for two libraries: that of the arm's first finished run.

    Returns:
        The seed of the run, and the folders ``out``/model for transformers and
        ``out``/sentence-model for sentence-transformers.

    Raises:
        MaskwiseError: no finished run of the arm has a checkpoint.
    """
    found = _trained_run(out, arm)
    if found is None:
        study = read_json(out / "study.json") or {}
        runs = study["arms"][arm]["runs"]
        first = runs[min(runs, key=int)]
        raise MaskwiseError(
            f"no run of {arm} has a checkpoint to save",
            got=f"{len(runs)} runs, unfinished or deleted",
            do=f"remove {out / first} and run the same command again, which trains this run again",
        )
    seed, checkpoint = found
    whole = out / "model"
    sentences = out / "sentence-model"
    config = load_config(checkpoint)
    card = (checkpoint / CARD).read_text(encoding="utf-8")
    # Save the tokenizer in both folders, so that each of them can be used alone.
    tokenizer = load_tokenizer(str(checkpoint))

    def fill_whole(folder: Path) -> None:
        load_model(checkpoint, kind=None).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_whole(folder / CARD, card)

    def fill_sentences(folder: Path) -> None:
        load_task_model(checkpoint, config, head="embedding", seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_whole(folder / CARD, SENTENCE_CARD + card.partition("---\n\n")[2])
        length = min(512, most_tokens(config))
        write_sentence_folder(folder, width=config.hidden_size, length=length)

    with without_advice():
        write_folder(whole, fill_whole)
        write_folder(sentences, fill_sentences)
    return seed, [whole, sentences]


def _trained_run(out: Path, arm: str) -> tuple[int, Path] | None:
    """Return the seed and the checkpoint of the first finished run of an arm that still has one."""
    study = read_json(out / "study.json") or {}
    runs = study["arms"][arm]["runs"]
    for seed in sorted(runs, key=int):
        checkpoint = out / runs[seed] / "checkpoint"
        # Users may delete checkpoints to free disk space.
        if checkpoint.is_dir() and (out / runs[seed] / DONE).is_file():
            return int(seed), checkpoint
    return None


def write_sentence_folder(folder: Path, *, width: int, length: int) -> None:
    """Write the configuration files of sentence-transformers for a model with mean pooling."""
    module = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    # Pooling modes that are not named are off.
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False}
    )
    common: Plain = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", common)
