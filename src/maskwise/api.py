"""Public functions that need several of the packages below. ``maskwise`` lists the homes of the
other public names.

``learn``, ``finetune`` and ``evaluate`` do what the commands of the same names do, with texts and
tables from Python. This is the only module that may import every room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

# With ``learning``, the annotator ``learned`` is known.
import maskwise.learning  # noqa: F401
from maskwise.annotate.kept import Store
from maskwise.annotate.registry import annotators
from maskwise.base.errors import tidied_warnings, whole_number
from maskwise.base.folders import OutputFolder
from maskwise.base.printing import note
from maskwise.base.signals import resumable
from maskwise.jobs.pools import require_one_process
from maskwise.text import encoding
from maskwise.text.layers import Layered
from maskwise.text.words import WordRule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from maskwise.studies.inputs import AnyRecipe, Overrides


def load(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a language model, in float32, and its tokenizer.

    No code that comes with a model is run, and pickled weights are refused.

    Args:
        name: a folder, such as a checkpoint of ``maskwise pretrain``; a name on the hub;
            ``bundled:encoder`` or ``bundled:seq2seq``, which need the package ``maskwise-data``; or
            ``package:NAME``.

    Returns:
        An encoder with its head of masked language modelling, or an encoder–decoder, in evaluation
        mode; and the tokenizer.

    Raises:
        MaskwiseError: the model or its tokenizer is not found, is damaged, or needs custom code; or
            the model is no encoder with such a head and no encoder–decoder.

    >>> model, tokenizer = load("bundled:encoder")
    >>> model.config.model_type, tokenizer.mask_token
    ('modernbert', '[MASK]')
    """
    from maskwise.models.loading import load_model
    from maskwise.text import load_tokenizer

    model = load_model(name, kind=None)
    return model, load_tokenizer(str(name), needs_mask=not model.config.is_encoder_decoder)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    split: bool = False,
    ids: Iterable[int] | None = None,
    layers: Iterable[str | Layered] = (),
    words: WordRule = "auto",
) -> list[dict[str, Any]]:
    """Encode texts as rows for a `Masker`, special tokens included.

    If a text contains the name of a special token, such as "[MASK]", the name is plain text, as in
    a corpus, and a warning says so.

    Args:
        tokenizer: a fast transformers tokenizer.
        texts: the texts; each becomes one row, or several rows with ``split``.
        max_length: the maximum number of tokens in a row, including special tokens. Longer rows are
            truncated, and a warning says which share is lost. If a word is cut, its tokens get −1
            in "word_ids" and in layers of whole numbers except ``prompt``, so that half a word is
            never masked as a word or span.
        split: whether a text that is longer than ``max_length`` (by default the tokenizer's
            ``model_max_length``) becomes several rows. Texts are cut between words, and nothing is
            lost. The first row has the text's example id, and each other row has an example id of
            its own, so that masks do not repeat.
        ids: the example ids, from which the masks are computed; by default hashes of the texts
            (`text_id`).
        layers: annotators, or their names, whose values (one per token) are added to the rows, such
            as ``salient`` and ``pos`` (both use the bundled tagger). Some annotators, such as
            ``phrases``, must read a whole corpus first. For them, run ``annotate_corpus``, and give
            ``stored("FOLDER")`` here.
        words: what a word is, as ``corpus.words`` in a recipe: ``auto``, ``spaces``, ``token``,
            ``regex:PATTERN``, or the name of a segmenter, such as ``jieba``; or a function that
            returns the words of a text. By another rule than ``auto`` and ``token``, a tokenizer
            that runs in Python reads each word alone.

    Returns:
        For each row, a dict with lists under "input_ids", "attention_mask", "word_ids" and the
        names of the layers, and an int under "example_id".

    Raises:
        MaskwiseError: the tokenizer is slow and cannot read words alone, an item of ``texts`` is
            not a string, ``ids`` and ``texts`` differ in length, ``max_length`` is missing or
            leaves no room for text, or the name of an annotator or of a word rule is unknown.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> encode(tokenizer, ["the cat"], ids=[7])[0]["word_ids"]
    [-1, 0, 1, -1]
    >>> rows = encode(tokenizer, ["the cat sat on the mat"], max_length=5, split=True)
    >>> [tokenizer.decode(row["input_ids"]) for row in rows]
    ['[CLS] the cat sat [SEP]', '[CLS] on the mat [SEP]']
    """
    texts = list(encoding.valid_texts(texts))
    makers = [each.of(texts) if isinstance(each, Store) else each for each in annotators(layers)]
    return encoding.encode(
        tokenizer, texts, max_length=max_length, split=split, ids=ids, layers=makers, words=words
    )


