"""Write text with a masked diffusion model, which replaces a few masks by tokens at each step.

At each step, a token is drawn for every remaining mask, but only some of the drawn tokens are
inserted. The other masks remain. The ``order`` decides which tokens are inserted:

- ``confidence``: the likeliest tokens (Chang et al. 2022; LLaDA's sampler, Nie et al. 2025);
- ``random``: tokens at random positions, as the training objective (a likelihood bound) assumes;
- ``block``: the likeliest tokens in the leftmost block that still has masks.

The prompt never changes. Any encoder with a masked-language-model head works. However, an encoder
that was trained at a masking ratio of 15 % writes poor text if most tokens are masked. Each step
costs a forward pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from maskwise.base.constants import WRITES_END
from maskwise.base.devices import best_device
from maskwise.base.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.evaluation.scoring import predictions
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.families import check_fit, most_tokens, require_kind
from maskwise.models.loading import load_model
from maskwise.text import load_tokenizer
from maskwise.text.opening import require_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORDERS = ("confidence", "random", "block")
# The default number of tokens to write, and of tokens in a block.
LENGTH = 32
BLOCK = 8
# Below this temperature, the likeliest token is chosen and none is drawn.
COLD = 1e-6
# A gap in a prompt: [MASK] stands for one token, and [MASK*5] for five.
GAP = re.compile(r"\[MASK(?:\*(\d+))?\]")
# What looks like a gap, and is none.
ODD_GAP = re.compile(r"\[MASK\b[^\]]*\]?")
# The character that is shown for a mask.
SHOWN = "▢"


def _size(gap: re.Match[str]) -> int:
    """Return the number of tokens in a gap, such as 5 for [MASK*5]."""
    digits = gap[1] or "1"
    # int() refuses more than 4,300 digits. The first twelve already exceed every model's limit.
    return int(digits[:12])


class GenerationStep(NamedTuple):
    """The result of a step: its number, the tokens (L,), and the text with ``SHOWN`` for masks."""

    step: int
    ids: Tensor
    text: str


class Writer:
    """A model that fills gaps in a text.

    Args:
        model: a folder or hub id of an encoder with a masked-language-model head.

    Raises:
        MaskwiseError: the model is not an encoder, or its tokenizer has no mask token.
    """

    def __init__(self, model: str):
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model, needs_words=False)
        self.model: PreTrainedModel = load_model(model, kind=None)
        require_kind(self.model.config, "encoder", use="filling gaps")
        check_fit(self.model.config, len(self.tokenizer), do="use the model's own tokenizer")
        nn.Module.to(self.model, best_device())
        self.model.eval()
        self.vocabulary = Vocabulary.of(self.tokenizer)
        self.ends = bool(getattr(self.model.config, WRITES_END, False))

    def read(self, prompt: str, length: int) -> Tensor:
        """Tokenise a prompt. Gaps become masks; without gaps, ``length`` masks follow the prompt.

        Returns:
            (L,) int64 token ids, including the special tokens at the start and end.

        Raises:
            MaskwiseError: the prompt is not UTF-8 or has no gap, or the model does not accept that
                number of tokens.
        """
        mask = self.vocabulary.require_mask()
        require_utf8(prompt)
        length = whole_number("length", length, least=0)
        if odd := ODD_GAP.search(GAP.sub(" ", prompt)):
            raise MaskwiseError(
                "this is no gap", got=odd[0], allowed="[MASK], or [MASK*5] for five tokens"
            )
        if not GAP.search(prompt):
            prompt += f"[MASK*{length}]"
        gaps = list(GAP.finditer(prompt))
        # This check comes first, because a list of 10¹² masks would exhaust the memory.
        self._check_room(sum(map(_size, gaps)))
        ids: list[int] = []
        end = 0
        for gap in gaps:
            ids += self._tokens(prompt[end : gap.start()])
            ids += [mask] * _size(gap)
            end = gap.end()
        ids += self._tokens(prompt[end:])
        if mask not in ids:
            raise MaskwiseError(
                "there is nothing to write", do="give --length, or gaps such as [MASK*5]"
            )
        frame = [self.vocabulary.bos, *ids, self.vocabulary.eos]
        framed = [token for token in frame if token is not None]
        self._check_room(len(framed))
        return torch.tensor(framed)

    def _check_room(self, tokens: int) -> None:
        room = most_tokens(self.model.config)
        if tokens > room:
            raise MaskwiseError(
                "the text is longer than the model reads",
                got=f"{tokens} tokens",
                allowed=f"≤ {room}",
                do="give a lower --length, or smaller gaps",
            )

    @torch.inference_mode()
    def write(
        self,
        prompt: str = "",
        *,
        length: int | None = None,
        steps: int | None = None,
        order: str = "confidence",
        temperature: float = 1.0,
        block: int | None = None,
        seed: int | None = None,
    ) -> Iterator[GenerationStep]:
        """Fill the gaps, and yield the text before the first step and after every step.

        Args:
            prompt: a text with gaps such as [MASK] or [MASK*5].
            length: the number of tokens to write after a prompt that has no gaps; by default
                ``LENGTH``.
            steps: the number of forward passes. The default and maximum is the number of masks.
            order: one of ``ORDERS``.
            temperature: a divisor of the logits. Below ``COLD``, the likeliest token is chosen.
            block: the number of tokens in a block, for the order ``block``; by default ``BLOCK``.
            seed: the seed of the random draws; by default 0.

        Raises:
            MaskwiseError: the order is unknown, the temperature is below 0, an argument has no
                effect beside the others, or ``read`` fails.
        """
        require_known("order", order, ORDERS)
        finite_number("temperature", temperature, least=0)
        idle = {
            "length": (length, "the prompt has gaps", GAP.search(prompt)),
            "block": (block, "it is for the order block", order != "block"),
            "seed": (seed, "nothing is drawn", temperature < COLD and order != "random"),
        }
        for name, (given, why, unused) in idle.items():
            if given is not None and unused:
                raise MaskwiseError(
                    f"{name} has no effect, because {why}", got=given, do=f"leave {name} out"
                )
        length = whole_number("length", LENGTH if length is None else length, least=0)
        seed = whole_number("seed", 0 if seed is None else seed)
        block = whole_number("block", BLOCK if block is None else block, least=1)
        if steps is not None:
            whole_number("steps", steps, least=1)
        ids = self.read(prompt, length)
        draw = torch.Generator().manual_seed(seed % 2**64)
        mask = self.vocabulary.require_mask()
        gaps = (ids == mask).nonzero().flatten()
        if steps is not None and steps > len(gaps):
            raise MaskwiseError(
                "every step writes at least one token, so there are too many steps",
                got=steps,
                allowed=f"1 to {len(gaps)}",
                do="lower the number of steps, or leave it out",
            )
        steps = steps or len(gaps)
        # Random priorities of the masks. Only the order "random" needs them, but they are always
        # drawn. Otherwise the random numbers for tokens would depend on the order.
        turn = torch.rand(len(ids), generator=draw)
        yield GenerationStep(0, ids.clone(), self.text(ids))
        # Text may end behind what the prompt says.
        said = (ids[: len(ids) - (self.vocabulary.eos is not None)] != mask).nonzero()
        tail = int(said.max()) + 1 if len(said) else 0
        for step in range(steps):
            left = (ids == mask).nonzero().flatten()
            # The remaining masks are divided equally among the remaining steps, rounded up.
            count = math.ceil(len(left) / (steps - step))
            asked = left
            if order == "block":
                block_of = torch.searchsorted(gaps, left) // block
                # If the leftmost block has too few masks for this step, add the next blocks.
                asked = left[block_of <= block_of[count - 1]]
            token, priority = self._drawn(ids, asked, temperature, draw, tail)
            if order == "random":
                priority = turn[asked]
            kept = priority.argsort(descending=True, stable=True)[:count]
            ids[asked[kept]] = token[kept]
            if self.ends:
                # Nothing is written behind the first end token.
                ends = [at for at, token in enumerate(ids.tolist()) if token == self.vocabulary.eos]
                first = next((at for at in ends if at >= tail), len(ids))
                ids[first:] = int(self.vocabulary.eos or 0)
            yield GenerationStep(step + 1, ids.clone(), self.text(ids))
            if not (ids == mask).any():
                return

    def text(self, ids: Tensor) -> str:
        """Decode tokens, with ``SHOWN`` for masks and without special tokens at the ends."""
        frame = {self.vocabulary.bos, self.vocabulary.eos}
        inner = [token for token in ids.tolist() if token not in frame]
        decoded = self.tokenizer.decode(inner, clean_up_tokenization_spaces=False)
        return str(decoded).replace(str(self.tokenizer.mask_token), SHOWN).strip()

    def _tokens(self, text: str) -> list[int]:
        # A written [SEP] is text, as in training.
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return list(encoded["input_ids"])

    def _drawn(
        self, ids: Tensor, places: Tensor, temperature: float, draw: torch.Generator, tail: int
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each of M places. Return the tokens and their log p, both (M,).

        From the place ``tail`` on, the text may end if the model has learned it.
        """
        attention = torch.ones(1, len(ids))
        row = torch.zeros_like(places)
        log_p = predictions(self.model, ids[None], attention, row, places).cpu()
        # A model may have more outputs than its tokenizer has tokens.
        words = torch.zeros(log_p.shape[1], dtype=torch.bool)
        words[: self.vocabulary.size] = torch.from_numpy(self.vocabulary.eligible)
        allowed = words.repeat(len(places), 1)
        if self.ends:
            allowed[places >= tail, self.vocabulary.eos] = True
        log_p = log_p.masked_fill(~allowed, -math.inf).log_softmax(-1)
        # With a lower temperature, the quotients would overflow.
        if temperature >= COLD:
            token = (log_p / temperature).softmax(-1).multinomial(1, generator=draw).squeeze(1)
        else:
            token = log_p.argmax(-1)
        return token, log_p.gather(1, token[:, None]).squeeze(1)
