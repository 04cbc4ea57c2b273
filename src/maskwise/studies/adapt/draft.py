"""Make the recipe of an adaptation from a request and the facts of its texts.

The recipe is an ordinary one: ``maskwise study OUT/adapt.yaml`` runs it again. What the text
decides (lengths, held-out share, pairs of titles and texts) is read once and kept in ``Texts``,
because a command may make several recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from functools import cached_property, partial
from pathlib import Path

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError, option, require_known, shell_word
from maskwise.base.specs import Call, leaves, with_options
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models.families import most_tokens, require_kind
from maskwise.models.loading import has_head, load_config, require_head, weights_of
from maskwise.recipe import Recipe, blaming_overrides, validate
from maskwise.recipe.layers import (
    layer,
    nest,
    parse_override,
    parse_overrides,
    with_overrides,
)
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.request import GENERAL_MASKS, PAIRS, PASSAGES, STEPS, Request
from maskwise.studies.adapt.title_pairs import write_pairs
from maskwise.studies.checks import check_names, cut_share, row_sizes
from maskwise.studies.from_files import (
    ARMS,
    ROW_TOKENS,
    Draft,
    TextFacts,
    arms_for,
    fitting_tokens,
    labelled_length,
    look_at,
    rates_of,
    row_length,
    tokens_of_rows,
)
from maskwise.studies.unread import read_by_study, refuse_unread
from maskwise.tasks.loading import load_task
from maskwise.text import load_tokenizer
from maskwise.text.documents import longest_field
from maskwise.text.settings import CorpusSettings
from maskwise.text.source import source_path

RECIPE = "adapt.yaml"
"""The file in the folder of a study with the recipe that was run."""
GENERAL, OFF = "bundled:wikipedia", "none"
"""The general text by default, and what turns it off."""
OPTIONS: dict[str, str] = {
    "training.steps": "steps",
    "training.patience": "patience",
    "training.lengths": "lengths",
    "study.seeds": "runs",
}
"""Settings that only an option may change, because an option also changes other settings."""
ARGUMENTS = {"model.pretrained": "the first", "corpus.source": "the second"}
"""Settings that are arguments of ``adapt`` without a name."""
EVALUATIONS = 20
"""The number of evaluations in all steps of a run that chooses its best state."""
WORD_LOSS = 100
"""Held-out documents on whose words arms with different vocabularies are compared."""


class Texts:
    """The user's text. What was read of it is kept, for all recipes that a command builds.

    Args:
        source: a corpus, as for ``read_documents``.
        folder: the folder of files with pairs of titles and texts (``inputs.file_of_rows``).
    """

    def __init__(self, source: str, folder: Path):
        self.source = source
        self.folder = folder
        self._pairs: dict[tuple[object, ...], tuple[Path, float]] = {}

    @cached_property
    def facts(self) -> TextFacts:
        return look_at(self.source)

    def pairs(
        self,
        corpus: CorpusSettings,
        *,
        name: str = PAIRS,
        choose_share: bool,
        of_verdict: bool,
    ) -> tuple[Path, float]:
        """Return the file of ``write_pairs`` and the share that is held out for it."""
        # The layout of rows does not change the documents, and smaller plans have shorter rows.
        read = corpus.model_dump_json(exclude={"length", "layout", "attention"})
        key = (read, choose_share, of_verdict)
        if key not in self._pairs:
            written, how = write_pairs(
                corpus,
                self.folder,
                name=name,
                choose_share=choose_share,
                of_verdict=of_verdict,
            )
            self._pairs[key] = (written, how.held_out)
        return self._pairs[key]


def draft_of(
    request: Request,
    texts: Texts,
) -> Draft:
    """Make the recipe of the study.

    Args:
        texts: the texts of the request.

    Raises:
        MaskwiseError: the input is invalid, or there are neither tasks nor titles.
    """
    overrides = request.overrides
    given = parse_overrides(overrides)
    for key in dict(leaves(given)):
        if key in OPTIONS:
            raise MaskwiseError(f"adapt has an option for {key}", do=f"use {option(OPTIONS[key])}")
        if key in ARGUMENTS:
            raise MaskwiseError(f"{key} is {ARGUMENTS[key]} argument of adapt", do="give it there")
        if key == "model.architecture":
            raise MaskwiseError(
                "adapt trains a pre-trained model further, and model.architecture makes a new one",
                do="give the model as the first argument",
            )
        if key == "corpus.tokens":
            raise MaskwiseError(
                "adapt needs texts, and corpus.tokens is for token ids",
                do="give texts, or write a recipe with corpus.tokens and run maskwise study",
            )
    config = load_config(request.model, kind=None)
    do = "use the recipe intermediate, whose first lines explain how (maskwise list recipes)"
    require_kind(config, "encoder", use="maskwise adapt", do=do)
    require_head(config, "encoder", name=request.model)
    if request.head_steps is not None and has_head(request.model):
        raise MaskwiseError(
            f"{option('head_steps')} trains a new head, and this model has one already",
            got=f"{request.head_steps} steps for {request.model}",
            do=f"remove {option('head_steps')}",
        )
    for name in request.arms:
        require_known("arm", name, ARMS)
        if request.arms.count(name) > 1:
            do = f"name it once in {option('arms')}"
            raise MaskwiseError("an arm is given twice", got=name, do=do)
    for name, source in (("control", request.control), ("keep", request.keep)):
        if source is not None and is_same_text(source, request.texts):
            raise MaskwiseError(
                f"{option(name)} is the text itself",
                got=source,
                do=f"give another text to {option(name)}",
            )
    if request.replay is not None and not 0 < request.replay < 1:
        raise MaskwiseError(
            f"{option('replay')} is the share of general text in the training rows",
            got=request.replay,
            allowed="above 0 and below 1, such as 0.2",
        )
    if request.replay is not None and request.keep == OFF:
        raise _nothing_to_replay(request.keep)
    room = most_tokens(config)
    # How much general text is held out is not known yet, so the example has none of it.
    others = OtherTexts(control=_source(request.control), general={})
    named = _source(_given(request.keep))
    # To read the text takes long, so mistakes elsewhere are found first. What the text decides is
    # filled in with examples.
    corpus: Plain = {"source": request.texts, "length": min(ROW_TOKENS, room)}
    if request.chooses:
        # The documents that choose and those that judge are each as many as usual.
        corpus["held_out"] = 2 * CorpusSettings.model_fields["held_out"].default
    known = [load_task(spec) for spec in request.tasks]
    tasks = request.tasks or (PAIRS,)
    example = partial(
        _draft,
        request,
        corpus,
        tasks,
        spaced=True,
        max_length=labelled_length(0, room),
        others=others,
    )
    recipe = blaming_overrides(lambda some: example(some).recipe, overrides, origin="adapt")
    check_names(recipe, known)
    facts = texts.facts
    corpus["length"] = row_length(facts, least=ROW_TOKENS, room=room)
    corpus["text_field"] = facts.text_field
    if not request.tasks:
        # The pairs come from documents that are held out, by the rule that the training text uses.
        read = _with_changes(corpus, overrides)
        pairs, share = texts.pairs(
            read,
            choose_share="corpus.held_out" not in given,
            of_verdict=request.chooses,
        )
        corpus["held_out"] = share
        tasks = (with_options(str(pairs), kind="retrieval", name=PAIRS),)
    sizes = tokens_of_rows(map(load_task, tasks), load_tokenizer(request.model))
    general = _general(request, facts)
    others = replace(others, general=named or _source(general))
    if request.replay is not None:
        _require_mixed(others.general, _with_changes(corpus, overrides))
    if general and not has_head(request.model):
        pairs = _general_pairs(request, texts, others, corpus)
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
        content=read_by_study,
        command="adapt",
    )
    if not request.tasks or _trains_on_general(request, others):
        _require_one_share(draft.recipe)
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
        raise _nothing_to_replay(request.keep)
    return general


def _nothing_to_replay(keep: str | None) -> MaskwiseError:
    return MaskwiseError(
        f"{option('replay')} mixes general text into the training rows, and there is none",
        got=keep or "a text that is not known to be English",
        do=f"give general text: {option('keep', 'FILE', python='keep')}",
    )


def _require_mixed(general: Plain, corpus: CorpusSettings) -> None:
    """Raise an error if two texts have different fields, because a mix reads one field."""
    if general["text_field"] != corpus.text_field:
        raise MaskwiseError(
            f"the text and the general text of {option('replay')} have different fields",
            got=f"{corpus.text_field} and {general['text_field']}",
            do=f"rename the field of your text to {general['text_field']}",
        )


def is_same_text(one: str, other: str) -> bool:
    """Return whether two sources are the same text. A file has many paths, and may have copies.

    >>> is_same_text("bundled:wikipedia", "bundled:wikipedia"), is_same_text("/etc", "/etc/../etc")
    (True, True)
    """
    first, second = source_path(one).resolve(), source_path(other).resolve()
    if first == second:
        return True
    # Their sizes are compared first.
    return first.is_file() and second.is_file() and cmp(first, second, shallow=False)


def _trains_on_general(request: Request, others: OtherTexts) -> bool:
    """Return whether an arm trains on the general text."""
    general, control = others.general.get("source"), others.control.get("source")
    if not general:
        return False
    return request.replay is not None or bool(control and is_same_text(general, control))


def _unseen(request: Request, others: OtherTexts, corpus: Plain) -> float:
    """Return the share of general text that no arm trains on; 0 if none trains on this text."""
    if not _trains_on_general(request, others):
        return 0.0
    return _with_changes(corpus, request.overrides).held_out


def _as_arms_read(corpus: CorpusSettings) -> Plain:
    """Return the settings besides the share that decide which documents are held out."""
    settings = corpus.model_dump(include={"text_per", "group_field"})
    defaults = CorpusSettings.model_fields
    return {name: value for name, value in settings.items() if value != defaults[name].default}


def _require_one_share(recipe: Recipe) -> None:
    """Raise an error if an arm or a phase trains on documents that the others hold out.

    The pairs of titles and texts, and the general text that measures what is forgotten, are of
    documents that no arm may train on.
    """
    share = recipe.corpus.held_out
    for name in recipe.study.arms:
        for link in recipe.arm(name, seed=recipe.study.first_seed).links():
            if link.corpus.held_out < share:
                raise MaskwiseError(
                    f"arm {name!r} trains on documents that are held out for its evaluation",
                    got=f"corpus.held_out={link.corpus.held_out:g}",
                    allowed=f"≥ {share:g}, as for the other texts",
                    do="set corpus.held_out for all arms and phases",
                )


def _general_pairs(
    request: Request,
    texts: Texts,
    others: OtherTexts,
    corpus: Plain,
) -> Path:
    """Write pairs of titles and general texts that no arm trains on."""
    share = _unseen(request, others, corpus)
    settings = dict(others.general)
    if share:
        settings["held_out"] = share
        settings |= _as_arms_read(_with_changes(corpus, request.overrides))
    try:
        pairs, _ = texts.pairs(
            CorpusSettings(**settings),
            name=PASSAGES,
            choose_share=not share,
            of_verdict=share > 0 and request.chooses,
        )
    except MaskwiseError as error:
        raise MaskwiseError(
            "general text shows what a model without a head forgets by pairs of titles and texts, "
            "and there are too few of them",
            got=error.got,
            allowed=error.allowed,
            do=f"give more general text, or {option('keep', 'none')}",
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
    named = arms_for(request.arms, spaced=spaced)
    if request.policy:
        named["learned"] = {"masking.policy": f"learned({request.policy!r})", "masking.ratio": 0.30}
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
        name: {f"{last}{key}": value for key, value in arm.items()} for name, arm in named.items()
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
        # A model that knows masks of single tokens and trains with whole words becomes worse at
        # single tokens on any text. So its loss is also measured with whole words.
        with_words = any(arm.get("masking.policy") == "whole-word" for arm in named.values())
        settings["evaluation"]["measures"] = [
            _measure(request, others, corpus, name=name, masks=masks)
            for name, masks in GENERAL_MASKS.items()
            if masks == "token" or with_words
        ]
    if request.extended:
        arms[request.extended] = {**arms[first], "model.new_tokens": request.new_words}
        # Whether new words help does not depend on another answer, so the questions are one family.
        settings["study"]["contrasts"].append([request.extended, first])
        del settings["study"]["gate"]
    settings["study"]["arms"] = arms
    written = with_overrides(layer(settings), overrides)
    if request.extended:
        # No other loss compares arms with different tokens, so a list of the user's keeps it.
        measures = EvaluationSettings(measures=written.get("evaluation.measures") or ())
        if "word-loss" not in measures.named:
            written["evaluation.measures"] = [*measures.measures, f"word-loss({WORD_LOSS})"]
    # Without an arm that masks, for example, there are no settings of masks. What the user gives
    # stays, and is refused if it has no effect.
    recipe = validate(nest(written), origin="adapt")
    given = parse_overrides(overrides)
    for setting in recipe.unused(written):
        if setting not in given:
            del written[setting]
    settings = nest(written)
    # The user may have replaced the tasks.
    if others.pairs and others.pairs not in (settings["tasks"] or ()):
        settings["study"].pop("secondary", None)
    comments = {key: text.format(least=request.least_runs) for key, text in COMMENTS.items()}
    if tasks != request.tasks:
        comments["tasks"] = "titles and texts of documents that are held out from training"
    if others.general and not others.pairs:
        comments["evaluation"] = "measures: what the arms forget of general text"
    head_lines = [
        f"Does further training of {request.model} on {request.texts} help?",
        "Written by `maskwise adapt`, which runs it. To change it: "
        f"maskwise study {shell_word(str(request.out / RECIPE))} training.steps=1000 --out "
        "ANOTHER_FOLDER",
    ]
    draft = Draft("adapt", settings, comments, head_lines)
    new_head = new_head_words(draft.recipe)
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
    "study.gate": "tested first, at the full 5 % level; a second contrast only if it is better",
    "study.arms": "ways to train further",
}


def _measure(request: Request, others: OtherTexts, corpus: Plain, *, name: str, masks: str) -> str:
    """Return the measure of the loss on general text that no arm trains on."""
    options: dict[str, object] = {"name": name}
    if masks != "token":
        options["masks"] = masks
    if others.general["text_field"] != "text":
        options["text_field"] = others.general["text_field"]
    share = _unseen(request, others, corpus)
    if share:
        options["held_out"] = share
        options |= _as_arms_read(_with_changes(corpus, request.overrides))
        if request.chooses:
            options["of_verdict"] = True
    return str(Call("text-loss", (others.general["source"],), options))


def _with_changes(corpus: Plain, overrides: Sequence[str]) -> CorpusSettings:
    """Return the settings of the text that is trained on, with the user's changes to them."""
    settings: Plain = {"name": "adapt", "corpus": dict(corpus)}
    own = [text for text in overrides if parse_override(text)[0].split(".")[0] == "corpus"]
    return validate(nest(with_overrides(layer(settings), own)), origin="adapt").corpus


def new_head_words(recipe: Recipe) -> str:
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
