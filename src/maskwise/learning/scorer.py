"""A policy as a model: an encoder that reads a text and scores its tokens.

The encoder is one of transformers', loaded or new, or a light one of ours: an embedding of every
token and of its near neighbours, a hundredth of a transformer's work. The head gives one logit a
token, whose exponential is a weight (a word's logit is the mean over its tokens), or two: where a
span begins and where it ends.

A folder of a policy holds JSON, safetensors, the tokenizer and a card; no code and no pickle is
ever read. Masking does not import this file: ``learning.annotator`` makes layers of the scores, and
policies read layers.

Source: Ye et al. 2021 (arXiv 2104.08840) for the heads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.families import check_finite, check_fit, check_room, require_kind
from maskwise.folders import CARD, read_json
from maskwise.keys import fold
from maskwise.models import config_of, load_config, load_task_model, new_config, without_advice
from maskwise.starts import find_policy
from maskwise.text import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Head = Literal["tokens", "spans"]
COLUMNS = {"tokens": 1, "spans": 2}
"""Logits of a head for every token."""
LIGHT = "light"
FORMAT, WEIGHTS = "maskwise-policy-1", "model.safetensors"


@dataclass(frozen=True)
class PolicyConfig:
    """The ``config.json`` of a policy.

    Attributes:
        encoder: the fields of its configuration, with ``model_type``: one of transformers', or
            "light".
        head: "tokens" (one logit a token) or "spans" (a start and an end logit).
        length: tokens that are read at once, special ones included.
        longest: words of the longest span that a span head gives.
    """

    encoder: dict[str, Any] = field(default_factory=dict)
    head: Head = "tokens"
    length: int = 64
    longest: int = 10
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.head not in COLUMNS:
            raise unknown_name("head of a policy", self.head, COLUMNS)
        if min(self.length, self.longest) < 1:
            got = (self.length, self.longest)
            raise MaskwiseError("length and longest of a policy are at least 1", got=got)


class LightEncoder(nn.Module):
    """(B, L) ids → (B, L, H): the embedding of a token plus a convolution over its neighbours.

    Args:
        vocab_size, hidden_size: V and H.
        window: tokens that are read together, an odd number; 1 makes a table of words.

    Cost: V·H + window·H² weights; at H = 64 and a window of 5 some 20,000 multiplications a token.
    """

    def __init__(self, vocab_size: int, hidden_size: int = 64, window: int = 5):
        super().__init__()
        if window < 1 or window % 2 == 0:
            allowed = "an odd number of tokens"
            raise MaskwiseError("window of a light encoder", got=window, allowed=allowed)
        self.table = nn.Embedding(vocab_size, hidden_size)
        self.near = nn.Conv1d(hidden_size, hidden_size, window, padding=window // 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.table(input_ids) * attention_mask.unsqueeze(-1)  # padding is 0
        return states + nn.functional.gelu(self.near(states.transpose(1, 2)).transpose(1, 2))


class PolicyModel(
    nn.Module, PyTorchModelHubMixin, library_name="maskwise", tags=["masking-policy"]
):
    """A scorer of tokens or spans, with the tokenizer by which it reads.

    ``save_pretrained(folder)`` and ``push_to_hub(id)`` are those of the hub's own mixin;
    ``from_pretrained`` is ours, because the mixin's would also read pickles.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8})
    >>> row = tokenizer("the cat", return_tensors="pt")
    >>> policy(row["input_ids"], row["attention_mask"]).shape  # [CLS] the cat [SEP]
    torch.Size([1, 4])

    Args:
        config: what it is.
        tokenizer: a fast one.
        encoder: a module that has its weights already; None: one of ``config.encoder`` with fresh
            weights.
        card: the text of its README.md.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        encoder: nn.Module | None = None,
        card: str = "",
    ):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.card = card
        self.encoder = _new_encoder(config) if encoder is None else encoder
        self.head = nn.Linear(int(config.encoder["hidden_size"]), COLUMNS[config.head])
        nn.init.zeros_(self.head.weight)  # a policy begins by masking all words alike
        nn.init.zeros_(self.head.bias)

    @classmethod
    def new(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        *,
        architecture: str = LIGHT,
        pretrained: str | None = None,
        settings: dict[str, Any] | None = None,
        head: Head = "tokens",
        length: int = 64,
        longest: int = 10,
        seed: int = 0,
    ) -> Self:
        """A policy that has learned nothing yet: all words weigh the same.

        Args:
            architecture: ``light``, or a ``model_type`` of transformers for a new encoder.
            pretrained: an encoder to begin with, a folder or hub id (``starts.find_start``), in its
                place.
            settings: fields of the encoder's configuration, such as hidden_size.
            head, length, longest: as in ``PolicyConfig``.
            seed: of the weights that are new.

        Raises:
            MaskwiseError: an unknown architecture or field; an encoder that the tokenizer or the
                length does not fit.
        """
        fields = dict(settings or {})
        encoder = None
        if pretrained:
            loaded = load_config(pretrained)
            check_fit(loaded, len(tokenizer), do="give the encoder's own tokenizer")
            check_room(loaded, length, what="learning.policy.length")
            encoder = load_task_model(pretrained, loaded, head="embedding", seed=seed)
            described = _described(encoder.config)
        elif architecture == LIGHT:
            allowed = {"hidden_size": 64, "window": 5}
            for name in fields.keys() - allowed.keys():
                raise unknown_name("light encoder setting", name, allowed)
            described = {"model_type": LIGHT, "vocab_size": len(tokenizer), **allowed, **fields}
        else:
            described = _described(new_config(architecture, tokenizer, length, **fields))
        config = PolicyConfig(described, head, length, longest)
        with torch.random.fork_rng():
            torch.manual_seed(fold(seed, 0x5C0E))
            return cls(config, tokenizer, encoder=encoder).eval()

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """(B, L) logits of a head for tokens, or (B, L, 2) of one for spans, float."""
        states = self.encoder(input_ids=input_ids_BL, attention_mask=attention_mask_BL)
        if not isinstance(states, Tensor):
            states = states.last_hidden_state
        logits: Tensor = self.head(states)
        return logits.squeeze(-1) if self.config.head == "tokens" else logits

    # Saving and loading
    # -------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        """What ``save_pretrained`` and ``push_to_hub`` write."""
        weights = self.state_dict()
        save_file(
            {name: weights[name].cpu().contiguous() for name in weights}, save_directory / WEIGHTS
        )
        text = json.dumps(asdict(self.config), indent=1, sort_keys=True)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(save_directory)
        (save_directory / CARD).write_text(self.card or NO_CARD, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:  # type: ignore[override]
        """A saved policy, in evaluation mode and float32.

        Args:
            name: a folder, or an id on the hub.

        Raises:
            MaskwiseError: nothing there, or something else; a damaged file; a folder that brings
                code (``auto_map``) or pickled weights.
        """
        folder = find_policy(name)
        config = read_config(folder)
        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise _damaged(folder, f"{WEIGHTS}: {first_line(error)}") from None
        check_finite(weights, name)
        tokenizer = load_tokenizer(str(folder), needs_mask=False)
        try:
            if len(tokenizer) > int(config.encoder["vocab_size"]):
                raise ValueError(f"its tokenizer has {len(tokenizer)} tokens")
            # its config.json may name any size: compare before memory is asked for
            with torch.device("meta"):
                cls(config, tokenizer).load_state_dict(weights, assign=True)
            policy = cls(config, tokenizer)
            policy.load_state_dict(weights)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            what = f"its weights do not fit its config.json: {first_line(error)}"
            raise _damaged(folder, what) from None
        if (folder / CARD).is_file():
            policy.card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        return policy.eval()


NO_CARD = "---\nlibrary_name: maskwise\ntags: [masking-policy]\n---\n\n# A masking policy\n"


def read_config(folder: Path) -> PolicyConfig:
    """The ``config.json`` of the policy in a folder.

    Raises:
        MaskwiseError: no policy, a damaged one, or one that wants to run code.
    """
    if not (folder / "config.json").exists():
        inner = folder / "policy"
        do = f"give {inner}" if inner.is_dir() else "maskwise learn writes one into OUT/policy"
        raise MaskwiseError(f"{folder} holds no masking policy", got="no config.json", do=do)
    plain = read_json(folder / "config.json")
    if plain is None:
        raise _damaged(folder, "config.json cannot be read")
    if plain.get("format") != FORMAT:
        got = f"format {plain.get('format')}"
        do = "give a folder that PolicyModel.save_pretrained wrote"
        raise MaskwiseError(f"{folder} holds no masking policy", got=got, allowed=FORMAT, do=do)
    try:
        config = PolicyConfig(**plain)
    except TypeError as error:
        raise _damaged(folder, f"config.json: {error}") from None
    if "auto_map" in config.encoder:
        do = "take another policy"
        raise MaskwiseError(f"{str(folder)!r} brings code of its own", got="auto_map", do=do)
    return config


def _new_encoder(config: PolicyConfig) -> nn.Module:
    fields = dict(config.encoder)
    if fields.get("model_type") == LIGHT:
        del fields["model_type"]
        return LightEncoder(**fields)
    loaded = config_of(fields)
    require_kind(loaded, "encoder", use="a policy")
    check_room(loaded, config.length, what="length of the policy")
    with without_advice():
        return load_task_model(None, loaded, head="embedding", seed=0)


def _described(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration in JSON, without its path."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    fields.pop("_name_or_path", None)
    return fields


def _damaged(folder: Path, what: str) -> MaskwiseError:
    do = "take a whole copy, or learn it again"
    return MaskwiseError(f"the policy in {folder} is damaged", got=what, do=do)
