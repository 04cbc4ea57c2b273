"""A first recipe for somebody's own text and labels: short, with a comment for every choice, and
ready to run.

What is chosen depends on what the files show: English text goes on from the encoder that comes with
maskwise, any other text trains a small model from nothing; text without blanks is cut into pieces
of bytes and masked by tokens and spans. One primary contrast and six runs of each arm, because six
pairs are the fewest that can decide anything (``power.fewest_runs``).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from jinja2 import Environment, PackageLoader

from maskwise.constants import CONTROL
from maskwise.errors import MaskwiseError
from maskwise.families import most_tokens
from maskwise.models import load_config
from maskwise.recipe import Recipe, read_recipe, shipped
from maskwise.specs import split_options, with_options
from maskwise.tasks import Task, load_task
from maskwise.tasks.columns import AMONG_OTHERS
from maskwise.tasks.loading import HiddenLabels
from maskwise.text import Documents, read_documents, require_documents
from maskwise.text.documents import longest_field

LOOK_SECONDS = 5.0
LOOK_DOCUMENTS = 200_000
"""How long, and at how many documents, a corpus is looked at before a recipe is written for it."""

ENGLISH = frozenset(
    ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "with", "by", "this")
)
ENGLISH_SHARE = 0.15
"""Share of such words among all: English prose has .2 to .35, other languages below .05."""

BLANK_SHARE = 0.05
"""Below this share of white space a text is not written in words."""

MOST_TRAIN_ROWS, FEWEST_TRAIN_ROWS, TRAIN_TOKENS = 200, 100, 12_000
"""Labelled rows that a first study learns from, fewer where they are long; more take longer, and
blur what pre-training is worth. With these and ``STEP_TOKENS`` six pairs of the shipped encoder
take some ten minutes on two cores.
"""

STEP_TOKENS = 768
"""Tokens that a model reads in a step of a first study."""

MOST_LETTERS, LONGEST = 40, 256
"""A text without blanks that has no more characters than this is a sequence of letters, such as a
protein; and how many of them a row holds at most."""


@dataclass(frozen=True)
class TextFacts:
    """What a look at a corpus shows.

    Attributes:
        documents: how many there are, or were seen until the time was over.
        whole: whether all of the corpus was seen.
        characters: of the documents that were seen.
        blanks: share of white space.
        english: share of the commonest English words.
        sample: the beginning of the text.
        text_field: where the text is: ``longest_field``.
        skipped: reason → count of what was left out of what was seen.
    """

    documents: int
    whole: bool
    characters: int
    blanks: float
    english: float
    sample: str
    text_field: str
    skipped: Mapping[str, int]

    @property
    def spaced(self) -> bool:
        return self.blanks >= BLANK_SHARE

    @property
    def is_english(self) -> bool:
        return self.english >= ENGLISH_SHARE

    @property
    def is_alphabet(self) -> bool:
        return not self.spaced and len({*"".join(self.sample.split())}) <= MOST_LETTERS


def look_at(source: str | Documents) -> TextFacts:
    """Read a corpus for some seconds; of a source, the field with the longest texts.

    Raises:
        MaskwiseError: it cannot be read, or holds no document.

    >>> facts = look_at("bundled:wikipedia")
    >>> facts.spaced, facts.is_english
    (True, True)
    """
    if isinstance(source, str):
        source = read_documents(source, text_field=longest_field(source))
    documents = require_documents(source)
    end = time.perf_counter() + LOOK_SECONDS
    seen = characters = 0
    text = ""
    for document in islice(documents, LOOK_DOCUMENTS):
        seen += 1
        characters += len(document.text)
        if len(text) < 200_000:
            text += document.text[:20_000] + "\n"
        if time.perf_counter() > end:
            break
    late = time.perf_counter() > end or seen == LOOK_DOCUMENTS
    words = text.lower().split()
    return TextFacts(
        documents=seen,
        whole=not late,
        characters=characters,
        blanks=sum(char.isspace() for char in text) / max(1, len(text)),
        english=sum(word in ENGLISH for word in words) / max(1, len(words)),
        sample=text[:2000],
        text_field=documents.fields.text,
        skipped=dict(documents.skipped),
    )


def is_task(spec: str) -> bool:
    """Whether a file holds labelled rows; of a file that may be both text and labels, the labels
    count, unless they would have to be guessed among several columns."""
    try:
        return not any(note.endswith(AMONG_OTHERS) for note in load_task(spec).notes)
    except HiddenLabels:
        # A file of labels nonetheless: loading it as a task says that they are hidden.
        return True
    except MaskwiseError:
        return False


def name_of(source: str) -> str:
    """The name of the study of a corpus.

    >>> [name_of(source) for source in ("texts/mine.jsonl.gz", "bundled:wikipedia")]
    ['mine', 'wikipedia']
    """
    return Path(source.rpartition(":")[2]).name.split(".")[0] or "mine"


def starter(source: str, tasks: Sequence[str] = ()) -> str:
    """The text of a recipe for a corpus and tasks.

    Args:
        source: a corpus, as ``read_documents`` takes it; or a file of labels, whose model then
            comes from the shipped encoder and whose corpus is the bundled one.
        tasks: what evaluates the checkpoints, as ``load_task`` takes them.

    Raises:
        MaskwiseError: a corpus or a task that cannot be read.
    """
    comment = "your text"
    # Reading a large text as labels would take long, and its suffix says enough.
    may_be_labels = Path(source).suffix.lower() not in (".txt", ".gz", ".parquet", "")
    if not tasks and may_be_labels and is_task(source):
        tasks, source = [source], "bundled:wikipedia"
        comment = "the bundled text, for only labels were given"
    loaded = {
        spec: load_task(spec) for spec in tasks
    }  # a bad table is told before the text is read
    facts = look_at(source)
    letters = facts.is_alphabet
    start = "bundled:encoder" if facts.is_english and facts.spaced else None
    needed = max([_tokens_needed(task, letters=letters) for task in loaded.values()], default=0)
    length = max(64, needed)
    if start:
        length = min(length, most_tokens(load_config(start)))
    tokenizer = "wordpiece, vocab_size: 1024" if facts.spaced else "bpe, vocab_size: 512"
    if letters:
        tokenizer = "letter"
        wanted = 1.2 * facts.characters / max(1, facts.documents) + 2
        length = max(length, min(LONGEST, _rounded(wanted)))
    if facts.text_field != "text":
        comment += ", its column with the longest texts"
    name = name_of(source)
    # Long rows are slow to fine-tune on, so fewer of them are enough for a first look.
    rows = max(FEWEST_TRAIN_ROWS, min(MOST_TRAIN_ROWS, TRAIN_TOKENS // max(1, needed)))
    environment = Environment(loader=PackageLoader("maskwise", "study"), keep_trailing_newline=True)
    environment.filters["quoted"] = partial(json.dumps, ensure_ascii=False)  # as YAML quotes, too
    return environment.get_template("starter.yaml.j2").render(
        name=name,
        name_is_taken=name.endswith(CONTROL),  # of studies that have a gate
        source=source,
        field=facts.text_field,
        length=length,
        comment=comment,
        start=start,
        batch_size=max(4, STEP_TOKENS // length),
        tokenizer=tokenizer,
        lowercase=facts.is_english and not letters,  # which also takes away accents, as BERT does
        letters=letters,
        spaced=facts.spaced,
        tasks=[_limited(spec, task, rows) for spec, task in loaded.items()],
        max_length=min(length, max(needed, 32)),
    )


def _rounded(tokens: float) -> int:
    """The next multiple of 32."""
    return int(32 * -(-tokens // 32))


def _tokens_needed(task: Task, *, letters: bool) -> int:
    """A length for 95 of 100 rows of a task, in steps of 32: 1.5 tokens a word or a quarter of its
    characters; or all of them, where every letter is a token."""
    share = 1 if letters else 0.25
    sizes = []
    for row in task.splits["train"] or task.splits["test"]:
        text = " ".join(row.texts)
        sizes.append(max(1.5 * len(text.split()), share * len(text)) + 3)
    sizes.sort()
    wanted = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
    return min(512, _rounded(wanted))


def _limited(spec: str, task: Task, rows: int) -> str:
    """The task with at most so many rows to learn from."""
    _, options = split_options(spec)
    if len(task.splits["train"]) <= rows or "train_rows" in (options or ""):
        return spec
    return with_options(spec, train_rows=rows)


def recipe_for(subject: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, or write one for a file of texts or labels as ``maskwise study --new`` does.

    Raises:
        MaskwiseError: neither a recipe nor a file that can be read.
    """
    path = Path(split_options(subject)[0])
    is_recipe = subject in shipped() or path.suffix.lower() in (".yaml", ".yml")
    if is_recipe or not (path.exists() or subject.startswith(("hf:", "bundled:"))):
        return read_recipe(subject, overrides)
    with tempfile.TemporaryDirectory(prefix="maskwise-") as folder:
        written = Path(folder) / f"{name_of(subject)}.yaml"
        written.write_text(starter(subject), encoding="utf-8")
        return read_recipe(written, overrides)
