"""The model of a learned policy: an encoder with a head that scores tokens or spans.

The encoder is a transformers model or the light encoder of this module. The light encoder embeds
each token and its neighbours, at a hundredth of a transformer's cost. A token head has one logit
per token, and the weight of a token is exp(logit). A span head has a start logit and an end logit
per token.

A policy's folder contains JSON, safetensors, the tokenizer and a model card. Code and pickles are
never loaded. Masking does not import this module: ``learning.annotator`` writes scores to layers,
and masking reads the layers.

Source: Ye et al. 2021 (arXiv 2104.08840) for the heads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskwise.errors import MaskwiseError, first_line, require_known
from maskwise.families import check_fit, check_room, require_kind
from maskwise.folders import CARD, read_json
from maskwise.keys import fold
from maskwise.models import config_of, load_config, load_task_model, new_config, without_advice
from maskwise.starts import find_policy
from maskwise.text import load_tokenizer
from maskwise.weights import check_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Head = Literal["tokens", "spans"]
Fields: TypeAlias = dict[str, Any]
"""A configuration as JSON values."""
COLUMNS = {"tokens": 1, "spans": 2}
"""The number of logits per token, keyed by head."""
LIGHT = "light"
FORMAT = "maskwise-policy-1"
WEIGHTS = "model.safetensors"
NO_CARD = "---\nlibrary_name: maskwise\ntags: [masking-policy]\n---\n\n# A masking policy\n"


@dataclass(frozen=True)
class PolicyConfig:
    """A policy's ``config.json``.

    Attributes:
        encoder: the fields of the encoder's configuration. ``model_type`` is "light" or an
            architecture of transformers.
        head: "tokens" (one logit per token) or "spans" (start and end logits).
        length: the maximum number of tokens in a window of text, including special tokens.
        longest: the maximum number of words in a span.
    """

    encoder: Fields = field(default_factory=dict)
    head: Head = "tokens"
    length: int = 64
    longest: int = 10
    format: str = FORMAT

    def __post_init__(self) -> None:
        require_known("policy head", self.head, COLUMNS)
        if min(self.length, self.longest) < 1:
            raise MaskwiseError(
                "a policy's length and longest must be at least 1", got=(self.length, self.longest)
            )


class LightEncoder(nn.Module):
    """Maps ids (B, L) to states (B, L, H): token embeddings plus a convolution over neighbours.

    Args:
        vocab_size, hidden_size: V and H.
        window: the width of the convolution in tokens, an odd number. With 1, the state of a token
            does not depend on other tokens.

    Cost: V·H + window·H² weights. For H = 64 and a window of 5, a token costs 20,000
    multiplications.
    """

    def __init__(self, vocab_size: int, hidden_size: int = 64, window: int = 5):
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise MaskwiseError(
                "a light encoder needs an odd window", got=window, allowed="1, 3, 5, … tokens"
            )
        self.table = nn.Embedding(vocab_size, hidden_size)
        self.near = nn.Conv1d(hidden_size, hidden_size, window, padding=window // 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # States at padding are 0, so the result does not depend on the width of the batch.
        states = self.table(input_ids) * attention_mask.unsqueeze(-1)
        near = self.near(states.transpose(1, 2)).transpose(1, 2)
        return states + nn.functional.gelu(near)


class PolicyModel(
    nn.Module, PyTorchModelHubMixin, library_name="maskwise", tags=["masking-policy"]
):
    """A model that scores tokens or spans, with its tokenizer.

    The hub's mixin provides ``save_pretrained(folder)`` and ``push_to_hub(id)``. This class
    overrides the mixin's ``from_pretrained``, which would also load pickles.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8})
    >>> row = tokenizer("the cat", return_tensors="pt")
    >>> policy(row["input_ids"], row["attention_mask"]).shape  # [CLS] the cat [SEP]
    torch.Size([1, 4])

    Args:
        config: the policy's ``config.json``.
        tokenizer: a fast tokenizer.
        encoder: an encoder with weights; None for a new encoder with ``config.encoder``.
        card: the text of README.md.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        encoder: nn.Module | None = None,
        card: str = NO_CARD,
    ):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.card = card
        self.encoder = encoder or _new_encoder(config)
        hidden_size = int(config.encoder["hidden_size"])
        self.head = nn.Linear(hidden_size, COLUMNS[config.head])
        # Zeros give all words the same weight, so the first masks are random.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def new(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        *,
        architecture: str = LIGHT,
        pretrained: str | None = None,
        settings: Fields | None = None,
        head: Head = "tokens",
        length: int = 64,
        longest: int = 10,
        seed: int = 0,
    ) -> Self:
        """Create an untrained policy. All words have the same weight.

        Args:
            architecture: the architecture of a new encoder: ``light`` or a ``model_type`` of
                transformers.
            pretrained: the folder or hub id of a pre-trained encoder. If given, ``architecture`` is
                ignored.
            settings: fields of the encoder's configuration, such as hidden_size.
            head, length, longest: see ``PolicyConfig``.
            seed: the seed for the new weights.

        Raises:
            MaskwiseError: the architecture or a field is unknown, or the encoder does not support
                the tokenizer or the length.
        """
        fields = dict(settings or {})
        encoder = None
        if pretrained:
            loaded = load_config(pretrained)
            check_fit(loaded, len(tokenizer), do="use the encoder's tokenizer")
            check_room(loaded, length, what="learning.policy.length")
            encoder = load_task_model(pretrained, loaded, head="embedding", seed=seed)
            described = _described(encoder.config)
        elif architecture == LIGHT:
            allowed = {"hidden_size": 64, "window": 5}
            for name in fields:
                require_known("light encoder setting", name, allowed)
            described = {"model_type": LIGHT, "vocab_size": len(tokenizer), **allowed, **fields}
        else:
            described = _described(new_config(architecture, tokenizer, length, **fields))
        config = PolicyConfig(described, head, length, longest)
        with torch.random.fork_rng():
            torch.manual_seed(fold(seed, 0x5C0E))
            return cls(config, tokenizer, encoder=encoder).eval()

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Return the logits: (B, L) for a token head, (B, L, 2) for a span head."""
        states = self.encoder(input_ids=input_ids_BL, attention_mask=attention_mask_BL)
        # A transformers encoder returns a ModelOutput; the light encoder returns a tensor.
        if not isinstance(states, Tensor):
            states = states.last_hidden_state
        logits: Tensor = self.head(states)
        if self.config.head == "tokens":
            return logits.squeeze(-1)
        return logits

    # Saving and loading
    # -------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the policy's files. The hub's mixin calls this method."""
        weights = {}
        for name, value in self.state_dict().items():
            # safetensors refuses tensors that are not contiguous.
            weights[name] = value.cpu().contiguous()
        save_file(weights, save_directory / WEIGHTS)
        text = json.dumps(asdict(self.config), indent=1, sort_keys=True)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(save_directory)
        (save_directory / CARD).write_text(self.card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:  # type: ignore[override]
        """Load a saved policy in evaluation mode and float32.

        Args:
            name: a folder, or an id on the hub.

        Raises:
            MaskwiseError: the folder has no policy, a damaged file, code (``auto_map``), or no
                weights in safetensors.
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
            # config.json may contain any size, so shapes are compared before memory is allocated.
            with torch.device("meta"):
                cls(config, tokenizer).load_state_dict(weights, assign=True)
            policy = cls(config, tokenizer)
            policy.load_state_dict(weights)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(
                folder, f"its weights do not fit its config.json: {first_line(error)}"
            ) from None
        if (folder / CARD).is_file():
            policy.card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        return policy.eval()


def read_config(folder: Path) -> PolicyConfig:
    """Read a policy's ``config.json``.

    Raises:
        MaskwiseError: the folder has no policy, or its policy is damaged or contains code.
    """
    if not (folder / "config.json").exists():
        do = "maskwise learn writes a policy into OUT/policy"
        # Users may give the folder of a run, which contains the policy in ``policy/``.
        inner = folder / "policy"
        if inner.is_dir():
            do = f"give {inner}"
        raise MaskwiseError(f"{folder} holds no masking policy", got="no config.json", do=do)
    plain = read_json(folder / "config.json")
    if plain is None:
        raise _damaged(folder, "config.json cannot be read")
    if plain.get("format") != FORMAT:
        raise MaskwiseError(
            f"{folder} holds no masking policy",
            got=f"format {plain.get('format')}",
            allowed=FORMAT,
            do="give a folder that PolicyModel.save_pretrained wrote",
        )
    try:
        config = PolicyConfig(**plain)
    except TypeError as error:
        raise _damaged(folder, f"config.json: {error}") from None
    if "auto_map" in config.encoder:
        raise MaskwiseError(
            f"{str(folder)!r} contains code", got="auto_map", do="use a different policy"
        )
    return config


def _new_encoder(config: PolicyConfig) -> nn.Module:
    fields = dict(config.encoder)
    if fields.get("model_type") == LIGHT:
        del fields["model_type"]
        return LightEncoder(**fields)
    loaded = config_of(fields)
    require_kind(loaded, "encoder", use="a policy")
    check_room(loaded, config.length, what="the policy's length")
    with without_advice():
        return load_task_model(None, loaded, head="embedding", seed=0)


def _described(config: PreTrainedConfig) -> Fields:
    """Return the fields of a configuration as JSON values, without its path."""
    text = json.dumps(config.to_dict(), default=str)
    fields: Fields = json.loads(text)
    fields.pop("_name_or_path", None)
    return fields


def _damaged(folder: Path, what: str) -> MaskwiseError:
    do = "use an intact copy, or learn the policy again"
    return MaskwiseError(f"the policy in {folder} is damaged", got=what, do=do)