def annotate_rows(
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
    split: bool = False,
    layers: Iterable[str | Layered] = (),
    words: WordRule = "auto",
) -> dict[str, Any]:
    """Add "word_ids", "example_id" and annotation layers to a batch, for ``datasets.map``.

    The batch may be a list of rows or, as without ``batched=True``, a single row. A row may be a
    line of text, or a block of fixed length that was cut from concatenated texts, as in
    transformers' run_mlm script. If two blocks contain parts of one word, each part counts as a
    word. A batch without "input_ids" is encoded first.

    Args:
        batch: the columns, keyed by name. "input_ids" is a list of rows of token ids, or a single
            row if the batch is one example.
        tokenizer: the fast tokenizer that made the rows.
        text_field: the column of texts, used if there is no "input_ids".
        max_length: as in ``encode``. Rows of tokens are not cut, so if one of them is longer, an
            error is raised.
        split: as in ``encode``, for a batch of texts. The values of other columns are repeated for
            each row of a text. ``datasets.map`` then needs ``remove_columns=[text_field]``.
        layers: as in ``encode``. For token ids, annotators read the decoded text. An uncased
            tokenizer loses capitals, so annotators find fewer names there than in the texts.
        words: as in ``encode``, for a batch of texts.

    Returns:
        All columns of the batch except its texts; also "word_ids" (as long as the row, −1 for no
        word) and "example_id" (a hash of the row's text or tokens; masks are computed from it). The
        batch's own "example_id" is kept, and so are its "word_ids" beside "input_ids".

    Raises:
        MaskwiseError: the batch has neither "input_ids" nor texts, rows are not token ids, the
            tokenizer is slow, or the name of an annotator is unknown.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> rows = annotate_rows({"input_ids": tokenizer(["the cat", "mat"])["input_ids"]}, tokenizer)
    >>> rows["word_ids"]
    [[-1, 0, 1, -1], [-1, 0, -1]]
    """
    return encoding.annotate_rows(
        batch,
        tokenizer,
        text_field=text_field,
        max_length=max_length,
        split=split,
        layers=annotators(layers),
        words=words,
    )


@resumable(note)
@tidied_warnings()
def learn(
    recipe: AnyRecipe,
    *,
    out: str | Path,
    texts: object = None,
    tasks: object = None,
    overrides: Overrides = (),
    processes: int = 1,
) -> dict[str, Any]:
    """Learn a masking policy from a task (``maskwise learn``).

    Args:
        recipe: as for ``maskwise.study``; it has a section ``learning``.
        out: the folder of the policy.
        texts, tasks, overrides: as for ``maskwise.study``.
        processes: the number of processes to start that learn the policy together, each on a GPU or
            core of its own.

    Returns:
        What was measured, and "policy", the folder for the policy ``learned(FOLDER)`` of a recipe.

    Raises:
        MaskwiseError: as for ``maskwise.study``.

    >>> learn("learn-supervised", out="runs/policy")["policy"]  # doctest: +SKIP
    'runs/policy/policy'
    """
    from maskwise.recipe import read_recipe
    from maskwise.studies.inputs import kept_if_begun, overrides_of
    from maskwise.studies.single import inputs_of_policy, run_learn, with_own_seed
    from maskwise.studies.unread import read_used

    processes = whole_number("processes", processes, least=1)
    out = Path(out)
    with kept_if_begun(OutputFolder(out, "learn")):
        whole = read_used(
            partial(read_recipe, recipe),
            overrides_of(overrides, texts, tasks, out),
            content=lambda each: inputs_of_policy(with_own_seed(each)),
            command="learn",
        )
        return run_learn(whole, out, processes=processes)


