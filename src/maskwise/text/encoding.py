"""Make rows for a ``Masker``, which needs token ids, word ids and example ids.

``encode`` makes rows from texts. ``annotate_rows`` makes rows from token ids, such as the blocks of
transformers' run_mlm script. It decodes the tokens, and finds words in the decoded text by the same
rules as in texts.

For texts, almost all time is spent in the tokenizer. For token ids, the cost is one look-up per
token and a few array operations per row.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.base.errors import MaskwiseError, Truncated, whole_number
from maskwise.masking.arrays import flags, whole_numbers
from maskwise.masking.segments import Array, owners
from maskwise.masking.vocabulary import pad_has_role
from maskwise.text.documents import Document
from maskwise.text.layers import (
    Columns,
    Fitted,
    Layered,
    Together,
    align,
    token_layers,
)
from maskwise.text.opening import valid_texts
from maskwise.text.pieces import borders, starts_of, tokenise
from maskwise.text.tokenizers import dna_note, fast_esm, is_esm
from maskwise.text.words import (
    CodePoints,
    Ints,
    WordRule,
    codes_of,
    flat_offsets,
    piece_id,
    ready_rule,
    require_offsets,
    special_ids,
    special_names,
    text_id,
    texts_with,
    tokenised_by_words,
    tokenizing,
    tokens_id,
    words_of_tokens,
)

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

LONGEST_USUAL_WORD = 40
"""If most tokens are in words of more tokens than this, the text seems to have no words, like
proteins."""
LONGEST_MODEL = 1 << 24
"""transformers writes a much larger number if a tokenizer has no maximum length."""
MOST_UNKNOWN = 0.5
"""Share of unknown tokens above which the tokenizer probably lacks the alphabet of the text."""


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    split: bool = False,
    ids: Iterable[int] | None = None,
    layers: Iterable[Layered] = (),
    words: WordRule = "auto",
) -> list[dict[str, Any]]:
    """Encode texts as rows for a `Masker`. `maskwise.encode`, which also takes the names of
    annotators, describes the arguments.
    """
    made = _encoded(tokenizer, texts, max_length, split, ids, layers, words)
    return [row for rows in made for row in rows]


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    max_length: int | None,
    split: bool,
    ids: Iterable[int] | None,
    layers: Iterable[Layered],
    words: WordRule,
) -> list[list[dict[str, Any]]]:
    """Return the rows of each text. The arguments are those of ``encode``."""
    rule = ready_rule(words)
    texts = list(valid_texts(texts))
    annotators = _fitted(layers)
    tokenizer = _readable(tokenizer, rule, layers=bool(annotators))
    if max_length is not None:
        max_length = whole_number("max_length", max_length, least=1)
    if not isinstance(split, bool | np.bool_):
        raise MaskwiseError("split is not valid", got=split, allowed="True or False")
    if ids is None:
        # Equal texts have equal ids, and therefore equal masks.
        names = list(map(text_id, texts))
    else:
        given = list(ids) if isinstance(ids, Iterator | range) else ids
        names = whole_numbers("ids", given, shape=(len(texts),), wraps=True).tolist()
    if not texts:
        return []
    if split and max_length is None:
        max_length = _longest_row(tokenizer)
    sizes, columns = _tokens_of(texts, tokenizer, annotators, rule)
    before, after = _frame(tokenizer, texts, sizes)
    lengths = sizes + len(before) + len(after)
    if max_length is None:
        _warn_of_longer(lengths, tokenizer.model_max_length)
    _warn_of_texts(tokenizer, texts, sizes, columns)
    room = int(sizes.max(initial=1))
    if max_length is not None and (lengths > max_length).any():
        room = max_length - len(before) - len(after)
        if room < 1:
            raise MaskwiseError(
                "max_length leaves no room for text",
                got=max_length,
                allowed=f"> {len(before) + len(after)}",
            )
    parts, halved = _parts(columns["word_ids"], sizes, room, split)
    # Half a word must never be masked as a word or span. Tokens of a prompt must stay visible.
    for column, values in columns.items():
        if values.dtype.kind == "i" and column not in ("prompt", "input_ids"):
            columns[column] = np.where(halved, -1, values)
    made = []
    for name, start, part in zip(names, (sizes.cumsum() - sizes).tolist(), parts):
        rows = []
        for begin, end in part:
            row = _row(piece_id(name, begin - start), columns, slice(begin, end), before, after)
            rows.append(row)
        made.append(rows)
    _warn_of_cuts(sizes, parts, max_length)
    return made


def _longest_row(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens of a row for the model of this tokenizer.

    Raises:
        MaskwiseError: the tokenizer does not know it.
    """
    most = int(tokenizer.model_max_length)
    if most > LONGEST_MODEL:
        raise MaskwiseError(
            "split needs the length of a row, because this tokenizer has no model_max_length",
            do="pass max_length=…",
        )
    return most


