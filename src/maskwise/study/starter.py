"""A first recipe for somebody's own text and labels: short, with a comment for every choice, and
ready to run.

What is chosen depends on what the files show: English text goes on from the encoder that comes with
maskwise, any other text trains a small model from nothing; text without blanks is cut into pieces
of bytes and masked by tokens and spans. One primary contrast and six runs of each arm, because six
pairs are the fewest that can decide anything (``power.fewest_runs``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from maskwise.constants import CONTROL
from maskwise.errors import MaskwiseError
from maskwise.families import most_tokens
from maskwise.models import load_config
from maskwise.specs import split_options, with_options
from maskwise.tasks import Task, load_task
from maskwise.tasks.columns import AMONG_OTHERS
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
    end, seen, characters, sample, size = time.perf_counter() + LOOK_SECONDS, 0, 0, list[str](), 0
    whole = True
    for document in islice(documents, LOOK_DOCUMENTS):
        seen, characters = seen + 1, characters + len(document.text)
        if size < 200_000:
            sample.append(document.text[:20_000])
            size += len(sample[-1])
        if time.perf_counter() > end:
            whole = False
            break
    text = "\n".join(sample)
    words = text.lower().split()
    return TextFacts(
        documents=seen,
        whole=whole and seen < LOOK_DOCUMENTS,
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
        tasks: what judges the checkpoints, as ``load_task`` takes them.

    Raises:
        MaskwiseError: a corpus or a task that cannot be read.
    """
    if (
        not tasks
        and Path(source).suffix.lower() not in (".txt", ".gz", ".parquet", "")
        and is_task(source)
    ):
        return _written(
            "bundled:wikipedia", [source], "the bundled text, for only labels were given"
        )
    return _written(source, tasks, "your text")


def _written(source: str, specs: Sequence[str], comment: str) -> str:
    tasks = {spec: load_task(spec) for spec in specs}  # a bad table is told before the text is read
    facts = look_at(source)
    start = "bundled:encoder" if facts.is_english and facts.spaced else None
    needed = max(
        [_tokens_needed(task, letters=facts.is_alphabet) for task in tasks.values()], default=0
    )
    length = max(64, needed)
    if start:
        length = min(length, most_tokens(load_config(start)))
    if facts.is_alphabet:
        length = max(
            length, min(LONGEST, _rounded(1.2 * facts.characters / max(1, facts.documents) + 2))
        )
    arms = _arms(start)
    base, other = [*arms][:2]
    name = name_of(source)
    field = "" if facts.text_field == "text" else f" text_field: {_quoted(facts.text_field)},"
    comment += ", its column with the longest texts" if field else ""
    lines = [
        f"# A study of {name}, by `maskwise study --new`. `maskwise check` says what it "
        f"would do; every setting",
        "# is explained in docs/studies.md, and can be changed here or behind the command, "
        "as in training.steps=500.",
        "extends: quick-start",
        *(
            [f"name: {_quoted(name + '-texts')}"] if name.endswith(CONTROL) else []
        ),  # a name for studies that have a gate
        f"description: {_quoted(f'Which way to mask is better for {name}?')}",
        f"corpus: {{source: {_quoted(source)},{field} length: {length}}}   # {comment}; "
        f"tokens in a row",
    ]
    if start:
        lines += [
            f'model: {{pretrained: "{start}"}}   # small, English; a hub id or a folder will '
            f"do too",
            f"training: {{steps: 80, batch_size: {max(4, STEP_TOKENS // length)}, "
            f"learning_rate: 1.0e-3,"
            " muon_learning_rate: 5.0e-3, eval_every: 40, save_every: 40}   # a first look; "
            "take more steps afterwards",
        ]
    else:
        # which also takes away accents, as BERT does
        lower = "true" if facts.is_english else "false"
        kind = "wordpiece, vocab_size: 1024" if facts.spaced else "bpe, vocab_size: 512"
        kind, lower = ("letter", "false") if facts.is_alphabet else (kind, lower)
        why = (
            "the page says if more are needed"
            if facts.is_alphabet
            else "maskwise check says how many leave the plateau"
        )
        lines += [
            f"tokenizer: {{kind: {kind}, lowercase: {lower}}}   # trained on this text",
            f"training: {{steps: 1000, batch_size: {max(4, STEP_TOKENS // length)}}}   # {why}",
        ]
    if tasks:
        rows = max(FEWEST_TRAIN_ROWS, min(MOST_TRAIN_ROWS, TRAIN_TOKENS // max(1, needed)))
        listed = ", ".join(_quoted(_limited(spec, task, rows)) for spec, task in tasks.items())
        lines.append(f"tasks: [{listed}]   # what a checkpoint is judged by, after fine-tuning")
    else:
        lines.append(
            "tasks: []   # name a file of labels here: held-out loss alone says little of "
            "what a model is good for"
        )
    rate = "1.0e-3" if start else "3.0e-3"
    lines += [
        f"evaluation: {{rows: 96, masks: [{'token, whole-word' if facts.spaced else 'token'}]}}",
        f"finetune: {{seeds: 1, learning_rate: {rate}, max_length: "
        f"{min(length, max(needed, 32))}}}",
        "study:",
        "  seeds: 6   # runs of each arm; fewer than 6 pairs decide nothing",
        f"  baseline: {base}",
        "  arms:",
        *(f"    {arm}: {{{settings}}}" for arm, settings in arms.items()),
        f"  contrasts: [[{other}, {base}]]   # the one question; more of them need more runs",
        "  # To compare arms that are each tuned, let every seed choose (four times the runs):",
        "  # search: {grid: {training.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3]}}",
    ]
    return "\n".join(lines) + "\n"


def _arms(start: str | None) -> dict[str, str]:
    """The baseline first, then the arm that is most likely to differ from it."""
    if start:
        words = "masking.policy: whole-word, masking.ratio: 0.30"
        return {"token-15": "masking.ratio: 0.15", "words-30": words}
    return {"token-15": "masking.ratio: 0.15", "token-40": "masking.ratio: 0.40"}


def _rounded(tokens: float) -> int:
    """The next multiple of 32."""
    return int(32 * -(-tokens // 32))


def _tokens_needed(task: Task, *, letters: bool) -> int:
    """A length for 95 of 100 rows of a task, in steps of 32: 1.5 tokens a word or a quarter of its
    characters; or all of them, where every letter is a token."""
    rows = [" ".join(row.texts) for row in task.splits["train"]] or [
        " ".join(row.texts) for row in task.splits["test"]
    ]
    each = 1 if letters else 0.25
    sizes = sorted(max(1.5 * len(text.split()), each * len(text)) + 3 for text in rows)
    wanted = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
    return min(512, _rounded(wanted))


def _limited(spec: str, task: Task, rows: int) -> str:
    """The task with at most so many rows to learn from."""
    _, options = split_options(spec)
    if len(task.splits["train"]) <= rows or "train_rows" in (options or ""):
        return spec
    return with_options(spec, train_rows=rows)


def _quoted(text: str) -> str:
    """A text as YAML and JSON both quote it."""
    return json.dumps(text, ensure_ascii=False)
