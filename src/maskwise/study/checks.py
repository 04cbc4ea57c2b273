"""What can be refused before any work is done: in one line now, rather than in an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from maskwise.annotate.registry import annotator
from maskwise.annotate.shard import require_live
from maskwise.constants import DIFFUSION, ranks_here
from maskwise.errors import MaskwiseError
from maskwise.evaluation import load_sets
from maskwise.evaluation.bound import spread
from maskwise.families import adapter_of, check_room, most_tokens
from maskwise.folders import require_own
from maskwise.masking import Masker
from maskwise.masking.policies import UnitKind, policy
from maskwise.models import NO_HEAD, check_start, has_head, weights_of
from maskwise.objectives import objective_class
from maskwise.objectives.base import NO_DOCUMENTS
from maskwise.recipe import Recipe
from maskwise.samplers import sampler
from maskwise.study.costs import over_a_run
from maskwise.study.stages import Stage, prepare_stage, tokenizer_of
from maskwise.tasks import FinetuneSettings, load_task
from maskwise.tasks.finetuning import fitting_rate
from maskwise.tasks.task import Task, Tuned
from maskwise.text import Rows, load_tokenizer, require_documents
from maskwise.text.documents import lines_note
from maskwise.text.layers import token_layers
from maskwise.text.pieces import UNKNOWN
from maskwise.text.readers import whole_name
from maskwise.text.rows import is_held_out
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.text.words import text_id
from maskwise.training import MaskedSource
from maskwise.training.arms import probe_rows
from maskwise.training.stream import StreamedRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

CORPUS_LAYERS = ("word_ids",)
"""The layers that every prepared corpus has; more come from ``corpus.layers``."""

LOCK = ".lock"
"""In ``stages/``: held while a study runs, and the sign that the folder is one."""

FAR = 8
"""A learning rate that is so many times what suits the model, or less than a part of it, is spoken
of.
"""

FEW_STEPS = 8
"""Steps, evenly over a run, whose batches are masked before training to see that there is anything
to learn from.
"""

MOST_UNKNOWN = 0.01
"""Above this share of unknown tokens a text is spoken of: they are never masked, and teach nothing.
"""


def check_inputs(recipe: Recipe) -> list[str]:
    """Fail now rather than in an hour: all that can be known of every arm without doing the work.

    Returns:
        Warnings, in lines.

    Raises:
        MaskwiseError: a text, tokenizer, model or task that cannot be read, or that do not fit each
            other.
    """
    notes: dict[str, None] = {}
    load = cache(load_task)  # every arm, at every point of the search, asks for the same tasks
    search = recipe.study.search
    arms = [
        recipe.arm(name, seed=0, more=point)
        for name in recipe.study.arms
        for point in (search.points_of(name) if search else [{}])
    ]
    for arm in arms or [recipe]:
        notes |= dict.fromkeys(_check_arm(arm, load))
    load_sets(recipe.evaluation)
    _check_choices(recipe, load)
    specs: dict[str, str] = {}
    for spec in recipe.tasks:
        name = load(spec).name
        if name in specs:
            do = f'give one another name: {spec.partition("(")[0]}(…, name="…")'
            raise MaskwiseError(
                f"two tasks are called {name!r}", got=f"{specs[name]} and {spec}", do=do
            )
        specs[name] = spec
    return list(notes)


def start_of(arm: Recipe) -> tuple[Any, PreTrainedConfig]:
    """The tokenizer of an arm, or what stands for one that is still to be trained; and its model's
    configuration.
    """
    given = arm.tokenizer_name
    tokenizer: Any = (
        load_tokenizer(given, needs_mask=arm.kind == "encoder", needs_words=False)
        if given
        else _Untrained(arm.tokenizer)
    )
    return tokenizer, arm.model.config(tokenizer, arm.links()[0].corpus.length, kind=arm.kind)


def _check_arm(arm: Recipe, load: Callable[[str], Task[Any]]) -> list[str]:
    """The model, tokenizer and texts of one arm fit each other; returns warnings."""
    notes, links, start = [], arm.links(), arm.model.pretrained
    tokenizer, config = start_of(arm)
    check_start(config, len(tokenizer))
    for spec in arm.tasks:
        if isinstance(task_kind := load(spec).kind, Tuned):
            task_kind.check_model(config)
    for setting, link in zip(arm.settings_of("corpus.length"), links):
        check_room(config, link.corpus.length, what=setting)
    if start and links[0].training.freeze == "none" and not has_head(start):
        notes.append(f"{start}: {NO_HEAD}")
    if arm.tasks and arm.kind == "encoder":
        notes += _rate_notes(arm.finetune, weights_of(config))
    if start and arm.tasks:
        check_room(config, arm.finetune.max_length, what="finetune.max_length")
    elif (
        arm.tasks
        and arm.has_new_positions
        and arm.finetune.max_length > (room := most_tokens(config))
    ):
        what = "finetune.max_length is more than the positions that a new model has"
        same = f"≤ corpus.length = {room}" if room == links[0].corpus.length else f"≤ {room}"
        raise MaskwiseError(what, got=arm.finetune.max_length, allowed=same)
    for link in links:
        notes += _check_text(link)
        if arm.tokenizer_name:
            _check_words(link, tokenizer)
        _check_rows(link)
        _check_probes(link, tokenizer if arm.tokenizer_name else None)
        notes += link.remarks()
        for kind in [one.kind for one in link.objectives.values()] or [
            objective_class(link.objective)
        ]:
            kind.check_model(config)
        if (
            arm.kind == "encoder"
            and link.corpus.row_layout == "packed"
            and not adapter_of(config).separates
        ):
            do = (
                "it reads one document a row; with corpus.attention=row it reads packed rows as "
                "one text"
            )
            notes.append(f"{config.model_type}: {NO_DOCUMENTS}, so {do}")
    return notes


def _rate_notes(finetune: FinetuneSettings, weights: int) -> Iterator[str]:
    """A learning rate of fine-tuning that is far from what models of this size want."""
    rate, wanted = finetune.learning_rate, fitting_rate(weights)
    if (
        rate is not None
        and finetune.optimizer == "adamw"
        and not wanted / FAR <= rate <= FAR * wanted
    ):
        what = (
            f"finetune.learning_rate is {rate:g}, and models of {weights / 1e6:.1f} M weights "
            f"want about {wanted:g}"
        )
        yield f"{what}: leave it out, or take that"


def _check_choices(recipe: Recipe, load: Callable[[str], Task[Any]]) -> None:
    """What a search goes by, and what arms are matched by, is there and can be compared."""
    links = [link for name in recipe.study.arms for link in recipe.arm(name, seed=0).links()]
    if recipe.study.match != "steps" and any(link.corpus.stream for link in links):
        what = (
            "what a step on a stream spends is not counted beforehand, so arms are matched by steps"
        )
        raise MaskwiseError(
            what, got=f"study.match {recipe.study.match}", do="leave out study.match"
        )
    search = recipe.study.search
    if search is None:
        return
    for name in recipe.study.arms if recipe.study.match != "steps" else ():
        texts = {
            _texts(recipe.arm(name, seed=0, more=point)) for point in ({}, *search.points_of(name))
        }
        # how many steps a point gets would depend on which texts are there already
        if len(texts) > 1:
            what = (
                f"study.match {recipe.study.match} wants one text for arm {name!r}, and "
                f"study.search tries several"
            )
            do = "search settings that leave the text as it is, or leave out study.match"
            raise MaskwiseError(what, got=f"grid {', '.join(search.points_of(name)[0])}", do=do)
    if (search.by or ("dev" if recipe.tasks else "held-out")) == "dev":
        for task in recipe.tasks:
            if not load(task).splits["dev"]:
                do = "give it a dev split; or study.search.by=held-out"
                raise MaskwiseError(
                    f"study.search goes by dev rows, and task {task} has none", do=do
                )
        return
    for name in recipe.study.arms:
        firsts = [
            recipe.arm(name, seed=0, more=point).links()[0] for point in search.points_of(name)
        ]
        if len({tokenizer_of(prepare_stage(first)) for first in firsts}) > 1:
            what = "study.search by held-out loss cannot choose between tokenizers"
            why = "losses per token of different vocabularies do not compare"
            do = "name tasks, and let study.search.by be dev; or make each tokenizer an arm"
            raise MaskwiseError(f"{what}: {why}", got=f"grid {', '.join(search.points[0])}", do=do)


def _texts(arm: Recipe) -> tuple[str, ...]:
    """What tells an arm's texts apart. Where it learns a policy, what that found depends on the
    training, too.
    """
    links = arm.links()
    learned = (
        (arm.learning, *(link.training for link in links))
        if any(link.learns for link in links)
        else ()
    )
    names = (prepare_stage(link.unlearned()).name for link in links)
    return (*names, *(settings.model_dump_json() for settings in learned if settings))


def _check_text(link: Recipe) -> list[str]:
    """The corpus of one training can be read, and has what its policy needs; returns warnings."""
    notes: list[str] = []
    for part in link.corpus.parts():
        require_documents(part)
    if link.corpus.text_per == "auto":
        notes = [note for source in link.corpus.sources if (note := lines_note(source))]
    for spec in link.corpus.annotators if link.corpus.stream else ():
        require_live(spec, annotator(spec))
    if link.corpus.stream and link.learns:
        do = (
            "learn it from a part first (maskwise learn), and name its folder: "
            "learned('OUT/policy')"
        )
        raise MaskwiseError(
            "a policy is learned from texts that are read whole, and this one is a stream", do=do
        )
    annotated = [
        name for spec in link.corpus.annotators for name in token_layers(annotator(spec).layers)
    ]
    layers = (*CORPUS_LAYERS, *annotated)
    if link.masking.keep and link.masking.keep not in layers:
        do = "name its annotator in corpus.layers, such as prompt(until='?')"
        what = f"masking.keep names the layer {link.masking.keep!r}, and this corpus has none"
        raise MaskwiseError(what, got=f"layers {', '.join(layers)}", do=do)
    for name in link.policies:
        missing = [layer for layer in policy(name).layers() if layer not in layers]
        if missing:
            what = f"policy {name} needs the layer {missing[0]!r}, and this corpus has none"
            do = "name its annotator in corpus.layers (maskwise list annotators)"
            raise MaskwiseError(what, got=f"layers {', '.join(layers)}", do=do)
    return notes


def _check_words(link: Recipe, tokenizer: Any) -> None:
    """A slow tokenizer has no words, unless each of its tokens is one."""
    if getattr(tokenizer, "is_fast", False) or link.corpus.words == "token":
        return
    masks = [name for name in link.evaluation.masks if name != DIFFUSION]
    for setting, names in (("masking.policy", link.policies), ("evaluation.masks", masks)):
        for name in names:
            if "word_ids" in policy(name).layers():
                what = (
                    f"{setting} {name} needs words, and a slow tokenizer has no character "
                    f"offsets to find them"
                )
                do = "take token, say corpus.words: token, or convert it to a tokenizer.json"
                raise MaskwiseError(what, got=type(tokenizer).__name__, do=do)


def _check_rows(link: Recipe) -> None:
    """A batch has rows enough for the twins of ``cse``, on every rank."""
    how, ranks = link.training, ranks_here()
    for name, arm in link.objectives.items():
        rows = how.micro_rows(ranks)
        if arm.kind.twins and (rows % 2 or rows < 4):
            why = "cse reads half of the rows twice, so training.batch_size is too small, or odd"
            parts = how.accumulate * ranks
            got = f"{how.batch_size}" + (f", in {parts} parts" if parts > 1 else "")
            raise MaskwiseError(f"arm {name!r}: {why}", got=got, allowed="even parts of 4 or more")


def _check_probes(link: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Held-out rows enough for a sampler that learns, beside those that judge; as far as the text
    alone can tell.
    """
    if link.corpus.stream or not link.objectives:
        return
    chooser = sampler(link.sampler, list(link.objectives))
    if not chooser.every:
        return
    judging, ranks = link.evaluation.rows, ranks_here()
    size = max(
        probe_rows(chooser.probed_rows(twins=arm.kind.twins), ranks=ranks, twins=arm.kind.twins)
        for arm in link.objectives.values()
    )
    most = most_held_out(link.corpus, tokenizer, enough=judging + size)
    if most < judging + size:
        raise MaskwiseError(
            "the text that is held out is too little for the sampler's probes",
            got=f"at most {most} rows",
            allowed=f"≥ {judging + size}: {judging} that judge the model, and {size}",
            do=f"raise corpus.held_out (now {link.corpus.held_out}), or lower evaluation.rows "
            f"(now {judging})"
            f" or the sampler's rows (now {chooser.rows})",
        )


