"""Public functions that need several rooms of the package. The package lists the homes of the other
public names.

This is the only module that may import every room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

# With ``learning``, the annotator ``learned`` is known.
import maskwise.learning  # noqa: F401
from maskwise.annotate.registry import annotators
from maskwise.text import encoding
from maskwise.text.layers import Layered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    split: bool = False,
    ids: Iterable[int] | None = None,
    layers: Iterable[str | Layered] = (),
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

    Returns:
        For each row, a dict with lists under "input_ids", "attention_mask", "word_ids" and the
        names of the layers, and an int under "example_id".

    Raises:
        MaskwiseError: the tokenizer is slow, an item of ``texts`` is not a string, ``ids`` and
            ``texts`` differ in length, ``max_length`` is missing or leaves no room for text, or the
            name of an annotator is unknown.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> encode(tokenizer, ["the cat"], ids=[7])[0]["word_ids"]
    [-1, 0, 1, -1]
    >>> rows = encode(tokenizer, ["the cat sat on the mat"], max_length=5, split=True)
    >>> [tokenizer.decode(row["input_ids"]) for row in rows]
    ['[CLS] the cat sat [SEP]', '[CLS] on the mat [SEP]']
    """
    makers = annotators(layers)
    return encoding.encode(
        tokenizer, texts, max_length=max_length, split=split, ids=ids, layers=makers
    )


def annotate_rows(
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
    split: bool = False,
    layers: Iterable[str | Layered] = (),
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
    )
