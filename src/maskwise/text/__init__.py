"""Make rows from documents: read, tokenise, find words, align annotations, cut pieces, plan rows.

This package stands on ``masking``, whose ``Line`` it makes. Annotation layers come from annotator
objects. ``api`` finds the objects for names such as ``pos``.
"""

from maskwise.text.documents import Document, Documents, read_documents, require_documents
from maskwise.text.pieces import Pieces, Tokens, read_pieces, tokenise
from maskwise.text.rows import Rows, split
from maskwise.text.settings import Prepared
from maskwise.text.source import bundled_path, shards_of
from maskwise.text.stream import Stream
from maskwise.text.tokenizers import load_tokenizer, train_tokenizer
from maskwise.text.words import word_ids

__all__ = [
    "Document",
    "Documents",
    "Pieces",
    "Prepared",
    "Rows",
    "Stream",
    "Tokens",
    "bundled_path",
    "load_tokenizer",
    "read_documents",
    "read_pieces",
    "require_documents",
    "shards_of",
    "split",
    "tokenise",
    "train_tokenizer",
    "word_ids",
]
