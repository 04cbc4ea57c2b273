"""Test whether further pre-training of an encoder on the user's text helps.

The study reports by how much further training helps, and what it costs. By default it trains one
arm (one way of training), ``words-30``, and compares this arm with the unchanged model. The models
are fine-tuned and evaluated on the user's tasks. Without tasks, they are evaluated by how well they
find the text that belongs to a title. If the model has no head that fills masks, a head is trained
first on the frozen encoder, once for all runs.

    the unchanged model     the model without further training
    words-30                mask 30 % of the tokens in whole words; best in benchmarks/results
    token-15, -30, -40      mask 15 % (the usual ratio), 30 or 40 % of the tokens
    tsdae                   train a decoder to restore the text from a sentence vector
    learned                 mask by a learned policy, whose folder the user gives
    words-30-new-words      the same as words-30, with words of the text as new tokens
    words-30-other-text     the same as words-30, on another text (a control)
    words-30-replay         the same as words-30, with a share of general text in training
"""

from __future__ import annotations

import math
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from maskwise.constants import NATS, REFERENCE
from maskwise.errors import MaskwiseError, duration, require_known
from maskwise.estimates import with_minus
from maskwise.families import most_tokens, require_kind
from maskwise.files import Estimate
from maskwise.folders import (
    CARD,
    read_json,
    require_own,
    write_folder,
    write_json,
    write_whole,
)
from maskwise.jobs import require_one_process
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
from maskwise.recipe.unused import drop_unused
from maskwise.specs import Call, split_options, with_options
from maskwise.study.checks import OWN_FILES, check_names, cut_share, row_sizes
from maskwise.study.forecast import check, dry_run, first_of
from maskwise.study.records import has_results
from maskwise.study.run import run_study
from maskwise.study.stages import DONE
from maskwise.study.starter import (
    ARMS,
    ROW_TOKENS,
    SHORT_ROWS,
    Draft,
    TextFacts,
    arms_for,
    fitting_tokens,
    labelled_length,
    look_at,
    rates_of,
    row_length,
    tokens_of_rows,
    write_pairs,
)
from maskwise.study.timing import Samples
from maskwise.study.together import StudyFolder
from maskwise.study.unread import names_in_study, refuse_unread
from maskwise.tasks import load_task
from maskwise.text import load_tokenizer
from maskwise.text.documents import longest_field
from maskwise.text.settings import CorpusSettings
from maskwise.training.best import best_at
from maskwise.training.parts import parts_of
from maskwise.verdict import statistics
from maskwise.verdict.outcomes import ALL_TASKS, finite_runs, read_outcomes
from maskwise.verdict.statistics import ALPHA

if TYPE_CHECKING:
    from maskwise.jobs import Executor

BEST = "words-30"
PAIRS = "title-to-text"
"""The name of the task that is made from the text if the user gives none."""
RECIPE = "adapt.yaml"
"""The file in the folder of a study with the recipe that was run."""
TIME = "2h"
"""A plan that takes longer is followed by a smaller one."""
STEPS = 600
"""Default number of further training steps, and default maximum of the steps of a new head."""
GENERAL, OFF = "bundled:wikipedia", "none"
"""The general text by default, and what turns it off."""
GENERAL_TEXT, PASSAGES = "general text", "general-text"
"""The names of the measure and of the task on general text."""
OPTIONS: dict[str, str] = {
    "training.steps": "--steps",
    "training.patience": "--patience",
    "training.lengths": "--lengths",
    "study.seeds": "--runs",
}
"""Settings that only an option may change, because an option also changes other settings."""
EVALUATIONS = 20
"""The number of evaluations in all steps of a run that chooses its best state."""
WORD_LOSS = 100
"""Held-out documents on whose words arms with different vocabularies are compared."""
# With fewer steps, further training has little effect.
LEAST_STEPS = 100
SHORT_TUNING, SHORTEST_TUNING = 250, 100
FEW_TEST_ROWS, FEWEST_TEST_ROWS = 300, 100
FEWEST_RUNS = 4
"""Fine-tuning steps, test rows and runs of a study that takes too long even with ``LEAST_STEPS``:
see ``_smaller``."""
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
        self,
        corpus: CorpusSettings,
        target: Path,
        *,
        choose_share: bool,
        aside: Path | None,
        of_verdict: bool,
    ) -> tuple[Path, float]:
        """Return the file of ``write_pairs`` and the share that is held out for it."""
        # The layout of rows does not change the documents, and smaller plans have shorter rows.
        read = corpus.model_dump_json(exclude={"length", "layout", "attention"})
        key = (read, target, choose_share, aside, of_verdict)
        if key not in self._pairs:
            written, how = write_pairs(
                corpus, target, choose_share=choose_share, aside=aside, of_verdict=of_verdict
            )
            self._pairs[key] = (written, how.held_out)
        return self._pairs[key]


