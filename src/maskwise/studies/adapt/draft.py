"""Make the recipe of an adaptation from a request and the facts of its texts.

The recipe is an ordinary one: ``maskwise study OUT/adapt.yaml`` runs it again. What the text
decides (lengths, held-out share, pairs of titles and texts) is read once and kept in ``Texts``,
because a command may make several recipes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from filecmp import cmp
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from maskwise.base.constants import ASSUMED_MARGINS, REFERENCE
from maskwise.base.errors import MaskwiseError, option, require_known, shell_word
from maskwise.base.folders import recipe_path
from maskwise.base.specs import Call, leaves, with_options
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models.families import most_tokens, require_kind
from maskwise.models.loading import has_head, load_config, require_head, weights_of
from maskwise.recipe import Recipe, blaming_overrides, layer_of_file, validate
from maskwise.recipe.setting_layers import (
    layer,
    nest,
    parse_override,
    parse_overrides,
    with_overrides,
)
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.request import (
    GENERAL_MASKS,
    PAIRS,
    PASSAGES,
    STEPS,
    STUDENT,
    TRIMMED,
    USUAL_ARM,
    Request,
)
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
from maskwise.text import load_tokenizer, read_documents, require_documents
from maskwise.text.documents import USUAL, longest_field
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
    named = None if request.keep == OFF else request.keep
    for source in filter(None, (request.control, named)):
        require_documents(read_documents(source))
    if named and request.replay is not None:
        _require_mixed(named, given)
    room = most_tokens(config)
    # To read the text takes long, so mistakes elsewhere are found first. What the text decides is
    # filled in with examples.
    corpus: Plain = {"source": request.texts, "length": min(ROW_TOKENS, room)}
    if request.chooses:
        # The documents that choose and those that judge are each as many as usual.
        corpus["held_out"] = 2 * CorpusSettings.model_fields["held_out"].default
    known = [load_task(spec) for spec in request.tasks]
    found = TextsRead(corpus, request.tasks or (PAIRS,), labelled_length(0, room), general=named)
    recipe = blaming_overrides(
        lambda some: _draft(request, found, some).recipe, overrides, origin="adapt"
    )
    check_names(recipe, known)
    facts = texts.facts
    corpus["length"] = row_length(facts, least=ROW_TOKENS, room=room)
    if facts.text_field != "text":
        corpus["text_field"] = facts.text_field
    tasks = found.tasks
    if not request.tasks:
        # The pairs come from documents that are held out, by the rule that the training text uses.
        pairs, share = texts.pairs(
            _with_changes(corpus, overrides),
            choose_share="corpus.held_out" not in given,
            of_verdict=request.chooses,
        )
        corpus["held_out"] = share
        tasks = (with_options(str(pairs), kind="retrieval", name=PAIRS),)
    sizes = tokens_of_rows(map(load_task, tasks), load_tokenizer(request.model))
    general = named
    if request.keep is None and facts.spaced and facts.is_english and request.texts != GENERAL:
        general = GENERAL
    if request.replay is not None:
        if general is None:
            raise _nothing_to_replay(request.keep)
        _require_mixed(general, given)
    trained = general is not None and (
        request.replay is not None
        or (request.control is not None and is_same_text(general, request.control))
    )
    unseen = _held_out_by(_with_changes(corpus, overrides)) if trained else {}
    found = TextsRead(
        corpus,
        tasks,
        labelled_length(fitting_tokens(sizes), room),
        spaced=facts.spaced,
        general=general,
        unseen=unseen,
    )
    if general and not has_head(request.model):
        pairs = _general_pairs(request, texts, general, unseen)
        found = replace(found, pairs=with_options(str(pairs), kind="retrieval", name=PASSAGES))
    drafted = partial(_draft, request, found)
    draft = drafted(overrides)
    refuse_unread(
        draft.recipe,
        overrides,
        read=lambda changes: drafted(changes).recipe,
        content=read_by_study,
        command="adapt",
    )
    if not request.tasks or trained:
        _require_one_share(draft.recipe)
    return draft


@dataclass(frozen=True)
class TextsRead:
    """What the texts decide; until they are read, an example.

    Attributes:
        corpus: the settings of the user's text.
        tasks: the tasks of the user, or that of titles and texts.
        max_length: the tokens of a labelled row.
        spaced: whether spaces separate the words of the text.
        general: the source of general text; None for none.
        unseen: the settings by which the arms hold out documents of the general text; {} if no arm
            trains on it.
        pairs: the spec of a task of titles and general texts, for a model without a head.
    """

    corpus: Plain
    tasks: Sequence[str]
    max_length: int
    spaced: bool = True
    general: str | None = None
    unseen: Mapping[str, object] = field(default_factory=dict)
    pairs: str | None = None


def _nothing_to_replay(keep: str | None) -> MaskwiseError:
    return MaskwiseError(
        f"{option('replay')} mixes general text into the training rows, and there is none",
        got=keep or "a text that is not known to be English",
        do=f"give general text: {option('keep', 'FILE', python='keep')}",
    )


def _require_mixed(general: str, given: Plain) -> None:
    """Raise an error if the user names a field that the general text lacks: a mix reads one field.
    If nobody names a field, that of each text is found.
    """
    named = given.get("corpus.text_field", USUAL[0])
    if named != USUAL[0] and named != longest_field(general):
        raise MaskwiseError(
            f"the general text of {option('replay')} has no field corpus.text_field",
            got=named,
            do="leave corpus.text_field out, or give general text with this field",
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


def _held_out_by(corpus: CorpusSettings) -> Plain:
    """Return the settings that decide which documents are held out."""
    settings = corpus.model_dump(include={"text_per", "group_field"})
    defaults = CorpusSettings.model_fields
    changed = {name: value for name, value in settings.items() if value != defaults[name].default}
    return {"held_out": corpus.held_out, **changed}


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


def _general_pairs(request: Request, texts: Texts, general: str, unseen: Mapping[str, Any]) -> Path:
    """Write pairs of titles and general texts that no arm trains on."""
    try:
        pairs, _ = texts.pairs(
            CorpusSettings(source=general, **unseen),
            name=PASSAGES,
            choose_share=not unseen,
            of_verdict=bool(unseen) and request.chooses,
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


def _draft(request: Request, found: TextsRead, overrides: Sequence[str]) -> Draft:
    """Return the recipe: the shipped one, of which options change settings and add arms."""
    named = arms_for(request.arms, spaced=found.spaced)
    if request.policy:
        named["learned"] = {"masking.policy": f"learned({request.policy!r})", "masking.ratio": 0.30}
    first = request.arms[0]
    every = max(1, request.steps // 4)
    changes: Plain = {
        "description": f"Does further training on {request.texts} help {request.model}?",
        "corpus": found.corpus,
        "model": {"pretrained": request.model},
        "training": {
            "steps": request.steps,
            **rates_of(weights_of(load_config(request.model, kind=None))),
            "eval_every": every,
            "save_every": every,
        },
        "tasks": [*found.tasks],
        "finetune": {"max_length": found.max_length},
        "study": {
            "seeds": request.seeds if isinstance(request.seeds, int) else [*request.seeds],
            "contrasts": [[first, REFERENCE]],
            # A gate ignores a search. The unchanged model has no settings to search.
            "gate": [first, REFERENCE],
        },
    }
    if request.patience is not None:
        changes["training"]["eval_every"] = max(1, request.steps // EVALUATIONS)
        changes["training"]["patience"] = request.patience
    if request.lengths is not None:
        changes["training"] |= {"decay": "wsd", "lengths": [*request.lengths]}
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
        changes["phases"] = [{"training": head}, {}]
    # Further training is the last phase. A new head is the same for all arms.
    last = "" if has_head(request.model) else "phases.1."
    arms = {
        name: {f"{last}{key}": value for key, value in arm.items()} for name, arm in named.items()
    }
    given = parse_overrides(overrides)
    own_field = given.get("corpus.text_field", found.corpus.get("text_field", USUAL[0]))
    # Other texts may have other fields. Without a name, that of each text is found.
    any_field = {} if own_field == USUAL[0] else {f"{last}corpus.text_field": USUAL[0]}
    if request.controlled:
        arms[request.controlled] = {
            **arms[first],
            f"{last}corpus.source": request.control,
            **any_field,
        }
        # The gate is the first of the two tests, and each has the full level.
        changes["study"]["contrasts"].append([first, request.controlled])
    if request.replayed and found.general:
        share = request.replay or 0.0
        mix = {request.texts: round(1 - share, 6), found.general: share}
        if "corpus.text_field" in given:
            any_field = {}
        arms[request.replayed] = {**arms[first], f"{last}corpus.source": mix, **any_field}
    if found.pairs:
        changes["tasks"].append(found.pairs)
        changes["study"]["secondary"] = [PASSAGES]
    elif found.general:
        # A model that knows masks of single tokens and trains with whole words becomes worse at
        # single tokens on any text. So its loss is also measured with whole words.
        with_words = any(arm.get("masking.policy") == "whole-word" for arm in named.values())
        changes["evaluation"] = {
            "measures": [
                _measure(request, found, name=name, masks=masks)
                for name, masks in GENERAL_MASKS.items()
                if masks == "token" or with_words
            ]
        }
    of_tokens = []
    if request.trim_tokens:
        of_tokens.append(f"trim-tokens({request.trim_tokens})")
        changes["model"]["changes"] = [*of_tokens]
        arms[TRIMMED] = {**arms[first], f"{last}training.steps": 0}
        if request.lengths is not None:
            arms[TRIMMED][f"{last}training.lengths"] = None
        changes["study"]["contrasts"].append([TRIMMED, REFERENCE])
    if request.extended:
        of_tokens.append(f"new-tokens({request.new_words})")
        arms[request.extended] = {**arms[first], "model.changes": [*of_tokens]}
        changes["study"]["contrasts"].append([request.extended, first])
    if request.student_layers is not None:
        # Whether a smaller model is as good is no question of a lead, so it needs a margin.
        changes["study"].setdefault("margin", ASSUMED_MARGINS["score"])
        weights = "" if has_head(request.model) else ", predictions=0, labels=0"
        arms[STUDENT] = {
            **arms[first],
            f"{last}objective": {"distil": f"distil({request.model!r}{weights})"},
            "model.changes": [f"layers({request.student_layers})"],
        }
        changes["study"]["contrasts"].append([STUDENT, REFERENCE])
    if request.apart:
        # What changes of the model are worth does not depend on another answer, so the questions
        # are one family.
        changes["study"]["gate"] = None
    shipped = layer_of_file(recipe_path("adapt"))
    del shipped[f"study.arms.{USUAL_ARM}"]
    changes["study"]["arms"] = arms
    settings = {name: each for name, each in (shipped | layer(changes)).items() if each is not None}
    written = with_overrides(settings, overrides)
    if of_tokens:
        # No other loss compares arms with different tokens, so a list of the user's keeps it.
        measures = EvaluationSettings(measures=written.get("evaluation.measures") or ())
        if "word-loss" not in measures.named:
            written["evaluation.measures"] = [*measures.measures, f"word-loss({WORD_LOSS})"]
    # Without an arm that masks, for example, there are no settings of masks. What the user gives
    # stays, and is refused if it has no effect.
    recipe = validate(nest(written), origin="adapt")
    for setting in recipe.unused(written):
        if setting not in given:
            del written[setting]
    # The user may have replaced the tasks.
    if found.pairs and found.pairs not in (written["tasks"] or ()):
        written.pop("study.secondary", None)
    settings = nest(written)
    comments = {key: text.format(least=request.least_runs) for key, text in COMMENTS.items()}
    if not request.tasks:
        comments["tasks"] = "titles and texts of documents that are held out from training"
    if found.general and not found.pairs:
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


def _measure(request: Request, found: TextsRead, *, name: str, masks: str) -> str:
    """Return the measure of the loss on general text that no arm trains on."""
    options: dict[str, object] = {"name": name}
    if masks != "token":
        options["masks"] = masks
    options |= found.unseen
    if found.unseen and request.chooses:
        options["of_verdict"] = True
    return str(Call("text-loss", (found.general,), options))


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
