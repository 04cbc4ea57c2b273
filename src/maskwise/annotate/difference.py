"""What makes a corpus different from a general one: words weighed by it, for going on with
pre-training there (Difference-Masking).

Words are scored by TF-ICF, frequent here and not there:

    score(w) = log(1 + c(w)) · log( p(w) / q(w) ), not below 0     c, p: count and share in the target corpus;
                                                                  q: share in the general one, every
                                                                      count one more

and the best are anchors. The paper weighs a word by how similar it is to its nearest anchor.
``vectors`` says where similarities come from:

- a checkpoint folder: the input embeddings of its model, a word being the mean of its pieces;
- a text file of vectors, "word 0.1 0.2 …" on each line, as GloVe and fastText have them;
- none: then a word's weight is its own score, which is sharp; the policy's ``power`` tempers it.

Weights average 1 over the target corpus. Words that are not in it weigh 0, as do punctuation and
what follows an apostrophe. Anchors stand in at least ``min_documents`` texts, so that they are not
the heroes of one.

Cost: counting two corpora, 1 µs a word.
Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3; 20 anchors and the
    cosine to the nearest
as in github.com/abwilf/Difference-Masking; the paper's own formula of TF-ICF was not at hand.
Log-counts are those of Reed et al. 2006 (TF-ICF): with p(w) in their place the anchors of novels
against Wikipedia were "i", "you", "her". The log of the ratio, 0 where both corpora agree, in place
of an inverse frequency is ours; so are the floor of the cosine, 0, and the scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import Ints, Keys, Table, Vocabulary, Words, blocks, find, fold
from maskwise.annotate.weights import Floats, WordWeights
from maskwise.errors import MaskwiseError
from maskwise.folders import refuse_damaged
from maskwise.text import load_tokenizer, read_documents

Matrix = NDArray[np.float32]
EMBEDDINGS = (
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_tokens.weight",
    "shared.weight",
    "wte.weight",
)
"""How tensors of input embeddings are called, at the end of their names: BERT's, ModernBERT's,
BART's, T5's, GPT's.
"""


class Difference(WordWeights):
    """The layer ``difference``.

    Args:
        table: the folder that an earlier fit has filled. Without it the annotator is to be fitted,
            with the settings that follow, on the target corpus.
        general: the corpus to compare with, as for `read_documents`.
        anchors: how many.
        min_documents: anchors stand in at least so many texts of the target (where it has so many).
        vectors: a checkpoint folder, a text file of vectors, or None.

    Raises:
        MaskwiseError: settings out of range; a table that cannot be read.
    """

    name = "difference"

    def __init__(
        self,
        *,
        table: str | None = None,
        general: str = "bundled:wikipedia",
        anchors: int = 20,
        min_documents: int = 5,
        vectors: str | None = None,
    ):
        if anchors < 1 or min_documents < 1:
            got = f"anchors={anchors}, min_documents={min_documents}"
            raise MaskwiseError("difference: settings must be at least 1", got=got)
        super().__init__(
            table, general=general, anchors=anchors, min_documents=min_documents, vectors=vectors
        )
        self._general = general
        self._anchors = anchors
        self._min_documents = min_documents
        self._vectors = vectors

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count both corpora; words.parquet has word, weight, score and count, by falling score.

        Raises:
            MaskwiseError: no word tells the corpora apart, or no anchor has a vector.
        """
        target = Vocabulary()
        documents = Table()
        seen = 0
        for words in blocks(texts):
            target.add(words, words.plain)
            documents.add(_once_a_text(words))
            seen += len(words.base)
        general = Vocabulary()
        for words in blocks(document.text for document in read_documents(self._general)):
            general.add(words, words.plain)
        keys, counts = target.table.keys, target.table.counts
        place = find(general.table.keys, keys)
        others = np.where(place >= 0, np.append(general.table.counts, 0)[place], 0)
        scores = tf_icf(counts, others, general.table.total)
        order = np.argsort(-scores, kind="stable")
        keys, counts, scores, names = (
            keys[order],
            counts[order],
            scores[order],
            target.names(keys[order]),
        )
        spread = documents.counts[find(documents.keys, keys)] >= min(self._min_documents, seen)
        chosen = np.flatnonzero((scores > 0) & spread)[: self._anchors]
        if not len(chosen):
            do = "give another general corpus, or lower min_documents"
            raise MaskwiseError(f"no word sets this corpus apart from {self._general}", do=do)
        weights = scores
        if self._vectors is not None:
            weights = nearest(vectors_of(names, Path(self._vectors)), chosen)
        mean = float((weights * counts).sum() / counts.sum())
        if not mean > 0:
            raise MaskwiseError(
                f"no anchor has a vector in {self._vectors}",
                got=", ".join(names[i] for i in chosen),
            )
        facts = {
            "words": target.table.total,
            "general_words": general.table.total,
            "general": self._general,
            "anchors": [names[i] for i in chosen],
            "vectors": self._vectors,
        }
        return self._save(
            folder,
            {"word": names, "weight": weights / mean, "score": scores, "count": counts},
            facts,
        )


