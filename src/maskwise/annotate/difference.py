"""Weights of words that distinguish a corpus from a general one, for continued pre-training.

Words are scored by TF-ICF, frequent in the target corpus and rare in the general one:

    score(w) = max(0, log(1 + c(w)) · log(p(w) / q(w)))

with c and p the count and share of w in the target corpus, and q its share in the general corpus,
with 1 added to each count. The best words are anchors. The paper weighs a word by its similarity to
the nearest anchor; ``vectors`` selects the source of similarities:

- a checkpoint folder: the input embeddings of its model, averaged over a word's tokens;
- a text file of vectors, "word 0.1 0.2 …" on each line, like those of GloVe and fastText;
- none: the weight is the score itself, which is sharp; the policy's ``power`` tempers it.

Weights average 1 over the target corpus; words outside it have weight 0. Anchors occur in at least
``min_documents`` texts, which excludes names from a single text. Cost: 1 µs per word.

Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3; 20 anchors and the
    cosine to the nearest as in github.com/abwilf/Difference-Masking. Log-counts follow Reed et al.
    2006 (TF-ICF): with p(w) instead, the anchors of novels against Wikipedia were "i", "you",
    "her". The log-ratio instead of an inverse frequency, the floor of the cosine and the scale are
    ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import Floats, Ints, Table, Vocabulary, blocks, fold
from maskwise.annotate.weights import WordWeights
from maskwise.errors import MaskwiseError
from maskwise.folders import refuse_damaged
from maskwise.segments import changes, offsets
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
    """The layer ``difference``: weights of words that distinguish the target corpus.

    Args:
        table: the folder written by a fit; without it the annotator has to be fitted on the target
            corpus, with the settings below.
        general: the corpus to compare with, as for `read_documents`.
        anchors: number of anchors.
        min_documents: minimum number of target texts in which an anchor occurs.
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
            # A stable sort leaves the texts of each word in order: one entry per word and text.
            order = np.argsort(words.key, kind="stable")
            keys = words.key[order]
            documents.add(keys[changes(keys, words.text[order])])
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
        # A corpus of few texts cannot have words in many of them.
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
    """(W,) the TF-ICF score of each word of the target corpus.

    Args:
        counts: (W,) counts of all words of the target corpus.
        others: (W,) counts of the same words in the general corpus, which may be 0.
        total_others: words of the general corpus.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """(W,) each word's cosine to the nearest anchor, at least 0; 0 for words without a vector."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Words without a vector have the norm 0.
    unit = vectors / norms.clip(min=1e-12)
    cosines = unit @ unit[anchors].T
    return cosines.max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], source: Path) -> Matrix:
    """(W, d) vectors of words from a checkpoint folder or a text file; 0 for missing words."""
    read = _from_text
    if source.is_dir():
        read = _from_checkpoint
    vectors = read(words, source)
    if not np.isfinite(vectors).all():
        do = "take another file or checkpoint"
        raise MaskwiseError(f"vectors in {source} are not finite", do=do)
    return vectors


def _from_checkpoint(words: Sequence[str], path: Path) -> Matrix:
    tokenizer = load_tokenizer(str(path), needs_mask=False)
    # With a space, as inside a text: some tokenizers split the first word differently.
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    # ``reduceat`` needs at least one token per word.
    tokens = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.array(list(map(len, tokens)))
    vectors = _input_embeddings(path)[np.concatenate(tokens)]
    sums = np.add.reduceat(vectors, offsets(lengths), axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)


def _input_embeddings(folder: Path) -> Matrix:
    from safetensors import safe_open

    refuse_damaged(folder)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            # ``safe_open`` cannot be iterated like a dict.
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
                # The first line of fastText has two numbers, the counts of words and dimensions.
                if place is not None and len(numbers) > 1:
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