@dataclass(frozen=True)
class Request:
    """What a user asks of ``maskwise adapt``.

    Attributes:
        model: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        texts: a corpus, as for ``read_documents``.
        out: the folder of the study.
        tasks: files with labelled rows; if empty, a task of titles and texts is made from documents
            that are held out from training.
        arms: names in ``starter.ARMS``. The first arm is compared with the unchanged model.
        policy: the folder of a learned masking policy, for an additional arm ``learned``.
        new_words: the number of words of the text that become tokens in an additional arm, which is
            compared with the first arm.
        control: another corpus, on which an additional arm is trained in the same way as the first,
            which is compared with it.
        keep: general text, for what the arms forget of it: a corpus, ``OFF`` for none, or None for
            ``GENERAL`` if the text is English.
        replay: the share of general text in the training rows of an additional arm.
        steps: the number of further training steps.
        patience: the number of evaluations without a lower loss of dev documents after which a run
            ends; its best state is then evaluated. None to train all steps.
        lengths: shares of the steps after which training also ends, with a decay of the learning
            rate; each run keeps the length with the lowest loss of dev documents. None for all
            steps only.
        head_steps: the number of steps that train a new head first; None for the smaller of
            ``steps`` and ``STEPS``.
        seeds: the number of runs of each arm, or their seeds.
        overrides: ``key=value`` settings, except those in ``OPTIONS``.
        time: the time limit, such as "2h"; None for ``TIME``, which is not enforced.
        jobs: the number of stages that run in parallel; None for the number of GPUs or cores.
    """

    model: str
    texts: str
    out: Path
    tasks: tuple[str, ...] = ()
    arms: tuple[str, ...] = (BEST,)
    policy: str | None = None
    new_words: int | None = None
    control: str | None = None
    keep: str | None = None
    replay: float | None = None
    steps: int = STEPS
    patience: int | None = None
    lengths: tuple[float, ...] | None = None
    head_steps: int | None = None
    seeds: int | tuple[int, ...] = 6
    overrides: tuple[str, ...] = ()
    time: str | None = None
    jobs: int | None = None

    @property
    def chooses(self) -> bool:
        """Whether each run chooses its weights on held-out documents."""
        return self.patience is not None or self.lengths is not None

    @property
    def extended(self) -> str | None:
        """The name of the arm with new words; None without it."""
        return None if self.new_words is None else f"{self.arms[0]}{NEW_WORDS}"

    @property
    def controlled(self) -> str | None:
        """The name of the arm that is trained on other text; None without it."""
        return None if self.control is None else f"{self.arms[0]}{OTHER_TEXT}"

    @property
    def replayed(self) -> str | None:
        """The name of the arm that is also trained on general text; None without it."""
        return None if self.replay is None else f"{self.arms[0]}-replay"

    @property
    def least_runs(self) -> int:
        """The least number of runs of each arm with which every question can be decided."""
        return fewest_runs(self.new_words, self.control)

    @property
    def seconds(self) -> float:
        """The time limit in seconds."""
        return time_limit(TIME if self.time is None else self.time)

    def first_seeds(self, count: int) -> Request:
        """Keep at most ``count`` runs of each arm."""
        if isinstance(self.seeds, int):
            return replace(self, seeds=min(count, self.seeds))
        return replace(self, seeds=self.seeds[:count])

    def set_to(self, **settings: object) -> Request:
        """Add overrides; dots in the keys are written as two underscores."""
        more = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        return replace(self, overrides=(*self.overrides, *more))

    def command(self, *overrides: str, **changes: Any) -> str:
        """Return the command line of this request, with more overrides and changed attributes."""
        asked = replace(self, **changes)
        words = ["maskwise", "adapt", asked.model, asked.texts, *asked.overrides, *overrides]
        for task in asked.tasks:
            words += ["--task", task]
        usual = {field.name: field.default for field in fields(Request)}
        usual["seeds"] = asked.least_runs
        for name in (
            "arms",
            "policy",
            "new_words",
            "control",
            "keep",
            "replay",
            "steps",
            "patience",
            "lengths",
            "head_steps",
            "seeds",
            "time",
            "jobs",
            "out",
        ):
            value = getattr(asked, name)
            if value == usual[name]:
                continue
            option = name.replace("_", "-")
            if name in ("arms", "lengths"):
                value = ",".join(map(str, value))
            elif name == "seeds" and isinstance(value, int):
                option = "runs"
            elif name == "seeds":
                value = _seeds_words(value)
            words += [f"--{option}", str(value)]
        return shlex.join(words)


def fewest_runs(new_words: int | None, control: object = None) -> int:
    """Return the default number of runs: the least that can decide every question.

    Questions that are tested one after the other do not lower each other's level. New words do not
    depend on the answer to another question, so all questions are then one family.
    """
    questions = 1
    if new_words is not None:
        questions = 2 if control is None else 3
    return statistics.fewest_runs(ALPHA / questions)


def _seeds_words(seeds: Sequence[int]) -> str:
    """Return seeds as the option ``--seeds`` has them, such as 6-35 or 3,9."""
    first, last = seeds[0], seeds[-1]
    # A single number would be the former spelling of --runs.
    if [*seeds] == [*range(first, last + 1)]:
        return f"{first}-{last}"
    return ",".join(map(str, seeds))