def _once_a_text(words: Words) -> Keys:
    """The keys of the words of each text, each once."""
    order = np.argsort(words.key, kind="stable")  # within a word its texts ascend
    key, text = words.key[order], words.text[order]
    return key[np.append(True, (key[1:] != key[:-1]) | (text[1:] != text[:-1]))[: len(key)]]


def tf_icf(counts: Ints, others: Ints, total_others: int) -> Floats:
    """(W,) how much each word sets the target corpus apart.

    Args:
        counts: (W,) of all words of the target.
        others: (W,) of the same words in the general corpus; 0 is fine.
        total_others: words of the general corpus.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """(W,) each word's cosine to the anchor nearest to it, at least 0; words without a vector (all
    0) have 0.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return (unit @ unit[anchors].T).max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], source: Path) -> Matrix:
    """(W, d) vectors of words, from a checkpoint folder or a text file; 0 for those it does not
    have.
    """
    vectors = _from_checkpoint(words, source) if source.is_dir() else _from_text(words, source)
    if not np.isfinite(vectors).all():
        raise MaskwiseError(
            f"vectors in {source} are not finite", do="take another file or checkpoint"
        )
    return vectors


def _from_checkpoint(words: Sequence[str], folder: Path) -> Matrix:
    from safetensors import safe_open

    refuse_damaged(folder)
    table = None
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(EMBEDDINGS)]  # noqa: SIM118 (not a dict)
            if names:
                table = file.get_tensor(min(names, key=len)).float().numpy()
                break
    if table is None:
        raise MaskwiseError(
            f"no input embeddings in {folder}", allowed="a tensor …" + ", …".join(EMBEDDINGS)
        )
    # A space before it, as inside a text: some tokenizers have other pieces for the beginning.
    tokenizer: Any = load_tokenizer(str(folder), needs_mask=False)
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    pieces = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    sums = np.add.reduceat(table[np.concatenate(pieces)], np.cumsum(lengths) - lengths, axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)


def _from_text(words: Sequence[str], path: Path) -> Matrix:
    wanted = {word: place for place, word in enumerate(words)}
    vector_at: dict[int, Matrix] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                word, *numbers = line.rstrip().split(" ")
                place = wanted.get(fold(word))
                if place is not None and len(numbers) > 1:  # fastText's first line has two numbers
                    vector_at.setdefault(place, np.array(numbers, dtype=np.float32))
    except (OSError, ValueError) as error:
        do = (
            "give a UTF-8 text file with a word and its numbers on each line, or a checkpoint "
            "folder"
        )
        raise MaskwiseError(f"cannot read vectors from {path}: {error}", do=do) from None
    if len({len(vector) for vector in vector_at.values()}) != 1:
        raise MaskwiseError(
            f"{path} has no vectors of one length for the words of the corpus", got=len(vector_at)
        )
    vectors = np.zeros((len(words), len(next(iter(vector_at.values())))), dtype=np.float32)
    vectors[list(vector_at)] = np.stack(list(vector_at.values()))
    return vectors
