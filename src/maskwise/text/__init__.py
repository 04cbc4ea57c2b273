"""Documents in, rows of tokens out: readers, tokenizers, words, layers and their alignment, pieces and rows.

May import ``errors``, ``folders``, ``keys`` and ``starts``; nothing else of maskwise."""

from maskwise.text.blocks import Blocks
from maskwise.text.documents import Document, Documents, bundled_path, read_documents, require_documents
from maskwise.text.pack import pack, unigram_counts
from maskwise.text.tokenizers import Tokens, load_tokenizer, tokenise, train_tokenizer
from maskwise.text.words import encode, word_ids

__all__ = [
    "Blocks",
    "Document",
    "Documents",
    "Tokens",
    "bundled_path",
    "encode",
    "load_tokenizer",
    "pack",
    "read_documents",
    "require_documents",
    "tokenise",
    "train_tokenizer",
    "unigram_counts",
    "word_ids",
]