def _tokens_of(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    annotators: Sequence[Layered],
    rule: WordRule,
) -> tuple[Ints, Columns]:
    """Return the number of tokens of each text (N,), and the columns of all tokens, (T,) each."""
    documents = [Document("", text) for text in texts]
    read = partial(_encodings, tokenizer, framed=False) if tokenizer.is_fast else None
    together = Together(annotators) if annotators else None
    fast: Any = tokenizer
    tokens = [*tokenise(documents, fast, layers=together, words=rule, encode=read)]
    sizes = np.concatenate([batch.lengths for batch in tokens])
    columns = {
        name: np.concatenate([batch.columns[name] for batch in tokens])
        for name in tokens[0].columns
    }
    return sizes, columns


def _warn_of_longer(lengths: Ints, limit: int) -> None:
    """Warn of rows (N,) that are longer than what the model reads, and are not cut."""
    longer = int((lengths > limit).sum())
    if longer:
        _warn(
            f"{longer:,} of {len(lengths):,} texts are longer than the model's {limit:,} tokens "
            f"and were not cut; pass max_length={limit}, and split=True to lose nothing"
        )


def _warn_of_cuts(
    sizes: Ints, parts: Sequence[Sequence[tuple[int, int]]], max_length: int | None
) -> None:
    """Warn of texts of N sizes of whose tokens some are in no row."""
    lost = sizes - [sum(end - begin for begin, end in part) for part in parts]
    if lost.any():
        _warn(
            f"{(lost > 0).sum():,} of {len(sizes):,} texts were cut to {max_length:,} tokens, and "
            f"{lost.sum() / sizes.sum():.0%} of all tokens are lost; pass split=True (through "
            "map: fn_kwargs={'split': True}) to get rows for the whole texts",
            Truncated,
        )


def _warn_of_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sizes: Ints, columns: Columns
) -> None:
    """Warn of texts that the tokenizer seems not to be made for.

    Args:
        tokenizer: the tokenizer.
        texts: the texts.
        sizes: (N,) the number of tokens of each text.
        columns: the tokens of all texts, and their words.
    """
    # Each text has words 0, 1, …. The number of the text, in the upper bits, makes them distinct.
    words = columns["word_ids"]
    apart = np.where(words < 0, -1, words + (owners(sizes) << 32))
    _warn_of_letters(columns["input_ids"], apart, tokenizer.unk_token_id)
    note = dna_note(tokenizer, texts)
    if note:
        _warn(note)
    control = [name for name in special_names(tokenizer) if texts_with([name], texts)]
    if control:
        _warn(
            f"{texts_with(control, texts):,} of {len(texts):,} texts contain {', '.join(control)}, "
            "which is read as plain text and not as a special token"
        )