@resumable(note)
@tidied_warnings()
def finetune(
    model: str | Path,
    tasks: object,
    *,
    out: str | Path,
    runs: int | None = None,
    overrides: Overrides = (),
    processes: int = 1,
) -> list[dict[str, Any]]:
    """Fine-tune a checkpoint on tasks, and evaluate it on their test sets (``maskwise finetune``).

    Args:
        model: the folder or hub id of a checkpoint.
        tasks: as for ``maskwise.study``.
        out: the folder of the fine-tuned models. The same call resumes an interrupted one.
        runs: the number of fine-tuning runs per task, by default 3. Tasks that keep the encoder
            frozen run once.
        overrides: settings such as ``{"learning_rate": 1e-3}``, or ``["learning_rate=1e-3"]``.
        processes: the number of runs that are fine-tuned at once, each in one process. In `learn`,
            `maskwise.study` and `maskwise.adapt`, processes train one model together.

    Returns:
        One dict for each task: ``score`` is the mean over runs, ``fine_tuning`` the score of each
        run, and ``others`` has further metrics.

    Raises:
        MaskwiseError: the checkpoint or a task does not exist, a setting is unknown, the model
            cannot learn a task, or ``out`` has other results.

    >>> finetune("bundled:encoder", ["banking77"], out="runs/judged")  # doctest: +SKIP
    """
    from maskwise.studies.inputs import kept_if_begun, overrides_of, task_specs
    from maskwise.studies.single import run_finetune

    require_one_process()
    processes = whole_number("processes", processes, least=1)
    if runs is not None:
        whole_number("runs", runs, least=1)
    out = Path(out)
    with kept_if_begun(OutputFolder(out, "finetune")):
        changes = overrides_of(overrides, None, None, out)
        specs = task_specs(tasks, out)
        records = run_finetune(str(model), specs, changes, seeds=runs, processes=processes, out=out)
    return [dict(record) for record in records]


@tidied_warnings()
def evaluate(
    model: str | Path,
    measures: Sequence[str] = (),
    *,
    texts: object = None,
    text_field: str = "text",
) -> list[dict[str, Any]]:
    """Measure a checkpoint without fine-tuning (``maskwise evaluate``).

    Args:
        model: the folder or hub id of a masked language model.
        measures: such as "pairs('bundled:pairs')", "cloze('FILE')", "bound(8)" and "heldout".
        texts: text that the model was not trained on, for the held-out loss and the like:
            the path of a file or another source, texts, dicts, a data frame or a dataset.
        text_field: the field of the texts in a file, in dicts or in a table.

    Returns:
        One dict for each number, as in records.jsonl; ``pandas.DataFrame`` makes a table of them.
        Of a held-out loss, the dict with ``split`` "unigram" is that of word frequencies alone.

    Raises:
        MaskwiseError: there is nothing to measure, or an input cannot be read.

    >>> evaluate("bundled:encoder", texts=["Curie was born in Warsaw."] * 9)[0]["kind"]
    'heldout'
    """
    from maskwise.evaluation.evaluate import evaluate_checkpoint
    from maskwise.studies.inputs import text_source

    with TemporaryDirectory() as folder:
        source = None if texts is None else text_source(texts, Path(folder))
        rows = evaluate_checkpoint(str(model), measures, text=source, text_field=text_field)
    return [row.line() for row in rows]
