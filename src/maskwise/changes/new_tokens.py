"""New tokens: words that the tokenizer cuts into pieces become one token each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.base.specs import user_path
from maskwise.changes.base import Change, TrainingText, documents_for
from maskwise.models.loading import check_more_tokens
from maskwise.text.changed import ChangedTokens, Origins
from maskwise.text.documents import read_documents
from maskwise.text.new_words import (
    choose_words,
    extend,
    given_words,
    read_words,
    require_extensible,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast


class NewTokens(Change):
    """Make words tokens of an encoder, such as ``new-tokens(500)`` or ``new-tokens(words.txt)``.

    All other words keep their pieces. The rows of a new token, in the embeddings and in the output
    layer, begin as the means of those of its pieces. Rows of the model that belong to no token are
    taken first.

    Args:
        words: the number of words, those that save most pieces in the text; or a file with one word
            a line.
        text: a file or folder of texts, as for ``corpus.source``, from which a number of words is
            chosen; by default, the documents of the corpus that are not held out.
    """

    adds_tokens = True

    def __init__(self, words: int | str, text: str | None = None):
        self.most: int | None = None
        self.file: str | None = None
        if isinstance(words, int):
            self.most = whole_number("words", words, least=1)
            self.reads = () if text is None else (text,)
            return
        if text is not None:
            raise MaskwiseError(
                "new-tokens chooses words from no text, if a file names them",
                got=f"{words}, text={text}",
                do="leave out one of them",
            )
        self.file = words
        self.reads = (words,)

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, documents: TrainingText | None
    ) -> ChangedTokens:
        facts: dict[str, Any] = {}
        if self.most is None:
            words = given_words(read_words(user_path(self.reads[0])), tokenizer)
        else:
            read = (
                read_documents(*self.reads)
                if self.reads
                else documents_for("new-tokens", documents)()
            )
            words = choose_words(read, tokenizer, self.most)
        made = extend(tokenizer, words)
        what = f"{len(made.pieces):,} new tokens"
        if self.most is not None and len(made.pieces) < self.most:
            what += f"; {self.most:,} were wanted, but no more words qualify"
        facts = {"what": what, "tokens": [len(tokenizer), len(made.tokenizer)]}
        return ChangedTokens(made.tokenizer, Origins(None, made.pieces), facts)

    def check(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> PreTrainedConfig:
        require_extensible(tokenizer, what="new-tokens")
        more = self.most
        if more is None:
            words = read_words(user_path(self.reads[0]))
            given_words(words, tokenizer)
            more = len(words)
        check_more_tokens(config, len(tokenizer) + more)
        return config