def draft_of(
    request: Request, *, texts: Texts | None = None, pairs: Path | None = None, aside: Path | None
) -> Draft:
    """Make the recipe of the study.

    Args:
        texts: what was read of the text; by default, nothing.
        pairs, aside: the arguments ``target`` and ``aside`` of ``write_pairs``.

    Raises:
        MaskwiseError: the input is invalid, or there are neither tasks nor titles.
    """
    texts = texts or Texts(request.texts)
    overrides = request.overrides
    for key, _ in map(parse_override, overrides):
        if key in OPTIONS:
            raise MaskwiseError(f"adapt has an option for {key}", do=f"use {OPTIONS[key]}")
        if key == "corpus.tokens":
            raise MaskwiseError(
                "adapt needs texts, and corpus.tokens is for token ids",
                do="give texts, or write a recipe with corpus.tokens and run maskwise study",
            )
    config = load_config(request.model, kind=None)
    do = "use the recipe intermediate, whose first lines explain how (maskwise list recipes)"
    require_kind(config, "encoder", use="maskwise adapt", do=do)
    for name in request.arms:
        require_known("arm", name, ARMS)
    for option, source in (("control", request.control), ("keep", request.keep)):
        if source == request.texts:
            raise MaskwiseError(
                f"--{option} is the text itself", got=source, do=f"give another text to --{option}"
            )
    if request.replay is not None and not 0 < request.replay < 1:
        raise MaskwiseError(
            "--replay is the share of general text in the training rows",
            got=request.replay,
            allowed="above 0 and below 1, such as 0.2",
        )
    room = most_tokens(config)
    # How much general text is held out is not known yet, so the example has none of it.
    others = OtherTexts(control=_source(request.control), general={})
    given = _source(_given(request.keep))
    # To read the text takes long, so mistakes elsewhere are found first. What the text decides is
    # filled in with examples.
    corpus: Plain = {"source": request.texts, "length": min(ROW_TOKENS, room)}
    if request.chooses:
        # The documents that choose and those that judge are each as many as usual.
        corpus["held_out"] = 2 * CorpusSettings.model_fields["held_out"].default
    known = [load_task(spec) for spec in request.tasks]
    if not request.tasks and pairs is None:
        raise MaskwiseError("there is no task to evaluate on", do="give --task FILE")
    tasks = request.tasks or (PAIRS,)
    example = _draft(
        request,
        corpus,
        tasks,
        overrides,
        spaced=True,
        max_length=labelled_length(0, room),
        others=others,
    )
    check_names(example.recipe, known)
    facts = texts.facts
    corpus["length"] = row_length(facts, least=ROW_TOKENS, room=room)
    corpus["text_field"] = facts.text_field
    if not request.tasks:
        assert pairs is not None
        # The pairs come from documents that are held out, by the rule that the training text uses.
        read = _with_changes(corpus, overrides)
        chosen = all(key != "corpus.held_out" for key, _ in map(parse_override, overrides))
        pairs, share = texts.pairs(
            read,
            pairs,
            choose_share=chosen,
            aside=aside,
            of_verdict=request.chooses,
        )
        corpus["held_out"] = share
        tasks = (with_options(str(pairs), kind="retrieval", name=PAIRS),)
    sizes = tokens_of_rows(map(load_task, tasks), load_tokenizer(request.model))
    general = _general(request, facts)
    others = replace(others, general=given or _source(general))
    if request.replay is not None:
        _require_mixed(others.general, _with_changes(corpus, overrides))
    if general and not has_head(request.model):
        pairs = _general_pairs(request, texts, others, corpus, aside=aside)
        others = replace(others, pairs=with_options(str(pairs), kind="retrieval", name=PASSAGES))
    drafted = partial(
        _draft,
        request,
        corpus,
        tasks,
        spaced=facts.spaced,
        max_length=labelled_length(fitting_tokens(sizes), room),
        others=others,
    )
    draft = drafted(overrides)
    refuse_unread(
        draft.recipe,
        overrides,
        read=lambda changes: drafted(changes).recipe,
        names=names_in_study,
        command="adapt",
    )
    return draft


@dataclass(frozen=True)
class OtherTexts:
    """The texts of a study besides the user's.

    Attributes:
        control: the settings of the corpus of the control; {} without a control.
        general: those of general text; {} without it.
        pairs: the spec of a task of titles and general texts, for a model without a head.
    """

    control: Plain
    general: Plain
    pairs: str | None = None


def _source(source: str | None) -> Plain:
    """Return the settings of a corpus besides the user's text."""
    return {} if source is None else {"source": source, "text_field": longest_field(source)}


def _given(keep: str | None) -> str | None:
    """Return the general text that the user gives; None for none."""
    return None if keep == OFF else keep


def _general(request: Request, facts: TextFacts) -> str | None:
    """Return the source of general text; None for none."""
    if request.keep is not None:
        general = _given(request.keep)
    else:
        is_english = facts.spaced and facts.is_english
        general = GENERAL if is_english and request.texts != GENERAL else None
    if general is None and request.replay is not None:
        raise MaskwiseError(
            "--replay mixes general text into the training rows, and there is none",
            got=request.keep or "a text that is not known to be English",
            do="give general text: --keep FILE",
        )
    return general


def _require_mixed(general: Plain, corpus: CorpusSettings) -> None:
    """Raise an error if two texts have different fields, because a mix reads one field."""
    if general["text_field"] != corpus.text_field:
        raise MaskwiseError(
            "the text and the general text of --replay have different fields",
            got=f"{corpus.text_field} and {general['text_field']}",
            do=f"rename the field of your text to {general['text_field']}",
        )


def _unseen(request: Request, others: OtherTexts, corpus: Plain) -> float:
    """Return the share of general text that no arm trains on; 0 if none trains on this text."""
    trained = [others.control.get("source")]
    if request.replay is not None:
        trained.append(others.general["source"])
    if others.general["source"] not in trained:
        return 0.0
    return _with_changes(corpus, request.overrides).held_out


def _general_pairs(
    request: Request, texts: Texts, others: OtherTexts, corpus: Plain, *, aside: Path | None
) -> Path:
    """Write pairs of titles and general texts that no arm trains on."""
    share = _unseen(request, others, corpus)
    settings = dict(others.general)
    if share:
        settings["held_out"] = share
    target = request.out.with_name(f"{request.out.name}-{PASSAGES}.jsonl")
    try:
        pairs, _ = texts.pairs(
            CorpusSettings(**settings),
            target,
            choose_share=not share,
            aside=aside,
            of_verdict=share > 0 and request.chooses,
        )
    except MaskwiseError as error:
        raise MaskwiseError(
            "general text shows what a model without a head forgets by pairs of titles and texts, "
            "and there are too few of them",
            got=error.got,
            allowed=error.allowed,
            do="give more general text, or --keep none",
        ) from None
    return pairs


