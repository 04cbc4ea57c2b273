"""Recipes for the user's text and labels.

``maskwise new`` writes a short first study (``new_recipe``), and ``maskwise adapt`` a study that
compares further training with the unchanged model (``adapt``). Both take the row length, the
learning rates, the arms and the lengths of labelled rows from the functions in this file, and both
write what they chose as a recipe with comments (``Draft``).

In a first study, training continues from the bundled encoder if the text is English; otherwise a
small model is trained from scratch. In text without spaces there are no words to mask, so it is
evaluated on token masks only. The study compares one pair of arms (ways to pre-train), with six
runs of each arm. Six is the minimum for a decision (``statistics.fewest_runs``).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from maskwise.base.errors import MaskwiseError, plural, shell_word
from maskwise.base.folders import LONGEST_NAME, results_folder, stem_of, write_whole
from maskwise.base.specs import is_path, leaves, local_name, split_options, user_path, with_options
from maskwise.models.families import most_tokens
from maskwise.models.loading import load_config, weights_of
from maskwise.recipe import Recipe, read_recipe, recipe_of_text, shipped
from maskwise.recipe.commented import commented
from maskwise.recipe.described import SCHEMA_FILE, with_schema
from maskwise.recipe.setting_layers import layer, nest, parse_overrides, with_overrides
from maskwise.recipe.yamls import Plain
from maskwise.results.usual import ARMS, MOST_FOR_MUON, MUON_RATE, RATES, UNSPACED_ARMS
from maskwise.studies.checks import FEW_HELD_OUT, MOST_UNKNOWN, large_part, row_sizes
from maskwise.studies.inputs import settled
from maskwise.tasks.loading import HiddenLabels, UnreadableTask, load_task
from maskwise.tasks.settings import interpolated
from maskwise.tasks.task import Task
from maskwise.text import (
    Document,
    Documents,
    load_tokenizer,
    read_documents,
    require_documents,
    train_tokenizer,
)
from maskwise.text.documents import is_source_code, longest_field
from maskwise.text.english import ENGLISH_SHARE, english_share
from maskwise.text.segmenters import unspaced
from maskwise.text.settings import CorpusSettings
from maskwise.text.source import FIELDS, LABELS, ending_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARES = (0.02, 0.05, 0.1, 0.2)
"""The shares of the documents that a first study may hold out: the least that is enough."""

LOOK_SECONDS = 5.0
LOOK_DOCUMENTS = 200_000
"""``for_some_seconds`` stops after this time or this number of documents."""

BLANK_SHARE = 0.05
"""If at least this share of characters is white space, spaces separate the words of a text."""

MOST_TRAIN_ROWS, FEWEST_TRAIN_ROWS, TRAIN_TOKENS = 200, 100, 12_000
"""Maximum and minimum number of labelled rows for fine-tuning. Between these limits, the rows have
at most ``TRAIN_TOKENS`` tokens. More rows take longer and hide the effect of pre-training. With
these limits and ``STEP_TOKENS``, six pairs of runs of the bundled encoder take about ten minutes on
two cores."""

STEP_TOKENS, SHORT_ROWS = 768, 64
"""Number of tokens per training step of a first study, and the least number of tokens per row."""

USUAL_TOKENS, FITTING_SHARE = 512, 0.99
"""Labelled rows of up to ``USUAL_TOKENS`` are not truncated. If more than 1 % of the rows are
longer, rows are truncated to the 99th percentile of the lengths, because the few longest rows would
need much memory."""
ROW_TOKENS = 128
"""A limit of this many tokens per labelled row costs nothing, because batches are padded to their
own longest row."""

START = "bundled:encoder"
"""The model from which a first study continues if the text is English."""

MOST_LETTERS, LONGEST = 40, 256
"""A text without spaces and with at most ``MOST_LETTERS`` distinct characters is a text of letters,
such as proteins: every letter is a token. Its rows have at most ``LONGEST`` tokens."""


@dataclass(frozen=True)
class TextFacts:
    """Facts about a corpus, or about its first documents.

    Attributes:
        documents: the number of documents that were read.
        whole: whether the whole corpus was read.
        characters: the number of characters in these documents.
        longest: the characters and the name of the longest of them.
        blanks: the share of characters that are white space.
        english: the share of words that are among the most frequent English words.
        unspaced: the share of letters of scripts that write no spaces between words.
        sample: the beginning of the text.
        text_field: the field that contains the text (``longest_field``).
        skipped: the number of skipped documents, keyed by reason.
    """

    documents: int
    whole: bool
    characters: int
    longest: tuple[int, str]
    blanks: float
    english: float
    unspaced: float
    sample: str
    text_field: str
    skipped: Mapping[str, int]

    @property
    def spaced(self) -> bool:
        # Short lines of Japanese or Thai have as many blanks as words of other languages.
        return self.blanks >= BLANK_SHARE and self.unspaced < 0.5

    @property
    def is_english(self) -> bool:
        return self.english >= ENGLISH_SHARE

    @property
    def is_alphabet(self) -> bool:
        beginning = self.sample[:2000]
        return not self.spaced and len({*"".join(beginning.split())}) <= MOST_LETTERS


def look_at(source: str | Documents) -> TextFacts:
    """Read a corpus for a few seconds and return facts about the text.

    Args:
        source: documents, or the name of a corpus. From a corpus, the field with the longest texts
            is read.

    Raises:
        MaskwiseError: the corpus cannot be read, or is empty.

    >>> facts = look_at("bundled:wikipedia")
    >>> facts.spaced, facts.is_english
    (True, True)
    """
    if isinstance(source, str):
        source = read_documents(source, text_field=longest_field(source))
    documents = require_documents(source)
    reading = iter(documents)
    seen = characters = 0
    text = ""
    for document in for_some_seconds(reading):
        seen += 1
        characters += len(document.text)
        # A sample of several documents is enough to recognise the language.
        if len(text) < 200_000:
            text += document.text[:20_000] + "\n"
    whole = next(reading, None) is None
    return TextFacts(
        documents=seen,
        whole=whole,
        characters=characters,
        longest=documents.longest,
        blanks=sum(char.isspace() for char in text) / max(1, len(text)),
        english=english_share(text),
        unspaced=sum(unspaced([text]).values()),
        sample=text,
        text_field=documents.fields.text,
        skipped=dict(documents.skipped),
    )


def for_some_seconds(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents for ``LOOK_SECONDS``, and at most ``LOOK_DOCUMENTS`` of them."""
    end = time.perf_counter() + LOOK_SECONDS
    for document in islice(documents, LOOK_DOCUMENTS):
        yield document
        if time.perf_counter() > end:
            break