def most_held_out(
    corpus: CorpusSettings, tokenizer: PreTrainedTokenizerBase | None, *, enough: int
) -> int:
    """No more rows than this can be held out of a corpus, in any layout; not counted beyond
    ``enough``.

    Any two pieces of a document that follow each other are together longer than a row has room for.
    A tokenizer that is still to be trained (None) makes at most a token of each byte. Cost: little
    text is read where there is much.
    """
    room, most = max(1, corpus.length - 2), 0
    long = 16 * enough * corpus.length  # more letters than any tokenizer puts into so many rows
    for document in corpus.documents():
        if is_held_out(text_id(whole_name(document.id)), corpus.held_out):
            text = document.text[:long]
            tokens = len(text.encode()) if tokenizer is None else len(tokenizer.tokenize(text))
            most += 1 + 2 * ((tokens + 1) // (room + 1))
            if most >= enough or len(document.text) > long:
                return enough
    return most


def require_targets(source: MaskedSource, held_out: Rows, masker: Masker) -> None:
    """Refuse to train on text in which a policy finds nothing to mask, or no more than a unit a
    text.

    Of a stream, its held-out text is looked at.

    Raises:
        MaskwiseError: no target in batches from all over the run; words where a text has none.
    """
    steps, targets = over_a_run(source.settings.steps, FEW_STEPS), 0
    pieces, units, eligible = 0, 0, 0
    for step in steps:
        if isinstance(source.rows, StreamedRows):
            rows = held_out.laid(source.rows.layout)
            some = rows.tensors(spread(source.settings.batch_size, of=len(rows)))
            batches = [masker(some, step=step, total_steps=source.settings.steps, epoch=0)]
        else:
            batches = source.batches(step, rank=0, ranks=1)
        for batch in batches:
            targets += batch.targets
            if batch.choice is not None:
                units += len(batch.choice.units.piece)
                eligible += int(batch.choice.units.tokens_P.sum())
                pieces += len(batch.ratio)
    policy = masker.policy
    if masker.keep and not eligible:
        what = f"the layer {masker.keep!r} keeps every token visible"
        raise MaskwiseError(
            what, got=f"nothing to mask in {len(steps)} batches", do="mark the prompts alone"
        )
    whole = policy.unit_kind in (UnitKind.WORD, UnitKind.SPAN) and eligible >= 8 * pieces
    if whole and units <= 1.2 * pieces:
        what = f"policy {policy} finds no words in this text: {units} units in {pieces} texts"
        do = "take the policy token, or span(over='token'); or corpus.words: token, or regex:…"
        raise MaskwiseError(what, got=f"{eligible / max(1, units):.0f} tokens a unit", do=do)
    if not targets:
        what = (
            f"policy {policy} masks nothing in this text: it has no units, or they are longer "
            f"than the budget"
        )
        do = "take the policy token, or text with spaces; maskwise inspect shows the masks"
        raise MaskwiseError(what, got=f"no target in {len(steps)} batches", do=do)


def require_known_tokens(counts: Mapping[str, int], title: str) -> None:
    """
    Raises:
        MaskwiseError: most tokens of a text are unknown to its tokenizer.
    """
    share = counts.get(UNKNOWN, 0) / max(1, counts.get("tokens", 0))
    if share > 0.5:
        what = f"{share:.0%} of the tokens of {title} are unknown to the tokenizer"
        do = "take a tokenizer that knows its letters, or a new one: tokenizer.kind: letter, or bpe"
        raise MaskwiseError(
            what, got=f"{counts.get(UNKNOWN, 0):,} × [UNK]", allowed="at most half", do=do
        )


def notes_of_texts(texts: Iterable[Stage], stages: Path) -> Iterator[str]:
    """What a user should know of prepared texts: that many of their tokens are unknown to the
    tokenizer.
    """
    for stage in texts:
        counts = (stage.result(stages) or {}).get("counts", {})
        share = counts.get(UNKNOWN, 0) / max(1, counts.get("tokens", 0))
        if share > MOST_UNKNOWN:
            source = CorpusSettings(**stage.what["corpus"]).title
            do = "take a tokenizer that knows its characters, or a larger tokenizer.vocab_size"
            yield (
                f"{share:.1%} of the tokens of {source} are unknown to the tokenizer and are "
                f"never masked: {do}"
            )


def say(notes: Iterable[str]) -> None:
    """Print lines on stderr."""
    for note in notes:
        Console(stderr=True, soft_wrap=True, highlight=False).print(note, markup=False)


def require_study_folder(out: Path, *, block: bool = False) -> None:
    """A new folder, an empty one, or one that holds a study; anything else is refused.

    Args:
        block: some seeds of a study are to be run, whose other records may come from elsewhere,
            without stages.
    """
    marks = [f"stages/{LOCK}"]
    if block:
        marks.append("study.json")
    require_own(out, *marks, what="a study")


class _Untrained:
    """Stands for a tokenizer that is still to be trained: all that a configuration asks of it."""

    pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 2, 3, None, None

    def __init__(self, settings: TokenizerSettings):
        self.size = settings.vocab_size + settings.sentinels

    def __len__(self) -> int:
        return self.size
