"""Words that set a corpus apart from a general one, for continued pre-training on it.

Words are scored by TF-ICF, frequent here and not there:

    score(w) = log(1 + c(w)) · log(p(w) / q(w)), at least 0

with c and p the count and share of w in the target corpus, and q its share in the general one, each
count one more. The best words are anchors. The paper weighs a word by its similarity to the nearest
anchor. ``vectors`` says where similarities come from:

- a checkpoint folder: the input embeddings of its model, the mean over a word's pieces;
- a text file of vectors, "word 0.1 0.2 …" on each line, as GloVe and fastText have them;
- none: a word's weight is its own score, which is sharp; the policy's ``power`` tempers it.

Weights average 1 over the target corpus. Words that are not in it weigh 0. Anchors occur in at
least ``min_documents`` texts, so that they are not the heroes of a single one. Cost: 1 µs a word.

Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3; 20 anchors and the
    cosine to the nearest as in github.com/abwilf/Difference-Masking. Log-counts are those of Reed
    et al. 2006 (TF-ICF): with p(w) in their place the anchors of novels against Wikipedia were "i",
    "you", "her". The log of the ratio in place of an inverse frequency, the floor of the cosine and
    the scale are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import Floats, Ints, Table, Vocabulary, blocks, fold
from maskwise.annotate.weights import WordWeights
from maskwise.errors import MaskwiseError
from maskwise.folders import refuse_damaged
from maskwise.segments import changes
from maskwise.text import load_tokenizer, read_documents

Matrix = NDArray[np.float32]
EMBEDDINGS = (
    "word_embeddings.weight",  # BERT
    "tok_embeddings.weight",  # ModernBERT
    "embed_tokens.weight",  # BART
    "shared.weight",  # T5
    "wte.weight",  # GPT
)
"""Suffixes of the names of input embeddings."""


class Difference(WordWeights):
    """The layer ``difference``.

    Args:
        table: the folder that a fit has filled. Without it the annotator is to be fitted, with the
            settings that follow, on the target corpus.
        general: the corpus to compare with, as for `read_documents`.
        anchors: how many.
        min_documents: least texts of the target that an anchor occurs in.
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
        self.settings = {
            "general": general,
            "anchors": anchors,
            "min_documents": min_documents,
            "vectors": vectors,
        }
        if anchors < 1 or min_documents < 1:
            raise MaskwiseError("difference: settings must be at least 1", got=self.settings)
        super().__init__(table=table)
        self._general = general
        self._anchors = anchors
        self._min_documents = min_documents
        self._vectors = vectors

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count both corpora; words.parquet has word, weight, score and count, best score first.

        Raises:
            MaskwiseError: no word sets the corpora apart, or no anchor has a vector.
        """
        target = Vocabulary()
        documents = Table()
        seen = 0
        for words in blocks(texts):
            target.count(words, words.plain)
            order = np.argsort(words.key, kind="stable")  # within a word its texts ascend
            once_a_text = changes(words.key[order], words.text[order])
            documents.add(words.key[order][once_a_text])
            seen += len(words.base)
        general = Table()
        for words in blocks(document.text for document in read_documents(self._general)):
            general.add(words.key[words.plain])

        scores = tf_icf(target.counts, general.of(target.keys), general.total)
        order = np.argsort(-scores, kind="stable")
        keys = target.keys[order]
        counts = target.counts[order]
        scores = scores[order]
        names = target.names(keys)
        spread = documents.of(keys) >= min(self._min_documents, seen)
        chosen = np.flatnonzero((scores > 0) & spread)[: self._anchors]
        if not len(chosen):
            do = "give another general corpus, or lower min_documents"
            raise MaskwiseError(f"no word sets this corpus apart from {self._general}", do=do)
        anchors = [names[place] for place in chosen]
        weights = scores
        if self._vectors is not None:
            weights = nearest(vectors_of(names, Path(self._vectors)), chosen)
        mean = float((weights * counts).sum() / counts.sum())
        if not mean > 0:
            raise MaskwiseError(f"no anchor has a vector in {self._vectors}", got=anchors)
        columns = {"word": names, "weight": weights / mean, "score": scores, "count": counts}
        facts = {
            "words": target.total,
            "general_words": general.total,
            "general": self._general,
            "anchors": anchors,
            "vectors": self._vectors,
        }
        return self._save(folder, columns, facts)


def tf_icf(counts: Ints, others: Ints, total_others: int) -> Floats:
    """(W,) how much each word sets the target corpus apart.

    Args:
        counts: (W,) of all words of the target.
        others: (W,) of the same words in the general corpus, which may be 0.
        total_others: words of the general corpus.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """(W,) each word's cosine to the nearest anchor, at least 0; 0 for words without a vector."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return (unit @ unit[anchors].T).max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], source: Path) -> Matrix:
    """(W, d) vectors of words from a checkpoint folder or a text file; 0 for missing words."""
    vectors = _from_checkpoint(words, source) if source.is_dir() else _from_text(words, source)
    if not np.isfinite(vectors).all():
        do = "take another file or checkpoint"
        raise MaskwiseError(f"vectors in {source} are not finite", do=do)
    return vectors


def _from_checkpoint(words: Sequence[str], folder: Path) -> Matrix:
    # A space before it, as inside a text: some tokenizers have other pieces for the beginning.
    tokenizer: Any = load_tokenizer(str(folder), needs_mask=False)
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    pieces = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.array(list(map(len, pieces)))
    vectors = _input_embeddings(folder)[np.concatenate(pieces)]
    sums = np.add.reduceat(vectors, np.cumsum(lengths) - lengths, axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)


def _input_embeddings(folder: Path) -> Matrix:
    from safetensors import safe_open

    refuse_damaged(folder)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            # not a dict, which could be iterated
            names = [name for name in file.keys() if name.endswith(EMBEDDINGS)]  # noqa: SIM118
            if names:
                table: Matrix = file.get_tensor(min(names, key=len)).float().numpy()
                return table
    raise MaskwiseError(f"no input embeddings in {folder}", allowed=f"a tensor …{EMBEDDINGS}")


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
        do = "give a checkpoint folder, or UTF-8 lines of a word and its numbers"
        raise MaskwiseError(f"cannot read vectors from {path}: {error}", do=do) from None
    if len(set(map(len, vector_at.values()))) != 1:
        what = f"{path} has no vectors of one length for the words of the corpus"
        raise MaskwiseError(what, got=len(vector_at))
    found = np.stack(list(vector_at.values()))
    vectors = np.zeros((len(words), found.shape[1]), dtype=np.float32)
    vectors[list(vector_at)] = found
    return vectors
