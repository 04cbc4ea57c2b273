"""Text without words, such as proteins and DNA: FASTA files, and tokenizers of letters and k-mers.

Such a text has one word, or none; what may be masked together are letters, runs of letters (``span(over="token")``), or
what ``corpus.words: regex:…`` finds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from maskwise.errors import MaskwiseError
from maskwise.text.readers import PartName, Record, Skip

NO_LETTERS = "sequence with characters that are no letters"
_LETTERS = re.compile(r"[A-Za-z]+")
_LONGEST = 1 << 22
"""Letters of a document; the rest of a longer sequence makes further ones, NAME.2, NAME.3, …"""


def read_fasta(file: IO[bytes], path: Path, name: str) -> Iterator[Record]:
    """The sequences of a FASTA file, each a document (a very long one several). Gaps (-) and a closing * are left out.

    Raises:
        MaskwiseError: the file does not begin with a header.
    """
    number, parts, size, title = 0, list[str](), 0, ""
    for line in file:
        text = line.decode(errors="replace").strip()  # a damaged line is no letters: its whole sequence is left out
        if text.startswith(">"):
            if number:
                yield _sequence(title, parts)
            number, part, parts, size = number + 1, 1, [], 0
            title = f"{name}#{number}"
        elif text and not text.startswith(";"):
            if not number:
                do = "begin every sequence with a line >NAME, or call the file .txt"
                raise MaskwiseError(f"{path} is no FASTA file: it has no header", got=text[:40], do=do)
            if size >= _LONGEST:
                yield _sequence(title, parts)
                part, parts, size = part + 1, [], 0
                title = PartName.of(f"{name}#{number}.{part}", title)
            parts.append(text)
            size += len(text)
    if number:
        yield _sequence(title, parts)


def _sequence(name: str, parts: list[str]) -> Record:
    letters = "".join(parts).replace("-", "").rstrip("*")
    return (name, letters) if not letters or _LETTERS.fullmatch(letters) else Skip(NO_LETTERS)


def letter_tokenizer(
    corpus: Iterable[str], vocab_size: int, lowercase: bool, k: int, special: Iterable[str]
) -> Tokenizer:
    """A tokenizer that cuts what stands between spaces into parts of k letters, the last of them perhaps shorter.

    Its vocabulary are the commonest parts of the corpus; others are [UNK].

    Args:
        special: the special tokens, [UNK] among them; they come first.
    """
    counts: Counter[str] = Counter()
    for text in corpus:
        for word in (text.lower() if lowercase else text).split():
            counts.update(word if k == 1 else (word[i : i + k] for i in range(0, len(word), k)))
    names = list(special)
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocab_size - len(names)]
    names += [part for part, _ in common]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    parts = pre_tokenizers.Split(Regex(f".{{1,{k}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), parts])
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(special))
    return backend