def _draft(
    request: Request,
    corpus: Plain,
    tasks: Sequence[str],
    overrides: Sequence[str],
    *,
    spaced: bool,
    max_length: int,
    others: OtherTexts,
) -> Draft:
    """Return the recipe for a text, after something is known about it."""
    arms = arms_for(request.arms, spaced=spaced)
    if request.policy:
        arms["learned"] = {"masking.policy": f"learned({request.policy!r})", "masking.ratio": 0.30}
    contrast = [request.arms[0], REFERENCE]
    every = max(1, request.steps // 4)
    settings: Plain = {
        "description": f"Does further training on {request.texts} help {request.model}?",
        "corpus": dict(corpus),
        "model": {"pretrained": request.model},
        "masking": {"corruption": "mask-only"},
        "training": {
            "steps": request.steps,
            "batch_size": 16,
            **rates_of(weights_of(load_config(request.model, kind=None))),
            "eval_every": every,
            "save_every": every,
        },
        "evaluation": {"rows": 128, "ratios": [0.15]},
        "tasks": list(tasks),
        "finetune": {"seeds": 1, "max_length": max_length},
        "study": {
            "seeds": request.seeds if isinstance(request.seeds, int) else [*request.seeds],
            "contrasts": [contrast],
            # A gate ignores a search. The unchanged model has no settings to search.
            "gate": contrast,
        },
    }
    if request.patience is not None:
        settings["training"]["eval_every"] = max(1, request.steps // EVALUATIONS)
        settings["training"]["patience"] = request.patience
    if request.lengths is not None:
        settings["training"] |= {"decay": "wsd", "lengths": [*request.lengths]}
    if settings["corpus"].get("text_field") == "text":
        del settings["corpus"]["text_field"]
    if not has_head(request.model):
        # The seed of this phase is fixed, so the head is trained once for all arms and seeds.
        head: Plain = {
            "freeze": "encoder",
            "steps": request.head_steps or min(STEPS, request.steps),
            "optimizer": "muon",
            "seed": 0,
        }
        if request.patience is not None:
            head["patience"] = None
        if request.lengths is not None:
            head |= {"decay": "linear", "lengths": None}
        # The search of benchmarks/recipes/continual-minilm.yaml chose these learning rates.
        head |= {"learning_rate": 1e-2, "muon_learning_rate": 2e-2}
        settings["phases"] = [{"training": head}, {}]
    # Further training is the last phase. A new head is the same for all arms.
    last = "" if has_head(request.model) else "phases.1."
    arms = {
        name: {f"{last}{key}": value for key, value in arm.items()} for name, arm in arms.items()
    }
    first = request.arms[0]
    if request.controlled:
        arm = {**arms[first], f"{last}corpus.source": others.control["source"]}
        if others.control["text_field"] != _with_changes(corpus, overrides).text_field:
            arm[f"{last}corpus.text_field"] = others.control["text_field"]
        arms[request.controlled] = arm
        # The gate is the first of the two tests, and each has the full level.
        settings["study"]["contrasts"].append([first, request.controlled])
    if request.replayed and others.general:
        share = request.replay or 0.0
        mix = {request.texts: round(1 - share, 6), others.general["source"]: share}
        arms[request.replayed] = {**arms[first], f"{last}corpus.source": mix}
    if others.pairs:
        settings["tasks"].append(others.pairs)
        settings["study"]["secondary"] = [PASSAGES]
    elif others.general:
        settings["evaluation"]["measures"] = [_measure(request, others, corpus)]
    if request.extended:
        arms[request.extended] = {**arms[first], "model.new_tokens": request.new_words}
        # Whether new words help does not depend on another answer, so the questions are one family.
        settings["study"]["contrasts"].append([request.extended, first])
        del settings["study"]["gate"]
        settings["evaluation"]["word_loss"] = WORD_LOSS
    settings["study"]["arms"] = arms
    apply_overrides(settings, overrides)
    # The user may have replaced the tasks.
    if others.pairs and others.pairs not in (settings["tasks"] or ()):
        settings["study"].pop("secondary", None)
    settings = {**nested(settings), "study": settings["study"]}
    drop_unused(settings, dict(map(parse_override, overrides)))
    comments = {key: text.format(least=request.least_runs) for key, text in COMMENTS.items()}
    if tasks != request.tasks:
        comments["tasks"] = "titles and texts of documents that are held out from training"
    if "measures" in settings["evaluation"]:
        comments["evaluation"] = "the measure: what the arms forget of general text"
    head_lines = [
        f"Does further training of {request.model} on {request.texts} help?",
        "Written by `maskwise adapt`, which runs it. To change it: "
        f"maskwise study {shlex.quote(str(request.out / RECIPE))} training.steps=1000 --out "
        "ANOTHER_FOLDER",
    ]
    draft = Draft("adapt", settings, comments, head_lines)
    new_head = _new_head(draft.recipe)
    if new_head:
        described = f"{settings['description']} It starts with {new_head}."
        draft = replace(draft, settings={**settings, "description": described})
    return draft


COMMENTS = {
    "corpus": "your text; tokens per row",
    "model": "the unchanged model, with which the arms are compared",
    "training": "the learning rates depend on the size of the model",
    "phases": "a new head is trained first on the frozen encoder, once for all runs",
    "tasks": "all models are fine-tuned and evaluated on these rows",
    "finetune": "long enough for nearly all labelled rows, as far as the model has positions",
    "study.secondary": "not part of the verdict: what the arms forget of general text",
    "study.seeds": "runs of each arm; a decision needs at least {least}",
    "study.contrasts": "the question: is the arm better than the unchanged model?",
    "study.gate": "tested first, at the full 5 % level; a second contrast only if it is decided",
    "study.arms": "ways to train further",
}


def _measure(request: Request, others: OtherTexts, corpus: Plain) -> str:
    """Return the measure of the loss on general text that no arm trains on."""
    options: dict[str, object] = {"name": GENERAL_TEXT}
    if others.general["text_field"] != "text":
        options["text_field"] = others.general["text_field"]
    share = _unseen(request, others, corpus)
    if share:
        options["held_out"] = share
        if request.chooses:
            options["of_verdict"] = True
    return str(Call("text-loss", (others.general["source"],), options))


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


def cut_rows(recipe: Recipe) -> dict[str, float]:
    """Return the share of truncated rows among the labelled rows of each task."""
    tokenizer = load_tokenizer(recipe.tokenizer_name or "")
    shares = {}
    for spec in recipe.tasks:
        task = load_task(spec)
        shares[task.name] = cut_share(row_sizes(task, tokenizer), recipe.finetune.max_length)
    return shares


# The study
# ------------------------------------------------------------------------------------------------


class Adaptation:
    """The study of a request.

    Use it as a context manager, because it keeps files in a temporary folder.

    Args:
        request: what the user asks.
        dry_run: whether the study will be planned only, so that no file is written.

    Raises:
        MaskwiseError: the request is invalid.
    """

    def __init__(self, request: Request, *, dry_run: bool = False):
        require_one_process("a study")
        self.request = request
        require_own(request.out, *OWN_FILES, what="a study")
        self._seconds = request.seconds
        # A study in the folder may need its own pairs, so others are written to another folder.
        self._used = has_results(request.out)
        self._aside = dry_run or self._used
        self._texts = Texts(request.texts)
        self._folder = tempfile.TemporaryDirectory(prefix="maskwise-")

    def __enter__(self) -> Adaptation:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @cached_property
    def draft(self) -> Draft:
        """The recipe that is run, with comments."""
        return self._draft_of(self.request)

    def _draft_of(self, request: Request) -> Draft:
        out = self.request.out
        return draft_of(
            request,
            texts=self._texts,
            pairs=out.parent / f"{out.name}-pairs.jsonl",
            aside=Path(self._folder.name) if self._aside else None,
        )

    def plan(self, *, tell: Callable[[str], object] = lambda line: None, **asked: Any) -> Plain:
        """Return the plan of the study, and a smaller one if it exceeds the time limit.

        Args:
            tell: called with a line if the search for a smaller plan begins.
            asked: further arguments of ``forecast.check``, such as ``detect``.

        Returns:
            The record of ``forecast.check``; ``max_length``; ``cut``: the share of truncated rows
            by task; ``held_out``: the share of documents that are held out; ``made_task``: the
            task that is made of them, or None. ``smaller``: a smaller plan with its ``command``,
            ``seconds`` and ``contrasts``, and whether it ``fits``.
        """
        request = self.request
        recipe = self.draft.recipe
        samples = Samples(first_of(recipe), Path(self._folder.name))
        plan = check(recipe, out=request.out, jobs=request.jobs, samples=samples, **asked)
        plan["max_length"] = recipe.finetune.max_length
        plan["cut"] = cut_rows(recipe)
        plan["held_out"] = recipe.corpus.held_out
        plan["made_task"] = None if request.tasks else PAIRS
        if (plan["seconds"] or 0.0) <= self._seconds:
            return plan
        tell("Looking for a smaller plan …")
        # A smaller plan is a different study, which needs a folder of its own.
        out = request.out
        if self._used:
            out = out.with_name(f"{out.name}-smaller")
        plans: dict[Request, Plain] = {}

        def seconds_of(smaller: Request) -> float:
            if smaller not in plans:
                changed = self._draft_of(smaller).recipe
                plans[smaller] = dry_run(changed, out, jobs=request.jobs, samples=samples)
            return plans[smaller]["seconds"] or math.inf

        smaller, fits = smaller_plan(recipe, request, seconds_of, self._seconds)
        seconds = seconds_of(smaller)
        options: dict[str, Any] = {"out": out}
        if not fits:
            options["time"] = f"{math.ceil(seconds / 60) + 1}m"
        plan["smaller"] = {
            "steps": smaller.steps,
            "seeds": smaller.seeds,
            "tasks": smaller.tasks,
            "overrides": smaller.overrides[len(request.overrides) :],
            "seconds": seconds,
            "fits": fits,
            "contrasts": plans[smaller]["contrasts"],
            "command": smaller.command(**options),
        }
        return plan

    def require_time(self, plan: Plain) -> None:
        """Raise ``MaskwiseError`` if a plan takes longer than the limit that the user gave."""
        if self.request.time is None or "smaller" not in plan:
            return
        do = "allow more time, or remove --time"
        if plan["smaller"]["fits"]:
            do = "use the smaller plan, or remove --time"
        raise MaskwiseError(
            "the study takes longer than --time",
            got=duration(plan["seconds"]),
            allowed=self.request.time,
            do=do,
        )

    def run(self, executor: Executor | None = None) -> Plain:
        """Write the recipe, run the study, and save the adapted model.

        Args:
            executor: as for ``run_study``.

        Returns:
            The result of ``run_study``, and ``answer``, ``forgotten`` (a list of ``Forgotten``),
            ``next`` (what to do next), ``adapted`` (``Saved``, or None), ``kept`` (a sentence about
            it), ``folders``, ``helps`` (the arm that is decided to be better, or None) and
            ``held_out``.
        """
        from maskwise.report import write_report

        request = self.request
        recipe = self.draft.recipe
        result = run_study(
            recipe,
            request.out,
            jobs=request.jobs,
            executor=executor,
            files={RECIPE: self.draft.text},
        )
        next_step = next_of(result, recipe, request)
        saved = None
        kept = "No run has finished, so there is no adapted model."
        # Other processes that run this study save the same model.
        with StudyFolder(request.out).alone():
            try:
                saved = save_best(request.out, result, next_step=next_step)
            except MaskwiseError as error:
                # The user may have deleted the checkpoints. The answer does not need them.
                kept = f"There is no adapted model: {error}."
            if saved:
                kept = saved["sentence"]
            # The page names the folders of the adapted model and the next step.
            write_report(request.out)
        return result | {
            **answers(request.out, result, recipe),
            "next": next_step,
            "adapted": saved,
            "folders": saved["folders"] if saved else [],
            "kept": kept,
            "held_out": recipe.corpus.held_out,
        }


def time_limit(text: str) -> float:
    """Convert a duration such as 2h, 90m or 1h30m to seconds; a bare number means minutes."""
    import pandas as pd

    try:
        seconds = pd.Timedelta(f"{text}m" if text.isdecimal() else text).total_seconds()
    except ValueError:
        seconds = 0.0
    # Written with ``not``, this also rejects NaT, for which all comparisons are false.
    if not seconds >= 60:
        raise MaskwiseError(
            "--time must be a duration",
            got=repr(text),
            allowed="a minute or more, such as 2h, 90m or 1h30m",
        )
    return seconds


def smaller_plan(
    recipe: Recipe,
    request: Request,
    seconds_of: Callable[[Request], float],
    limit_seconds: float,
) -> tuple[Request, bool]:
    """Find a smaller request with which a study finishes within a time limit.

    First, the steps are reduced. If this is not enough, the study also gets shorter fine-tuning,
    fewer test rows, shorter rows and fewer runs, one after the other.

    Args:
        recipe: the recipe that takes too long.
        request: its request.
        seconds_of: a function that forecasts a study's seconds.

    Returns:
        The request, and whether it keeps the limit. If even the smallest study does not, its
        request is returned.
    """
    least = min(LEAST_STEPS, request.steps)
    for smaller in _smaller(recipe, request):
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


def _smaller(recipe: Recipe, request: Request) -> Iterator[Request]:
    """Yield smaller and smaller requests, with the same number of steps."""
    tuning = recipe.finetune
    tested = [arm for arm in recipe.study.arms if arm in chain.from_iterable(recipe.study.pairs)]
    if len(tested) < len(recipe.study.arms):
        request = request.set_to(study__arms=",".join(tested))
    yield request
    if len(recipe.study.seed_list) > request.least_runs:
        request = request.first_seeds(request.least_runs)
        yield request
    # Embeddings of a frozen encoder are computed once, so they take no time that matters.
    trained = any(not load_task(task).frozen for task in request.tasks)
    if trained and (tuning.steps or math.inf) > SHORT_TUNING:
        request = request.set_to(finetune__steps=SHORT_TUNING)
        yield request
    fewer = _with_test_rows(request, FEW_TEST_ROWS)
    if fewer != request:
        request = fewer
        yield request
    shorter = request
    if trained and tuning.max_length > ROW_TOKENS:
        shorter = shorter.set_to(finetune__max_length=ROW_TOKENS)
    if recipe.corpus.length > SHORT_ROWS:
        shorter = shorter.set_to(corpus__length=SHORT_ROWS)
    if shorter != request:
        request = shorter
        yield request
    smallest = _with_test_rows(request, FEWEST_TEST_ROWS)
    if trained and (tuning.steps or math.inf) > SHORTEST_TUNING:
        smallest = smallest.set_to(finetune__steps=SHORTEST_TUNING)
    if smallest != request:
        request = smallest
        yield request
    # Too few to decide, but enough for an estimate.
    if len(recipe.study.seed_list) > FEWEST_RUNS:
        yield request.first_seeds(FEWEST_RUNS)


def _with_test_rows(request: Request, count: int) -> Request:
    """Limit the test rows and the dev rows of the tasks, unless the user has limited them."""
    limited = []
    for spec in request.tasks:
        splits = load_task(spec).splits
        if len(splits["test"]) > count or len(splits["dev"]) > count:
            name, written = split_options(spec)
            # A previous, higher limit is replaced.
            kept = re.sub(r"(^|, )test_rows=\d+$", "", written or "")
            spec = with_options(f"{name}({kept})" if kept else name, test_rows=count)
        limited.append(spec)
    return replace(request, tasks=tuple(limited))


# The answer
# ------------------------------------------------------------------------------------------------


ANSWERS = {
    ("decided", "arm"): "Yes, further training helps.",
    ("decided", "baseline"): "No, further training hurts.",
    ("no difference that matters", None): "No, it makes no difference that matters.",
}


TEXT_ANSWERS = {
    ("decided", "arm"): "It was your text:",
    ("decided", "baseline"): "The other text is better than yours:",
    ("no difference that matters", None): "Your text makes no difference that matters:",
}
"""What is said about the contrast between the text and a control."""
NO_CONTROL = (
    "This does not show that your text was needed: the same training on other text may help as "
    "much (--control TEXT tests it)."
)
NEW_WORDS = "-new-words"
OTHER_TEXT = "-other-text"
"""The end of the name of an arm that is trained on other text."""


def answers(out: Path, result: Plain, recipe: Recipe) -> Plain:
    """Return what a finished adaptation says: ``answer``, ``helps`` and ``forgotten``.

    Args:
        out: the folder of the study.
        result: its summary, with ``seconds`` and, if runs choose their weights, ``best``.
        recipe: its recipe.
    """
    forgotten = forgotten_of(out)
    return {
        "answer": f"{answer_of(result, recipe)} {forgotten_words(forgotten)}".rstrip(),
        "helps": arm_that_helps(result),
        "forgotten": forgotten,
    }


def answer_of(result: Plain, recipe: Recipe) -> str:
    """Return the answer in words: whether further training helps, how much, and at what cost."""
    row = _primary(result)
    if row is None:
        return "Nothing was compared."
    found = ""
    if row["arm"] in result.get("best", ()):
        found = f"{row['arm']} was {best_at(**result['best'][row['arm']])}"
    if row["verdict"] == "not comparable":
        return f"{row['sentence']} {found and f'{found}.'}".rstrip()
    answer = ANSWERS.get((row["verdict"], row["better"]), "These runs cannot tell:")
    training = recipe.arm(row["arm"], seed=0).links()[-1].training
    steps = training.steps
    cost = f"Training takes {steps:,} steps per run"
    if training.lengths is not None:
        more = sum(part.steps for part in parts_of(training)) - steps
        cost += f" and {more:,} for decays at shorter lengths"
        cost += f", and {found}" if found else ""
    elif found:
        cost = f"Training takes at most {steps:,} steps per run, and {found}"
    head = _new_head(recipe)
    if head:
        cost += f" and starts with {head}, once for all runs"
    # The first words of the answer say already that the result is open.
    sentence = row["sentence"].removeprefix("Open: ")
    said = f"{answer} {sentence} {cost}; the study took {duration(result['seconds'])}."
    for flag in row.get("flags", ()):
        if flag["code"] == "overlap" and not flag["facts"].get("minor"):
            said += f" But {flag['sentence']}: the arms may have memorised them."
    for other in result["contrasts"]:
        if other["primary"] and other["arm"] == f"{row['arm']}{NEW_WORDS}":
            said += f" New words: {other['sentence']}"
    return f"{said} {_whose_text(result, row)}".rstrip()


def _whose_text(result: Plain, row: Plain) -> str:
    """Return what is known about the question whether the text itself helped.

    Args:
        row: the contrast with the unchanged model.
    """
    for other in result["contrasts"]:
        if not other["primary"] or other.get("baseline") != f"{row['arm']}{OTHER_TEXT}":
            continue
        if any(flag["code"] == "gate-closed" for flag in other["flags"]):
            return "Whether it is your text was not tested, because no help is shown."
        said = TEXT_ANSWERS.get((other["verdict"], other["better"]))
        if said is None:
            said = "Whether it is your text, these runs cannot tell:"
        return f"{said} {other['sentence'].removeprefix('Open: ')}"
    return NO_CONTROL if (row["verdict"], row["better"]) == ("decided", "arm") else ""


def next_of(result: Plain, recipe: Recipe, request: Request) -> str:
    """Return advice on what to do next, with a complete command."""
    row = _primary(result)
    model = request.model
    if result["failures"] or row is None:
        again = request.command()
        return f"Next: fix the errors, then repeat the failed work by this command: {again}"
    verdict = row["verdict"]
    least = request.least_runs
    if verdict == "open" and row["n"] < least:
        used = recipe.study.seed_list
        more = (*used, *range(max(used) + 1, max(used) + 1 + least - len(used)))
        enough = request.command(seeds=len(more) if more == (*range(len(more)),) else more)
        return f"Next: add runs, because a decision needs at least {least}: {enough}"
    if verdict in ("decided", "no difference that matters"):
        keep = f"keep {model}"
        if arm_that_helps(result):
            model = str(request.out / "model")
            keep = f"use {model} in place of {request.model}"
        if not request.tasks:
            return f"Next: {keep}."
        words = ["maskwise", "finetune", model]
        for task in request.tasks:
            words += ["--task", task]
        return f"Next: {keep}: {shlex.join(words)}"
    changes = []
    # The new study writes to a new folder, so the results of this study are kept.
    options: dict[str, Any] = {"out": request.out.with_name(f"{request.out.name}-2")}
    if verdict == "not comparable" and request.tasks:
        why = "fine-tuning learned nothing; try other learning rates"
        changes.append("finetune.search_rate=true")
    elif row["runs_to_decide"]:
        # The study gets new seeds: to test the same runs again would inflate the error rate.
        first = max(recipe.study.seed_list) + 1
        why = "a study with more runs would decide, if the difference is as large as it looks"
        options["seeds"] = (*range(first, first + row["runs_to_decide"]),)
    else:
        why = "more runs would not decide this, but more steps may"
        options["steps"] = 2 * recipe.training.steps
    return f"Next: keep {model} for now; {why}: {request.command(*changes, **options)}"


class Forgotten(TypedDict):
    """What an arm forgot of general text, against the start (not tested).

    ``mean``, ``low`` and ``high`` are the paired difference in ``unit`` and its 95 % interval: nats
    of the loss, or points of the mean reciprocal rank. The interval is None below six runs.
    ``finding`` compares the interval with ``margin``: "more", "less" (between ± the margin),
    "better" or "open".
    """

    arm: str
    outcome: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    runs: int
    margin: float
    finding: str


MARGINS = {NATS: 0.05, "points": 2.0}
"""Changes on general text that are small. A loss .05 nats higher is a perplexity 5 % higher."""
FINDINGS = {
    "more": "more than {margin} forgotten",
    "less": "less than {margin} either way",
    "better": "more than {margin} gained",
    "open": "more or less than {margin} is open",
}


def forgotten_of(out: Path) -> list[Forgotten]:
    """Return what each arm forgot of general text; [] if it was not measured."""
    table = read_outcomes(out)
    start = table.start if table else None
    if table is None or start is None:
        return []
    found: list[Forgotten] = []
    for outcome in (f"evaluation:{GENERAL_TEXT}:{NATS}", PASSAGES):
        if outcome not in table.scales:
            continue
        scale = table.scales[outcome]
        unit, factor = (NATS, 1.0) if scale.unit == NATS else ("points", 100.0)
        for arm in table.study["arms"]:
            runs = table.runs(outcome, arm) - table.runs(outcome, start)
            differences = factor * finite_runs(runs)
            if not len(differences) or table.incomparable(arm, start, outcome):
                continue
            estimate = statistics.estimated(differences)
            found.append(
                {
                    "arm": arm,
                    "outcome": outcome,
                    "unit": unit,
                    "mean": float(differences.mean()),
                    "low": estimate["low"],
                    "high": estimate["high"],
                    "runs": len(differences),
                    "margin": MARGINS[unit],
                    "finding": _finding(estimate, MARGINS[unit], sign=scale.sign),
                }
            )
    return found


def _finding(estimate: Estimate, margin: float, *, sign: int) -> str:
    """Compare an interval with a margin; ``sign`` is −1 if lower is better."""
    if estimate["low"] is None or estimate["high"] is None:
        return "open"
    low, high = sorted([sign * estimate["low"], sign * estimate["high"]])
    if high < -margin:
        return "more"
    if low > margin:
        return "better"
    return "less" if -margin < low and high < margin else "open"


def forgotten_words(found: Sequence[Forgotten]) -> str:
    """Return a sentence about general text; "" if it was not measured."""
    parts = []
    for each in found:
        unit = each["unit"]
        digits = 3 if unit == NATS else 1
        interval = "too few runs for an interval"
        if each["low"] is not None:
            ends = f"{each['low']:+.{digits}f} to {each['high']:+.{digits}f}"
            said = FINDINGS[each["finding"]].format(margin=f"{each['margin']:g} {unit}")
            interval = f"95 % interval {ends}: {said}"
        change = with_minus(f"{each['mean']:+.{digits}f} {unit} ({interval})")
        parts.append(f"{each['arm']} {change}")
    if not parts:
        return ""
    what = "loss" if found[0]["unit"] == NATS else "retrieval"
    said = "; ".join(parts)
    return f"General text, {what} against the start (an estimate, not tested): {said}."


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
    ``forgotten`` says what was forgotten of general text (``forgotten_words``).
    ``sentence`` says all of this, and ``next`` what to do next.
    """

    arm: str
    seed: int
    helps: bool
    mean_difference: float | None
    unit: str | None
    folders: list[str]
    sentence: str
    forgotten: str
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
    study = read_json(out / "study.json") or {}
    # The model of a control is trained on other text than the user's.
    arms = [arm for arm in study.get("arms", ()) if not arm.endswith(OTHER_TEXT)]
    gains = {arm: gain for arm, gain in gains.items() if arm in arms}
    if gains:
        arm = max(gains, key=gains.__getitem__)
    else:
        trained = [arm for arm in arms if trained_run(out, arm) is not None]
        if not trained:
            return None
        arm = trained[0]
    saved_before = read_json(out / ADAPTED) or {}
    folders = list(map(Path, saved_before.get("folders", ())))
    # Users may delete checkpoints to free disk space. The model that was saved is then kept.
    if trained_run(out, arm) is None and saved_before.get("arm") == arm and _all_there(folders):
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
        "forgotten": forgotten_words(forgotten_of(out)),
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
    if table is None or not table.averaged or not table.study["arms"]:
        return Gains({}, "")
    outcome = f"plain:{ALL_TASKS}" if len(table.averaged) == 1 else ALL_TASKS
    unit = table.scales[outcome].unit
    arms, runs = table.complete_runs(outcome)
    gains = runs - table.runs(outcome, table.start)
    shared = np.isfinite(gains).all(axis=0)
    if not shared.any():
        return Gains({}, unit)
    means = gains[:, shared].mean(axis=1)
    return Gains(dict(zip(arms, means.tolist())), unit)


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
    seed, checkpoint = needed_run(out, arm)
    whole = out / "model"
    sentences = out / "sentence-model"
    config = load_config(checkpoint)
    card = (checkpoint / CARD).read_text(encoding="utf-8")
    # The tokenizer is saved in both folders, so that each of them can be used alone.
    tokenizer = load_tokenizer(str(checkpoint))

    def fill_sentences(folder: Path) -> None:
        load_task_model(checkpoint, config, head="embedding", seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_whole(folder / CARD, SENTENCE_CARD + card.partition("---\n\n")[2])
        length = min(512, most_tokens(config))
        write_sentence_folder(folder, width=config.hidden_size, length=length)

    save_model(checkpoint, whole)
    with without_advice():
        write_folder(sentences, fill_sentences)
    return seed, [whole, sentences]


def save_model(checkpoint: Path, folder: Path) -> None:
    """Save a checkpoint with its tokenizer and card in a folder for transformers."""
    tokenizer = load_tokenizer(str(checkpoint))
    card = (checkpoint / CARD).read_text(encoding="utf-8")

    def fill(part: Path) -> None:
        load_model(checkpoint, kind=None).save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_whole(part / CARD, card)

    with without_advice():
        write_folder(folder, fill)


def needed_run(out: Path, arm: str) -> tuple[int, Path]:
    """Return the seed and the checkpoint of the first finished run of an arm.

    Raises:
        MaskwiseError: no finished run of the arm has a checkpoint.
    """
    found = trained_run(out, arm)
    if found is not None:
        return found
    study = read_json(out / "study.json") or {}
    runs = study["arms"][arm]["runs"]
    do = "run the study to its end"
    if runs:
        first = runs[min(runs, key=int)]
        do = f"remove {out / first} and run the same command again, which trains this run again"
    raise MaskwiseError(
        f"no run of {arm} has a checkpoint to save",
        got=f"{len(runs)} runs, unfinished or deleted",
        do=do,
    )


def trained_run(out: Path, arm: str) -> tuple[int, Path] | None:
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
