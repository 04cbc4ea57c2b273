"""Optimisers and the learning rate. The rate is a function of (step, steps): nothing of it needs
saving.

Muon has one iteration for all matrices of one shape: torch's own goes matrix by matrix, and always
in bfloat16.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.families import encoder_of
from maskwise.training.settings import TrainingSettings
from maskwise.training.wrapping import laid_out_as, whole

COOLDOWN = 0.1
"""Share of the steps over which the rate of warm-up, stable, decay (``wsd``) falls unless it is
said.
"""

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda fallen: 1 - fallen,
    "cosine": lambda fallen: (1 - math.cos(math.pi * (1 - fallen))) / 2,
    "1-sqrt": lambda fallen: 1 - math.sqrt(fallen),
    "wsd": lambda fallen: 1 - math.sqrt(fallen),
    "constant": lambda fallen: 1.0,
}
"""The share of the peak that is left, from the share of the way down: 1 at its beginning, 0 at its
end.
"""


def rate_factor(
    step: int, steps: int, *, warmup: float, decay: str, decay_share: float | None = None
) -> float:
    """The share of the peak learning rate in force at ``step`` of ``steps``; above 0 at every step.

    Args:
        warmup: share of the steps over which it rises.
        decay: the curve along which it falls: linear, cosine, 1-sqrt or constant; ``wsd`` is 1-sqrt
            over the last tenth (Hägele et al. 2024, arXiv:2405.18392).
        decay_share: share of the steps, the last ones, over which it falls; None: all of them, or
            the tenth of ``wsd``.

    >>> [round(rate_factor(step, 10, warmup=0.2, decay="linear", decay_share=0.5), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    rise = warmup * steps
    up = min(1.0, (step + 1) / rise) if rise else 1.0
    share = decay_share or (COOLDOWN if decay == "wsd" else 1.0)
    fallen = max(0.0, (step / steps - (1 - share)) / share)  # of the way down, below 1
    return up * CURVES[decay](fallen)


class Optimizers:
    """One or two torch optimisers, stepped together; the rate is set anew at every step.

    Args:
        module: whose parameters to train.
        settings: rates, betas, decay.

    Raises:
        MaskwiseError: Muon for a model without blocks.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        self.settings = settings
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = hidden_matrices(module) if settings.optimizer == "muon" else []
        if settings.optimizer == "muon" and not matrices:
            raise MaskwiseError(
                "optimizer muon is for the matrices of a model's blocks, and there are none "
                "that are trained",
                got=type(getattr(module, "model", module)).__name__,
                do="use optimizer: adamw",
            )
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        decayed = [p for p in rest if p.ndim > 1]
        plain = [p for p in rest if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        adamw = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=settings.betas, fused=True
        )
        self.members: list[torch.optim.Optimizer] = [adamw]
        self.peaks = [settings.learning_rate]
        if matrices:
            rate = settings.muon_learning_rate
            self.members.append(BatchedMuon(matrices, lr=rate, weight_decay=settings.weight_decay))
            self.peaks.append(rate)

    def set_rate(self, step: int) -> float:
        """Set the rates for ``step``; returns AdamW's."""
        s = self.settings
        factor = rate_factor(
            step, s.steps, warmup=s.warmup, decay=s.decay, decay_share=s.decay_share
        )
        for member, peak in zip(self.members, self.peaks, strict=True):
            for group in member.param_groups:
                group["lr"] = peak * factor
        return self.peaks[0] * factor

    def step(self, sound: Tensor | None = None) -> None:
        """Update the weights.

        Args:
            sound: a bool on the device; where it is false, nothing changes. The host does not wait
                for it.
        """
        for member in self.members:
            # What a gradient scaler sets, too: torch's fused AdamW and our Muon read it on the
            # device.
            member.found_inf = None if sound is None else (~sound).float()  # type: ignore[attr-defined]
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)


def state_of(members: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All state of optimizers as flat names and tensors, so that it can be saved without pickle."""
    return {
        f"{m}/{index}/{name}": torch.as_tensor(value)
        for m, member in enumerate(members)
        for index, entry in member.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_state(members: Sequence[torch.optim.Optimizer], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``state_of``."""
    for m, member in enumerate(members):
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in member.param_groups for p in group["params"]]
        for key, value in flat.items():
            number, index, name = key.split("/", 2)
            if int(number) == m:
                state.setdefault(int(index), {})[name] = laid_out_as(value, parameters[int(index)])
        member.load_state_dict(
            {"state": state, "param_groups": member.state_dict()["param_groups"]}
        )


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """The weights that map hidden states to hidden states: what Muon is for.

    These are the linear maps in a model's blocks (what stands in a ``ModuleList``, as in every
    transformers encoder) and, of a language model, the transform in its prediction head: left to
    AdamW at the rate of the embeddings, that one matrix kept tiny models on the plateau
    (docs/decisions/0004-laboratory.md). Embeddings, their projection, the output layer, poolers and
    classifiers stay with AdamW. Telling these by their widths goes wrong where a hidden size equals
    the number of positions (512, 128), or a task has more classes than the model is wide.
    """
    from transformers import PreTrainedModel

    model: Any = module if isinstance(module, PreTrainedModel) else getattr(module, "model", module)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    # Not every ModuleList: the arms of ``Arms`` are one, with all that their heads and the whole
    # model hold.
    encoders = [encoder_of(m) for m in module.modules() if isinstance(m, PreTrainedModel)]
    lists = [m for encoder in encoders for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    inside = {id(m): m for blocks in lists for m in blocks.modules() if isinstance(m, nn.Linear)}
    if output is not None:
        encoder = {id(m) for m in encoder_of(model).modules()} | {id(output)}
        inside |= {
            id(m): m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in encoder
        }
    weights = {id(m.weight): m.weight for m in inside.values()}
    return [w for key, w in weights.items() if w.requires_grad and key not in looked_up]


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon, faster: the matrices of one shape are orthogonalised together, on a CPU in
    single precision.

    Arguments and state are those of ``torch.optim.Muon``, so that either loads what the other
    saved; there is no closure. Source: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> weight.grad = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> BatchedMuon([weight], lr=1.0).step()  # a step changes all directions about as much
        >>> torch.allclose(weight.detach().abs().sum(1), torch.ones(2), atol=0.35)
        True
    """

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, weights, grads, momenta)
            if not weights:
                continue
            # a scalar: 1 where nothing may change, as for torch's AdamW
            skipped = getattr(self, "found_inf", None)
            before = [] if skipped is None else [tensor.clone() for tensor in (*weights, *momenta)]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = (
                torch._foreach_lerp(grads, momenta, group["momentum"])
                if group["nesterov"]
                else momenta
            )
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for indices in of_one_shape(weights):
                self._update([weights[i] for i in indices], [updates[i] for i in indices], group)
            for tensor, old in zip((*weights, *momenta), before):
                assert skipped is not None
                tensor.copy_(torch.where(skipped > 0, old, tensor))

    def _update(self, weights: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        # Where matrices are shared out among ranks, each rank needs all of a matrix and makes its
        # part of the update.
        wide = [u if u.shape[0] <= u.shape[1] else u.T for u in map(whole, updates)]
        steps, coefficients, eps = group["ns_steps"], group["ns_coefficients"], group["eps"]
        for weight, update in zip(
            weights, orthogonal(torch.stack(wide), coefficients, steps, eps), strict=True
        ):
            rows, columns = weight.shape
            scale = max(1.0, rows / columns) ** 0.5
            if group["adjust_lr_fn"] == "match_rms_adamw":
                scale = 0.2 * max(rows, columns) ** 0.5
            turned = update if rows <= columns else update.T
            weight.add_(laid_out_as(turned.to(weight.dtype), weight), alpha=-group["lr"] * scale)


def of_one_shape(matrices: list[Tensor]) -> list[list[int]]:
    """Groups of matrices, by their index, that can be stacked; a matrix and another's transpose are
    of one shape.
    """
    groups = defaultdict(list)
    for index, matrix in enumerate(matrices):
        groups[(*sorted(matrix.shape), matrix.device, matrix.dtype)].append(index)
    return list(groups.values())


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The nearest orthogonal matrices, roughly: every singular value is brought near 1 (between .7
    and 1.2).

    Args:
        matrices: [count, n, m], n ≤ m.
        coefficients: of x, x³ and x⁵ in the quintic that is iterated.
        steps: how often.
        eps: the least norm that is divided by.
    """
    # bfloat16 matrix products are emulated on most CPUs: single precision took a quarter of their
    # time.
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
