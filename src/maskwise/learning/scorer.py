"""The model of a learned masking policy: an encoder with a head that scores tokens or spans.

A larger score means that the token or span is masked more often. The encoder is a transformers
model or the light encoder of this module. The light encoder embeds each token and its neighbours,
at a hundredth of a transformer's cost. A token head has one logit per token, and the masking weight
of a token is exp(logit). A span head has a start logit and an end logit per token.

The folder of a policy contains JSON, safetensors, the tokenizer and a model card. Code and pickles
are never loaded. Masking does not run this model. Instead, ``learning.annotator`` stores the scores
as an annotation layer (one value per word), and masking reads this annotation layer.

Source: Ye et al. 2021 (arXiv 2104.08840) for the heads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskwise.base.errors import MaskwiseError, first_line, require_known, whole_number
from maskwise.base.folders import CARD, in_utf8, read_json
from maskwise.learning.settings import LIGHT, light_settings
from maskwise.masking.draws import fold
from maskwise.models.families import check_fit, check_room, require_kind
from maskwise.models.loading import (
    Fields,
    config_of,
    load_config,
    load_task_model,
    new_config,
    without_advice,
)
from maskwise.models.starts import find_policy
from maskwise.models.weights import Size, check_finite, check_size
from maskwise.text import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

Head = Literal["tokens", "spans"]
COLUMNS = {"tokens": 1, "spans": 2}
"""The number of logits per token, keyed by head."""
FORMAT = "maskwise-policy-1"
WEIGHTS = "model.safetensors"
NO_CARD = "---\nlibrary_name: maskwise\ntags: [masking-policy]\n---\n\n# A masking policy\n"


@dataclass(frozen=True)
class PolicyConfig:
    """A policy's ``config.json``.

    Attributes:
        encoder: the fields of the encoder's configuration. The field ``model_type`` is "light" or
            an architecture of transformers.
        head: "tokens" (one logit per token) or "spans" (a start logit and an end logit per token).
        length: the maximum number of tokens that the policy scores at once, including special
            tokens. Longer texts are split into windows of this length.
        longest: the maximum number of words in a span.
        format: the version of the file format.
    """

    encoder: Fields = field(default_factory=dict)
    head: Head = "tokens"
    length: int = 64
    longest: int = 10
    format: str = FORMAT

    def __post_init__(self) -> None:
        require_known("policy head", self.head, COLUMNS)
        if not isinstance(self.encoder, dict):
            raise MaskwiseError("a policy's encoder must be a dict of fields", got=self.encoder)
        for name in ("length", "longest"):
            whole_number(f"{name} of a policy", getattr(self, name), least=1)


class LightEncoder(nn.Module):
    """Maps ids (B, L) to states (B, L, H): token embeddings plus a convolution over neighbours.

    Args:
        vocab_size: the number of tokens in the vocabulary, V.
        hidden_size: the number of values in a state, H.
        window: the width of the convolution in tokens, an odd number. With a window of 1, the state
            of a token does not depend on other tokens.

    Cost: V·H + window·H² parameters. For H = 64 and a window of 5, each token needs 20,000
    multiplications.
    """

    def __init__(self, vocab_size: int, hidden_size: int = 64, window: int = 5):
        super().__init__()
        light_settings({"hidden_size": hidden_size, "window": window})
        weights = (vocab_size + window * hidden_size) * hidden_size
        check_size(Size(weights, buffers=0))
        self.table = nn.Embedding(vocab_size, hidden_size)
        self.near = nn.Conv1d(hidden_size, hidden_size, window, padding=window // 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # The embeddings of padding are set to 0. The convolution then gives the last tokens of a
        # row the same result, however much padding follows.
        states = self.table(input_ids) * attention_mask.unsqueeze(-1)
        near = self.near(states.transpose(1, 2)).transpose(1, 2)
        return states + nn.functional.gelu(near)


class PolicyModel(
    nn.Module, PyTorchModelHubMixin, library_name="maskwise", tags=["masking-policy"]
):
    """A model that scores tokens or spans, with its tokenizer.

    The mixin of huggingface_hub provides ``save_pretrained(folder)`` and ``push_to_hub(id)``. The
    mixin's ``from_pretrained`` would also load pickles, so this class has its own.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> policy = PolicyModel.new(tokenizer, settings={"hidden_size": 8})
    >>> row = tokenizer("the cat", return_tensors="pt")
    >>> policy(row["input_ids"], row["attention_mask"]).shape  # [CLS] the cat [SEP]
    torch.Size([1, 4])

    Args:
        config: the policy's ``config.json``.
        tokenizer: a fast tokenizer.
        encoder: a pre-trained encoder. If None, a new encoder is created from ``config.encoder``.
        card: the text of the model card, README.md.
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
        # With zeros, all words have the same weight, so an untrained policy masks at random.
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
        """Create an untrained policy, which gives all words the same weight.

        Args:
            architecture: the architecture of a new encoder: ``light`` or a ``model_type`` of
                transformers.
            pretrained: the folder or hub id of a pre-trained encoder. If it is given,
                ``architecture`` and ``settings`` are ignored.
            settings: fields of a new encoder's configuration, such as hidden_size.
            head, length, longest: see ``PolicyConfig``.
            seed: the seed for all weights that are not pre-trained.

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
            settings = light_settings(fields)
            described = {"model_type": LIGHT, "vocab_size": len(tokenizer), **settings}
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
        """Write the policy's files. The mixin's ``save_pretrained`` calls this method."""
        weights = {}
        for name, value in self.state_dict().items():
            # safetensors refuses tensors that are not contiguous.
            weights[name] = value.cpu().contiguous()
        save_file(weights, save_directory / WEIGHTS)
        text = json.dumps(asdict(self.config), indent=1, sort_keys=True)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(save_directory)
        (save_directory / CARD).write_bytes(in_utf8(self.card))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:  # type: ignore[override]
        """Load a saved policy in float32, and set it to evaluation mode.

        Args:
            name: a folder, or an id on the hub.

        Raises:
            MaskwiseError: the folder has no policy or no safetensors weights, a file is damaged, or
                the configuration refers to code (``auto_map``).
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
            # A wrong config.json may ask for terabytes. The device "meta" compares the shapes
            # without allocating memory.
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
        MaskwiseError: the folder has no policy, or the policy is damaged or refers to code.
    """
    if not (folder / "config.json").exists():
        do = "give the folder OUT/policy that maskwise learn wrote"
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
            do="give the folder OUT/policy that maskwise learn wrote",
        )
    try:
        config = PolicyConfig(**plain)
    except (TypeError, MaskwiseError) as error:
        raise _damaged(folder, f"config.json: {error}") from None
    if "auto_map" in config.encoder:
        raise MaskwiseError(
            f"the policy in {folder} needs code that is not part of maskwise",
            got="auto_map in config.json",
            do="use a different policy",
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
    """Return the fields of a configuration as JSON values, without the path of the checkpoint."""
    text = json.dumps(config.to_dict(), default=str)
    fields: Fields = json.loads(text)
    fields.pop("_name_or_path", None)
    return fields


def _damaged(folder: Path, what: str) -> MaskwiseError:
    do = "use an intact copy, or learn the policy again"
    return MaskwiseError(f"the policy in {folder} is damaged: {what}", do=do)
