"""Documents in, token blocks out: loading (load, readers), tokenizers (tokenise) and rows (rows, blocks,
pack). May import errors, keys and the word layer `annotate.words`."""

from maskwise.corpus.blocks import Blocks
from maskwise.corpus.load import Document, Documents, bundled_path, read_documents, require_documents
from maskwise.corpus.pack import pack, unigram_counts
from maskwise.corpus.tokenise import Tokens, load_tokenizer, tokenise, train_tokenizer

__all__ = [
    "Blocks",
    "Document",
    "Documents",
    "Tokens",
    "bundled_path",
    "load_tokenizer",
    "pack",
    "read_documents",
    "require_documents",
    "tokenise",
    "train_tokenizer",
    "unigram_counts",
]