def _parts(
    words: Ints, sizes: Ints, room: int, split: bool
) -> tuple[list[list[tuple[int, int]]], Array]:
    """Cut N texts with T tokens into rows of at most ``room`` tokens: between words or, without
    ``split``, anywhere, and the rest is left out.

    Returns:
        For each text, the begin and the end of each row; and the tokens (T,) of words that are not
        whole in their row.
    """
    kept, border_T, _ = borders(words, sizes, room)
    halved = (words >= 0) & (kept < 0)
    parts = []
    end = 0
    for size in sizes.tolist():
        start, end = end, end + size
        stop = start + room
        if split or stop >= end:
            cuts = [*starts_of(border_T, start, end, room), end]
            parts.append([*pairwise(cuts)] or [(start, end)])
        else:
            parts.append([(start, stop)])
            # If the first token that is left out continues a word, this word is cut.
            halved[start:end] = (words[start:end] >= 0) & (words[start:end] == words[stop])
    return parts, halved


def _frame(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sizes: Ints
) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after each of these texts of N sizes."""
    # One of the shortest texts with tokens shows them.
    text = texts[int(np.where(sizes > 0, sizes, sizes.max() + 1).argmin())]
    if tokenizer.is_fast:
        [encoding] = _encodings(tokenizer, [text])
        ids, added = encoding.ids, encoding.special_tokens_mask
    else:
        read: Any = tokenizer
        content = read(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = read.build_inputs_with_special_tokens(content)
        added = read.get_special_tokens_mask(content)
        if len(ids) != len(added):
            raise MaskwiseError(
                f"{type(tokenizer).__name__} says of other tokens which of them are special",
                got=f"{len(ids)} tokens with special tokens, and "
                f"get_special_tokens_mask of {len(added)}",
                do="define its get_special_tokens_mask as its build_inputs_with_special_tokens",
            )
    if 0 not in added:
        return ids, []
    first = added.index(0)
    return ids[:first], ids[len(added) - added[::-1].index(0) :]


def _encodings(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, framed: bool = True
) -> Sequence[Encoding]:
    """Tokenise texts, with their special tokens if ``framed``."""
    with tokenizing():
        return tokenizer(
            texts,
            add_special_tokens=framed,
            truncation=False,
            padding=False,
            verbose=False,
            # If a text contains the name of a special token, the name is plain text.
            split_special_tokens=True,
        ).encodings


def token_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> Ints:
    """Return the character offsets (L, 2) of the tokens of a text, as ``encode`` makes them."""
    offsets, _ = flat_offsets(_encodings(_fast(tokenizer), [text]))
    return offsets


def places_of_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, content: Array, *, words: WordRule
) -> list[tuple[int, int]]:
    """Return the places (L, 2) of the tokens of a row in its text, for a slow tokenizer.

    The tokens of a word share its characters in order: as they are written, or else equally.

    Args:
        content: (L,) true for tokens of the text, and not for special tokens.
        words: the rule by which ``encode`` made the row.
    """
    rule = ready_rule(words)
    if rule == "token":
        return [(0, 0)] * len(content)
    tokens, spans, _ = tokenised_by_words(tokenizer, [text], rule)
    names: Any = tokenizer.convert_ids_to_tokens(tokens.tolist())
    found: list[tuple[int, int]] = []
    for (start, stop), group in groupby(zip(spans.tolist(), names), itemgetter(0)):
        sizes = [len(name.removeprefix("##")) for _, name in group]
        part = text[start:stop]
        begin = start + len(part) - len(part.lstrip())
        size = len(part.strip())
        ends = np.cumsum(sizes)
        # The names of the tokens are not what is written, such as after a change to lower case.
        if ends[-1] != size:
            ends = (np.arange(1, len(sizes) + 1) * size) // len(sizes)
        found += pairwise([begin, *(begin + ends).tolist()])
    places = np.zeros((len(content), 2), np.int64)
    kept = np.flatnonzero(content)
    # The row may have been cut.
    places[kept] = np.array(found, np.int64).reshape(-1, 2)[: len(kept)]
    return [(int(start), int(stop)) for start, stop in places]


def _warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn the caller of this package."""
    place = 2
    frame = sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame = frame.f_back
        place += 1
    warnings.warn(message, category, stacklevel=place)


