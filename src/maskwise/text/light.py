"""A tokenizer that is read without transformers, whose import takes two seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from maskwise.starts import find_start
from maskwise.text.readers import FASTA_ENDINGS, known_ending
from maskwise.text.tokenizers import MOST_TOKENS, letter_backend, load_tokenizer

WORDS = "bundled:tokenizer"
LETTERS = "letter"
"""What is taken where no tokenizer is named: that of the bundled encoder, or a token for each
capital letter."""
SPECIAL = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")


class LightTokenizer:
    """A tokenizer.json with the part of transformers' interface that masking reads."""

    is_fast = True
    model_max_length = sys.maxsize

    def __init__(self, backend: Tokenizer, names: Mapping[str, str]):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.added_tokens_decoder = backend.get_added_tokens_decoder()
        added = self.added_tokens_decoder.items()
        self.all_special_ids = [number for number, token in added if token.special]
        self.unk_token = names.get("unk")
        for role in SPECIAL:
            number = backend.token_to_id(names.get(role, ""))
            setattr(self, f"{role}_token_id", number)

    @classmethod
    def read(cls, folder: Path) -> LightTokenizer | None:
        """Read a folder of ``save_pretrained``; None if transformers must read or refuse it."""
        names: dict[str, str] = {}
        # The library tokenizers raises nothing narrower than Exception.
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            for role in SPECIAL:
                name = config.get(f"{role}_token")
                # Older versions of transformers write the settings of the token, too.
                if isinstance(name, dict):
                    name = name["content"]
                if name:
                    names[role] = name
            made = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), names)
            framing = made([""]).encodings[0].ids
            largest = max([*made.get_vocab().values(), *framing])
        except Exception:
            return None
        for role in ("unk", "pad", "mask"):
            # A role that the file does not name may come from the class of the tokenizer.
            if getattr(made, f"{role}_token_id") is None:
                return None
        if largest >= MOST_TOKENS:
            return None
        return made

    def get_vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def __call__(self, texts: list[str], **settings: object) -> SimpleNamespace:
        return SimpleNamespace(encodings=self.backend.encode_batch(texts))

    def decode(self, ids: list[int], **settings: object) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def convert_ids_to_tokens(self, number: int) -> str | None:
        return self.backend.id_to_token(number)


def usual_tokenizer(text: str) -> str:
    """The tokenizer for a text, or for the file that it names: ``LETTERS`` for FASTA."""
    if known_ending(Path(text)) in FASTA_ENDINGS:
        return LETTERS
    return WORDS


def light_tokenizer(name: str) -> Any:
    """Load a tokenizer without transformers if possible."""
    if name == LETTERS:
        roles = {"pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
        return LightTokenizer(letter_backend([*ascii_uppercase], 64, lowercase=False), roles)
    tokenizer = LightTokenizer.read(Path(find_start(name)))
    if tokenizer is None:
        return load_tokenizer(name, needs_mask=False)
    if name == WORDS:
        # T5's and UL2's corruptions need tokens that the bundled tokenizer does not have.
        sentinels = [f"<extra_id_{number}>" for number in range(100)]
        tokenizer.backend.add_special_tokens([*sentinels, "[R]", "[S]", "[X]"])
    return tokenizer