def is_task(spec: str) -> bool:
    """Return whether a file can be read as labelled rows. Warn if a damaged place prevents it."""
    try:
        load_task(spec)
    except HiddenLabels:
        # The file has labelled rows, but their labels are hidden. The same error is raised again,
        # with its message, when the file is used as a task.
        return True
    except UnreadableTask as error:
        path = Path(local_name(spec))
        # Reading texts skips what is damaged, so a file of labels would become a text unnoticed.
        if path.is_file() and ending_of(path, LABELS):
            warnings.warn(f"{spec} is read as text, not as labels: {error}", stacklevel=2)
        return False
    except MaskwiseError:
        return False
    return True


def name_of(source: str) -> str:
    """Derive the name of a study, and of its recipe, from its corpus.

    Parts that are awkward to type or that not every file system allows are replaced.

    >>> [name_of(source) for source in ("texts/v1.2.jsonl.gz", "bundled:wikipedia", "-a\\n~b.txt")]
    ['v1.2', 'wikipedia', 'a-~b']
    >>> name_of("./a:b=c,{d}.txt")
    'a-b=c,{d}'
    """
    name = stem_of(Path(local_name(source)).name)
    name = "".join(char if char.isprintable() and char != ":" else "-" for char in name).strip(
        "-~. "
    )
    # A character has up to four bytes, and names of files at most 255.
    return name[:LONGEST_NAME] or "mine"