def _row(
    name: int, columns: Columns, part: slice, before: list[int], after: list[int]
) -> dict[str, Any]:
    """Return the row of a part of a text, with lists under the names of the columns."""
    ids = [*before, *columns["input_ids"][part].tolist(), *after]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids), "example_id": name}
    for column, values in columns.items():
        if column == "input_ids":
            continue
        inside = values[part]
        if column == "word_ids":
            # Words are numbered from 0 in each row.
            found = inside[inside >= 0]
            inside = np.where(inside >= 0, inside - found.min(initial=found.max(initial=0)), -1)
        none = 0.0 if values.dtype.kind == "f" else -1
        row[column] = [none] * len(before) + inside.tolist() + [none] * len(after)
    return row


def _fitted(layers: Iterable[Layered]) -> list[Layered]:
    """Return the annotators of the layers as a list.

    Raises:
        MaskwiseError: an annotator must read a whole corpus first.
    """
    annotators = list(layers)
    for each in annotators:
        if isinstance(each, Fitted) and not each.fitted:
            do = (
                "maskwise.annotate.run.annotate_corpus(FILE, [NAME], FOLDER), and then "
                """layers=['stored("FOLDER")']"""
            )
            raise MaskwiseError(
                "this annotator must read a whole corpus first",
                got=each.name,
                do=f"layers=[{each.spec!r}]" if hasattr(each, "spec") else do,
            )
    return annotators


def _readable(
    tokenizer: PreTrainedTokenizerBase, rule: WordRule, *, layers: bool
) -> PreTrainedTokenizerBase:
    """Return a fast tokenizer, or a slow one that can read the words of this rule one by one."""
    slow = isinstance(getattr(tokenizer, "is_fast", None), bool) and not tokenizer.is_fast
    if slow and rule != "auto" and hasattr(tokenizer, "tokenize") and not is_esm(tokenizer):
        require_offsets(tokenizer, layers=layers, words=rule)
        return tokenizer
    return _fast(tokenizer)


def _fast(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer if it is fast; convert ESM's slow tokenizer.

    Raises:
        MaskwiseError: the tokenizer has no character offsets, which are needed to find words.
    """
    if is_esm(tokenizer):
        return fast_esm(tokenizer)
    # A tokenizer class, passed by mistake, has an ``is_fast`` that is always true: the property
    # object.
    is_fast = hasattr(tokenizer, "is_fast") and tokenizer.is_fast
    if not isinstance(tokenizer, type) and not is_fast and hasattr(tokenizer, "all_special_ids"):
        raise MaskwiseError(
            "this tokenizer runs in Python and gives no offsets, by which words are found",
            got=type(tokenizer).__name__,
            do="pass words='spaces', or a segmenter such as words='jieba', so that it reads each "
            "word alone, or words='token' for single tokens; or make the rows yourself: "
            "{'input_ids': tokenizer(text)['input_ids'], 'example_id': NUMBER}, with 'word_ids' of "
            "your own for words",
        )
    if isinstance(tokenizer, type) or not is_fast:
        raise MaskwiseError(
            "a fast tokenizer is needed, because words are found by its character offsets",
            got=repr(tokenizer)[:60],
            do="load one: transformers.AutoTokenizer.from_pretrained(NAME)",
        )
    return tokenizer


def _warn_of_letters(tokens: Array, words: Array, unknown: int | None) -> None:
    """Warn if most tokens are unknown, or if most tokens are in very long words."""
    unknown_tokens = int((tokens == unknown).sum())
    if unknown_tokens > MOST_UNKNOWN * len(tokens):
        share = unknown_tokens / len(tokens)
        _warn(
            f"{share:.0%} of the tokens are unknown to the tokenizer and never masked; does the "
            "tokenizer expect another alphabet, or upper or lower case?"
        )
    starts = np.flatnonzero(np.diff(words, prepend=-2))
    sizes = np.diff(starts, append=len(words))
    long = sizes[(sizes > LONGEST_USUAL_WORD) & (words[starts] >= 0)].sum()
    if long > len(words) / 2:
        _warn(
            f"most tokens are in words of more than {LONGEST_USUAL_WORD} tokens, so the text "
            "seems to have no words, as proteins and DNA; policies token and span(over='token') "
            "need none"
        )


def annotate_rows(
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
    split: bool = False,
    layers: Iterable[Layered] = (),
    words: WordRule = "auto",
) -> dict[str, Any]:
    """Add word ids, example ids and layers to a batch. `maskwise.annotate_rows`, which also takes
    the names of annotators, describes the arguments.
    """
    if not isinstance(batch, Mapping):
        raise MaskwiseError("a batch must be a dict of columns", got=type(batch).__name__)
    if not isinstance(text_field, str):
        raise MaskwiseError("text_field must be the name of a column", got=text_field)
    # For each row, the number of its text.
    source: list[int] = []
    if "input_ids" in batch:
        if max_length is not None:
            max_length = whole_number("max_length", max_length, least=1)
        if ready_rule(words) != "auto":
            raise MaskwiseError(
                "words are found in texts, but these rows are tokens already",
                got=f"words={words!r}",
                do="pass the texts and no input_ids",
            )
        surfaces = Surfaces(tokenizer)
        rows, alone = _rows_of_ids(batch["input_ids"])
        if not isinstance(split, bool | np.bool_):
            raise MaskwiseError("split is not valid", got=split, allowed="True or False")
        if split or (max_length is not None and max(map(len, rows), default=0) > max_length):
            raise MaskwiseError(
                "max_length and split are for texts, but these rows are tokens already",
                got=f"a row of {max(map(len, rows), default=0):,} tokens",
                do="cut the rows before, or pass the texts and no input_ids",
            )
        annotators = _fitted(layers)
        if not alone:
            _require_rows(batch, len(rows))
        offsets = _rows_of_offsets(batch.get("offset_mapping"), rows, alone=alone)
        present = _rows_of_present(batch.get("attention_mask"), rows, tokenizer, alone=alone)
        made = [
            surfaces.annotate(row, annotators, spans, tokens)
            for row, spans, tokens in zip(rows, offsets, present, strict=True)
        ]
        if surfaces.guessed:
            _warn(
                f"{surfaces.guessed:,} tokens follow or are tokens that were added to the "
                "tokenizer, and ids do not show whether a space is between them, so their words "
                "are guessed; keep the column offset_mapping (return_offsets_mapping=True), or "
                "pass texts"
            )
        # datasets.map needs the same columns in every batch, even in an empty batch.
        names = [name for name in ("word_ids", "example_id") if batch.get(name) is None]
        for maker in annotators:
            names += token_layers(maker.layers)
    elif text_field in batch:
        texts = batch[text_field]
        alone = isinstance(texts, str)
        if alone:
            texts = [texts]
        names_of_texts = batch.get("example_id")
        if alone and names_of_texts is not None:
            names_of_texts = [names_of_texts]
        parts = _encoded(tokenizer, texts, max_length, split, names_of_texts, layers, words)
        if not alone:
            _require_rows(batch, len(parts))
        if alone and split:
            raise MaskwiseError(
                "one text cannot become several rows of an unbatched map",
                do="pass batched=True to datasets.map, or a list of texts",
            )
        made = [row for part in parts for row in part]
        source = [number for number, part in enumerate(parts) for _ in part]
        names = []
        if made:
            names = list(made[0])
    else:
        raise MaskwiseError(
            f"the batch has neither input_ids nor a column {text_field!r}",
            got=f"columns {', '.join(map(str, batch))}",
            do="name the column of texts with text_field=…",
        )
    columns = {name: values for name, values in batch.items() if name != text_field}
    if len(source) > len(set(source)):
        columns = {name: [values[n] for n in source] for name, values in columns.items()}
    for name in names:
        values = [row[name] for row in made]
        columns[name] = values[0] if alone else values
    return columns


def _require_rows(batch: Mapping[str, Any], height: int) -> None:
    """Raise ``MaskwiseError`` unless each column has an item for each row."""
    for name, values in batch.items():
        sized = hasattr(values, "__len__") and getattr(values, "ndim", 1) > 0
        found = len(values) if sized else type(values).__name__
        if values is not None and found != height:
            raise MaskwiseError(
                f"column {name!r} does not fit the rows", got=found, allowed=f"{height} rows"
            )


def _rows_of_ids(value: Any) -> tuple[list[Ints], bool]:
    """Return rows of token ids, and whether ``value`` was a single row.

    Without ``batched=True``, ``datasets.map`` passes a single row.
    """
    no_rows = isinstance(value, str | bytes | Mapping) or not hasattr(value, "__getitem__")
    # ``ndim`` is 0 for tensors and arrays of one number.
    if no_rows or getattr(value, "ndim", 1) == 0:
        raise MaskwiseError(
            "'input_ids' must hold rows of token ids",
            got=type(value).__name__,
            allowed="whole numbers ≥ 0",
        )
    alone = len(value) > 0 and getattr(value[0], "ndim", 0) == 0 and not np.iterable(value[0])
    rows = [value] if alone else value
    return [whole_numbers("input_ids", row, shape=(None,), least=0) for row in rows], alone


def _rows_of_offsets(value: Any, rows: Sequence[Ints], *, alone: bool) -> list[Ints | None]:
    """Return the character offsets (L, 2) of each row of ids; None for each row if there are none.

    Offsets count from the start of any text, so in a row of several texts, they start again.
    """
    if value is None:
        return [None] * len(rows)
    spans = [value] if alone else value
    return [
        whole_numbers("offset_mapping", part, shape=(len(row), 2)) if len(row) else None
        for part, row in zip(spans, rows, strict=True)
    ]


def _rows_of_present(
    value: Any, rows: Sequence[Ints], tokenizer: PreTrainedTokenizerBase, *, alone: bool
) -> list[Array]:
    """Return for each row (L,) bool, false for padding, by the attention mask or by the token."""
    if value is None:
        if tokenizer.pad_token_id is None or pad_has_role(tokenizer):
            return [np.ones(len(row), bool) for row in rows]
        return [row != tokenizer.pad_token_id for row in rows]
    masks = [value] if alone else value
    return [
        flags("attention_mask", mask, shape=row.shape)
        for mask, row in zip(masks, rows, strict=True)
    ]


class Surfaces:
    """Decodes rows of tokens and finds their words; caches the bytes of each token.

    Two shorter ways find other words. Marks such as "Ġ" and "##" show where words begin, but not
    punctuation, Thai or emoji. ``tokenizers.DecodeStream`` needs 1.2 µs per token instead of .3 and
    a tokenizer with a decoder, and finds other words in blocks that begin inside a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        tokenizer = _fast(tokenizer)
        self.tokenizer = tokenizer
        self.special = frozenset(special_ids(tokenizer))
        backend = tokenizer.backend_tokenizer
        self.prefix = None
        if type(backend.model).__name__ == "WordPiece":
            self.prefix = backend.model.continuing_subword_prefix
        self.bytes_by_char = {}
        if "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}":
            self.bytes_by_char = {char: byte for byte, char in bytes_to_unicode().items()}
        self.known: dict[int, bytes] = {}
        # Tokens that were added to the vocabulary are cut out of the text before all other rules,
        # so that the token behind them is written as if it began a word.
        self.added = set[int]()
        for number, token in tokenizer.added_tokens_decoder.items():
            if number not in self.special and not token.single_word:
                self.added.add(number)
        # The number of tokens before which there may or may not be a space.
        self.guessed = 0

    def annotate(
        self,
        ids: Ints,
        annotators: Sequence[Layered],
        spans: Ints | None = None,
        present: Array | None = None,
    ) -> dict[str, object]:
        """Return a row's word ids (−1 for special tokens), example id and annotation layers.

        Args:
            ids: (L,) the tokens.
            annotators: the annotators of the layers.
            spans: (L, 2) the offsets of the tokens, if known.
            present: (L,) bool, false for padding, on which the example id does not depend.
        """
        text, offsets = self.read(ids, spans)
        special = np.isin(ids, [*self.special])
        lengths = np.array([len(ids)])
        placed, words = words_of_tokens([text], offsets, lengths, rule="auto", special=special)
        together = Together(annotators)
        found = align(together.annotate([text]), together.layers, placed, words)
        row: dict[str, object] = {"example_id": tokens_id(ids if present is None else ids[present])}
        for layer, values in {"word_ids": words, **found}.items():
            row[layer] = values.tolist()
        return row

    def read(self, ids: Ints, spans: Ints | None = None) -> tuple[str, Ints]:
        """Return the text of a row, and the offsets (L, 2) of its tokens in this text.

        Args:
            ids, spans: as for ``annotate``.
        """
        parts = []
        tokens = ids.tolist()
        for token in tokens:
            if token not in self.known:
                self.known[token] = self._bytes(token)
            parts.append(self.known[token])
        if self.added and not self.added.isdisjoint(tokens):
            self._join(parts, tokens, spans)
        # A row may begin inside a character; the character's remaining bytes become surrogates.
        text = b"".join(parts).decode("utf-8", "surrogateescape")
        sizes = np.array(list(map(len, parts)), dtype=int)
        return text, _offsets(codes_of(text), sizes)

    def _join(self, parts: list[bytes], tokens: list[int], spans: Ints | None) -> None:
        """Remove spaces that no text has from ``parts``, beside tokens that were added."""
        for place in range(1, len(tokens)):
            before, token = tokens[place - 1], tokens[place]
            beside = before in self.added or token in self.added
            if not beside or before in self.special or token in self.special:
                continue
            # Only a token that is written with a space can have a space that is not in the text.
            if not parts[place].startswith(b" "):
                continue
            bare = parts[place][1:]
            # Punctuation is a word of its own, with or without a space before it.
            if spans is None:
                self.guessed += bare[:1].isalnum() or bare[:1] >= b"\x80"
                continue
            (_, end_before), (start, end) = spans[place - 1].tolist(), spans[place].tolist()
            # Some tokenizers count the space as a part of the token.
            with_space = end - start > len(bare.decode("utf-8", "replace"))
            if start == end_before and not (with_space and self.prefix is None):
                parts[place] = bare

    def _bytes(self, token: int) -> bytes:
        if token in self.special:
            return b"\n"
        name = None
        # The library fails on larger numbers.
        if token < 2**32:
            name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:
            # Ids may have gaps, so an id without a token may be inside the vocabulary.
            whole_number(
                "an id in input_ids",
                token,
                least=0,
                most=max(self.tokenizer.get_vocab().values()),
                do="use the tokenizer that made these rows",
            )
        if not isinstance(name, str) or token == self.tokenizer.unk_token_id:
            # The replacement character is a symbol, so an unknown token counts as one word.
            return " \ufffd".encode()
        if self.bytes_by_char:
            # Added tokens of a byte-level tokenizer are written as text, not as byte characters.
            if self.bytes_by_char.keys() >= set(name):
                return bytes(map(self.bytes_by_char.__getitem__, name))
            return name.encode()
        if self.prefix is not None:
            if name.startswith(self.prefix):
                return name.removeprefix(self.prefix).encode()
            return f" {name}".encode()
        # Llama's tokens for single bytes are written <0xE2>.
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()


def _offsets(codes: CodePoints, sizes: Ints) -> Ints:
    """Return the character offsets (L, 2) of tokens, from code points and bytes per token."""
    # In UTF-8, the width of a character grows by one byte at each of these code points.
    width = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    # ``surrogateescape`` replaced each byte outside whole characters by one of these surrogates.
    escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
    char_of_byte = np.repeat(np.arange(len(codes)), np.where(escaped, 1, width))
    # A token without bytes may be at the end of the row, after the last character.
    char_of_byte = np.append(char_of_byte, len(codes))
    end = sizes.cumsum()
    start = end - sizes
    first = char_of_byte[start]
    last = char_of_byte[np.maximum(end - 1, 0)]
    return np.stack([first, np.where(sizes > 0, last + 1, first)], axis=1)