@dataclass(frozen=True)
class Draft:
    """A recipe that was made for files.

    Attributes:
        name: the name of the study.
        settings: nested settings.
        comments: comments to the settings, keyed by dotted name.
        head: the lines of the comment at the top.
        why: why some settings were chosen, in sentences.
    """

    name: str
    settings: Plain
    comments: Mapping[str, str]
    head: Sequence[str]
    why: Sequence[str] = field(default=())

    @cached_property
    def text(self) -> str:
        """The recipe in YAML."""
        written = commented(self.settings, self.comments, head=self.head)
        if "{seed}" in written:
            raise MaskwiseError(
                "a recipe replaces {seed} in the name of a file by the seed of a run, so that "
                "another file would be read",
                got=self.name,
                do="rename the file; or, if there is a file for each seed, name them in a recipe",
            )
        return written

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, as a command reads it from ``text``."""
        return self.read()

    def read(self, overrides: Sequence[str] = (), *, origin: str = "") -> Recipe:
        """Read the recipe with ``key=value`` overrides; ``origin`` names it in errors."""
        return recipe_of_text(
            self.text, name=self.name, origin=origin or self.name, overrides=overrides
        )


def draft_of_files(source: str, tasks: Sequence[str] = (), *, may_be_labels: bool = True) -> Draft:
    """Make the recipe of a first study for a corpus and tasks.

    Args:
        source: a corpus, as for ``read_documents``; or a file with labels, for which the recipe
            trains the bundled encoder on the bundled corpus and evaluates it on these labels.
        tasks: the tasks that evaluate checkpoints, as for ``load_task``.
        may_be_labels: whether ``source`` may be a file with labels.

    Raises:
        MaskwiseError: a corpus or a task cannot be read.
    """
    of_text = "your text"
    # Files with these extensions contain text. To try whether they contain labels would take long.
    # A compressed file has the extension of its content before ".gz".
    name = source.lower().removesuffix(".gz")
    may_be_labels = may_be_labels and Path(name).suffix not in (".txt", ".parquet", "")
    if not tasks and may_be_labels and is_task(source):
        column = longest_field(local_name(split_options(source)[0]))
        warnings.warn(
            f"{source} was read as labels, so models are trained on bundled:wikipedia; if it is "
            f"your text, name its column: {shell_word(f'corpus.text_field={column}')}",
            stacklevel=2,
        )
        tasks, source = [source], "bundled:wikipedia"
        of_text = "the bundled text, because the file was read as labels"
    # Load the tasks first, to report their errors before the long reading of a large text.
    loaded = {spec: load_task(spec) for spec in tasks}
    for spec, task in loaded.items():
        if task.kind.name == "generation":
            # The recipe trains encoders only.
            what = "a task whose answers are generated text needs an encoder–decoder"
            do = f"maskwise study intermediate corpus.source={source} tasks='[\"{spec}\"]'"
            raise MaskwiseError(what, got=spec, do=f"{do} (docs/seq2seq.md)")
    facts = look_at(source)
    study_name = name_of(source)
    english = facts.is_english and facts.spaced
    sizes = tokens_of_rows(
        loaded.values(),
        load_tokenizer(START) if english else None,
        letters=facts.is_alphabet,
    )
    fitting = fitting_tokens(sizes)
    limited = settled(_with_few_rows(spec, task, fitting) for spec, task in loaded.items())
    other = "token-30" if english else "token-40"
    arms = arms_for(["token-15", other], spaced=facts.spaced)
    corpus: Plain = {"source": source}
    if facts.text_field != "text":
        corpus["text_field"] = facts.text_field
        of_text += ", its column with the longest texts"
    settings: Plain = {
        "extends": "quick-start",
        "description": f"How much should be masked in {study_name}?",
        "corpus": corpus,
    }
    comments = dict(COMMENTS)
    if english:
        config = load_config(START)
        room = most_tokens(config)
        length = row_length(facts, least=SHORT_ROWS, room=room)
        settings["model"] = {"pretrained": START}
        training: Plain = {"steps": 80, **rates_of(weights_of(config))}
        training |= {"eval_every": 40, "save_every": 40}
        comments["training"] = "short, for a first look; use more steps afterwards"
        why = f"the text is English, so training continues from {START}"
    else:
        # A new model has as many positions as a row has tokens, also for labelled rows.
        needed = min(USUAL_TOKENS, fitting)
        room = length = row_length(facts, least=max(SHORT_ROWS, needed), room=USUAL_TOKENS)
        settings["tokenizer"] = _new_tokenizer(facts, code=is_source_code(source))
        training = {"steps": 1000}
        comments["training"] = "maskwise check estimates how many steps the model needs to learn"
        why = "the text is not English, so a small new model is trained, with a new tokenizer"
        if facts.is_alphabet:
            comments["training"] = "the report says whether more steps are needed"
            why = "a text of letters without spaces: each letter is a token of a small new model"
    corpus["length"] = length
    comments["corpus"] = f"{of_text}; tokens per row"
    share = _held_out_share(facts, length)
    if share != CorpusSettings.model_fields["held_out"].default:
        corpus["held_out"] = share
        comments["corpus"] += "; a share of the texts that is enough to judge by"
    settings |= {
        "training": {**training, "batch_size": max(4, STEP_TOKENS // length)},
        "tasks": [*limited],
        "evaluation": {"rows": 96, "masks": ["token", "whole-word"] if facts.spaced else ["token"]},
        "finetune": {"seeds": 1, "max_length": labelled_length(fitting, room)},
        "study": {
            "seeds": 6,
            "baseline": "token-15",
            "arms": arms,
            "contrasts": [[other, "token-15"]],
            "outcome": "heldout:token",
        },
    }
    if tasks:
        comments["tasks"] = "checkpoints are fine-tuned and evaluated on these tasks"
        comments["study.outcome"] += "; with longer runs, decide by scores: outcome: tasks"
    shown = f"{source}: " if facts.whole else f"{source}: at least "
    reasons = [
        f"{shown}{plural(facts.documents, 'document')}, {facts.characters:,} characters; {why}",
        f"the study compares {other} with token-15 in six pairs of runs, by held-out loss",
    ]
    large = large_part(facts.longest, facts.documents, facts.characters)
    if large:
        reasons.append(large)
    for task in map(load_task, limited):
        used = len(task.splits["train"])
        rows = f"{used:,} of {task.found or used:,} training rows"
        reasons.append(f"{task.name}: {task.kind.name}, {task.metric}, {rows}")
    head = [
        f"A study of {study_name}, written by `maskwise new`. `maskwise check` shows what the "
        "study will do.",
        "docs/studies.md explains all settings. Change them here, or on the command line: "
        "training.steps=500",
        "To tune both arms before the comparison, add to study (four times as many runs):",
        "search: {grid: {training.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3]}}",
    ]
    return Draft(study_name, settings, comments, head, reasons)


COMMENTS = {
    "model": "a small English model; a hub id or a folder also works",
    "tokenizer": "trained on this text",
    "tasks": "name a file with labels here, because held-out loss says little about the use of a "
    "model",
    "study.seeds": "runs of each arm; a decision needs at least 6",
    "study.arms": "they differ only in the ratio, so their held-out losses are comparable; losses "
    "of arms with different units are not",
    "study.contrasts": "the question; more contrasts need more runs",
    "study.outcome": "scores of short runs differ by less than their spread",
}
"""Comments that every first study has, if it has the setting."""


def new_recipe(
    texts: str,
    tasks: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    target: Path | None = None,
) -> list[str]:
    """Write a first recipe with comments.

    Args:
        texts, tasks, overrides: as for ``recipe_for``; the settings become part of the recipe.
        target: the file; by default, it is named after the text.

    Returns:
        Lines that say what was written, why, and what to do next.

    Raises:
        MaskwiseError: a file cannot be read, or ``target`` exists.
    """
    target = target or Path(f"{name_of(texts)}.yaml")
    if target.exists():
        raise MaskwiseError(f"{target} exists already", do="move this file, or edit it by hand")
    draft = _draft_for(texts, tasks, overrides)
    # An error of a setting names the setting.
    draft.read(overrides)
    changed = nest(with_overrides(layer(draft.settings), overrides))
    files = with_schema(target.name, replace(draft, settings=changed).text)
    for name, content in files.items():
        write_whole(target.with_name(name), content)
    # The name may contain spaces and brackets.
    recipe = shell_word(str(target))
    return [
        f"wrote {target}, and {SCHEMA_FILE} beside it, by which editors check it",
        *draft.why,
        f"next: maskwise check {recipe}",
        f"then: maskwise study {recipe} --out {shell_word(str(results_folder(str(target))))}",
    ]


# Choices that depend on the files, for all recipes
# ------------------------------------------------------------------------------------------------


def arms_for(names: Sequence[str], *, spaced: bool) -> dict[str, Plain]:
    """Return the settings of some ``ARMS``, for a text with or without spaces."""
    table = ARMS if spaced else UNSPACED_ARMS
    return {name: dict(table[name]) for name in names}


def rates_of(weights: float) -> Plain:
    """Return the optimiser and the learning rates with which a model is trained further.

    >>> rates_of(110e6)
    {'optimizer': 'adamw', 'learning_rate': 5e-05}
    """
    rates: Plain = {"optimizer": "adamw", "learning_rate": interpolated(int(weights), RATES)}
    if weights < MOST_FOR_MUON:
        rates |= {"optimizer": "muon", "muon_learning_rate": MUON_RATE}
    return rates


def row_length(facts: TextFacts, *, least: int, room: int) -> int:
    """Return the number of tokens per row of a text, at most the ``room`` of the model."""
    length = least
    if facts.is_alphabet:
        # A row holds a whole sequence, with its special tokens.
        sequence = math.ceil(1.2 * facts.characters / max(1, facts.documents) + 2)
        length = max(length, min(LONGEST, sequence))
    return min(_rounded(length), room)


def _held_out_share(facts: TextFacts, length: int) -> float:
    """Return the share of the documents that a first study holds out, to judge by their loss.

    Args:
        length: the number of tokens per row.
    """
    letters_per_token = 1 if facts.is_alphabet else 4
    rows = facts.characters / letters_per_token / length
    for share in HELD_OUT_SHARES:
        # A long document is many rows, but of one author or subject.
        if share * min(rows, facts.documents) >= FEW_HELD_OUT:
            break
    return share


def tokens_of_rows(
    tasks: Iterable[Task], tokenizer: PreTrainedTokenizerBase | None, *, letters: bool = False
) -> list[list[int]]:
    """Count the tokens of labelled rows, for each task in ascending order.

    Args:
        tokenizer: the tokenizer; None if it will be trained. The tokens are then estimated.
        letters: whether every letter will be a token.
    """
    sizes = []
    for task in tasks:
        if tokenizer is None:
            sizes.append(sorted(_estimated_sizes(task, letters=letters)))
        else:
            sizes.append(sorted(row_sizes(task, tokenizer)))
    return sizes


def _estimated_sizes(task: Task, *, letters: bool) -> Iterator[int]:
    """Estimate the tokens of each row."""
    tokens_per_character = 1 if letters else 0.25
    for row in task.splits["train"] or task.splits["test"]:
        text = " ".join(row.texts)
        # A word has 1.5 tokens on average, and a row has up to three special tokens.
        tokens = max(1.5 * len(text.split()), tokens_per_character * len(text)) + 3
        yield math.ceil(tokens)


def fitting_tokens(sizes: Iterable[Sequence[int]]) -> int:
    """Return a number of tokens that is enough for nearly all labelled rows of each task.

    >>> fitting_tokens([[10, 20, 400], [5]]), fitting_tokens([[100] * 199 + [3000]])
    (400, 512)

    Args:
        sizes: the numbers of tokens of the rows of each task, in ascending order.
    """
    fitting = 0
    for task in filter(None, sizes):
        most = task[math.ceil(FITTING_SHARE * (len(task) - 1))]
        fitting = max(fitting, most, min(task[-1], USUAL_TOKENS))
    return fitting


def labelled_length(fitting: int, room: int) -> int:
    """Return ``finetune.max_length`` for rows of so many tokens, and a model with some room."""
    return min(room, max(ROW_TOKENS, fitting))


def _with_few_rows(spec: str, task: Task, tokens: int) -> str:
    """Limit the training rows of a task, because a first study is short.

    Args:
        tokens: the tokens of a long row. Fine-tuning on long rows is slow.
    """
    affordable = TRAIN_TOKENS // max(1, tokens)
    rows = max(FEWEST_TRAIN_ROWS, min(MOST_TRAIN_ROWS, affordable))
    # Each class needs a row.
    wanted = max(rows, len(task.labels))
    options = split_options(spec)[1] or ""
    if len(task.splits["train"]) <= wanted or "train_rows" in options:
        return spec
    return with_options(spec, train_rows=wanted)


def _new_tokenizer(facts: TextFacts, *, code: bool) -> Plain:
    if code:
        # Word pieces have no line breaks and no indentation.
        return {"kind": "bpe", "vocab_size": 1024, "lowercase": False}
    if facts.is_alphabet:
        return {"kind": "letter", "lowercase": False}
    # Lower-casing also removes accents, which other languages than English need.
    pieces = {"kind": "wordpiece", "vocab_size": 1024, "lowercase": facts.is_english}
    if facts.spaced and _unknown(facts.sample, pieces) <= MOST_UNKNOWN:
        return pieces
    # A character of these scripts has two or three bytes, so more tokens are needed.
    return {"kind": "bpe", "vocab_size": 2048, "lowercase": facts.is_english}


def _unknown(text: str, settings: Plain) -> float:
    """Return the share of tokens of a text that are unknown to a tokenizer trained on it."""
    tokenizer = train_tokenizer([text], **settings)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids.count(tokenizer.unk_token_id) / max(1, len(ids))


def _rounded(tokens: float) -> int:
    """Round up to a multiple of 32."""
    return 32 * math.ceil(tokens / 32)


def recipe_for(subject: str, overrides: Sequence[str] = (), *, tasks: Sequence[str] = ()) -> Recipe:
    """Read a recipe. For a file with texts or labels, make its recipe first (``draft_of_files``).

    Args:
        subject: the name or path of a recipe, a corpus, or a file with labels.
        overrides: settings as ``key=value``.
        tasks: files with labels, if ``subject`` is a corpus.

    Raises:
        MaskwiseError: the subject is neither a recipe nor a readable file.
    """
    return reader_for(subject, overrides, tasks=tasks)(overrides)


def reader_for(
    subject: str, overrides: Sequence[str] = (), *, tasks: Sequence[str] = ()
) -> Callable[[Sequence[str]], Recipe]:
    """Return what reads a recipe with any overrides; the arguments are those of ``recipe_for``.

    What a file is, a text or labels, is found once, with all ``overrides``.
    """
    path = user_path(split_options(subject)[0])
    is_recipe = subject in shipped() or path.suffix.lower() in (".yaml", ".yml")
    if is_recipe or not (is_path(path) or subject.startswith(("hf:", "bundled:"))):
        if tasks:
            raise MaskwiseError(
                "a recipe names its tasks itself",
                got=tasks[0],
                do=f"set tasks='[{', '.join(tasks)}]', or check files: maskwise check TEXTS LABELS",
            )
        return partial(read_recipe, subject)
    return partial(_draft_for(subject, tasks, overrides).read, origin=f"the recipe of {subject}")


def _draft_for(source: str, tasks: Sequence[str], overrides: Sequence[str]) -> Draft:
    """Make the recipe of a first study, which overrides may tell that a file is a text."""
    given = dict(leaves(parse_overrides(overrides)))
    # The bundled text, on which labels alone are judged, has no fields that one would choose.
    names_field = any(f"corpus.{field}" in given for field in FIELDS)
    return draft_of_files(source, tasks, may_be_labels=not names_field)
