"""How long an arm must train to spend what the baseline spends: of steps, targets, FLOPs or seconds.

Matched by steps (the usual way), a higher ratio buys more targets for nothing; matched by targets, it pays for them
with steps; FLOPs and seconds lie between. What a run spends is its number of steps times the mean of a step, and that
mean is measured: batches all along the run are masked as they will be, with the ratio, policy and budget of the arm.
A schedule of the ratio runs over a run's own length, so its mean does not depend on the length.
Where there is an intermediate stage, its length stays and the first stage's is set.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.models import empty_model, load_config, new_config
from maskwise.study.costs import per_step
from maskwise.study.learning import make_masker
from maskwise.study.stages import Stage, time_stage
from maskwise.study.work import Prepared
from maskwise.training import MaskedSource

Rates = list[dict[str, float]]


def rates(one: Any, texts: list[Stage], stages: Path, *, clock: bool = False) -> Rates | None:
    """What the trainings of a run spend altogether: a dict each of ``steps``, ``tokens``, ``targets``, ``flops``
    (and ``seconds``, with ``clock``). None while a text, or a timing, is not there.

    Args:
        one: the recipe of a run.
        texts: the text of each of its trainings.
        stages: the folder of all stages.
    """
    found = []
    for link, text in zip(one.links(), texts):
        if text.result(stages) is None:
            return None
        steps = link.training.steps
        spends = {
            key: steps * value for key, value in _per_step(_Hashable(link), text.folder(stages)).items()
        }
        if clock:
            timed = time_stage(link, text).result(stages)
            if timed is None:
                return None
            spends["seconds"] = steps * timed["step_seconds"]
        found.append(spends)
    return found


def spent(found: Rates | None, by: str) -> float | None:
    """What a whole run spends of one thing."""
    return None if found is None else sum(link[by] for link in found)


def matched_steps(found: Rates | None, by: str, budget: float, *, arm: str) -> int | None:
    """The steps of the first training with which a run spends the budget; None where that is not known.

    Raises:
        MaskwiseError: the stages behind the first spend more than that already, or a step spends nothing.
    """
    if found is None:
        return None
    first, *further = found
    left, each = budget - sum(link[by] for link in further), first[by] / first["steps"]
    if left <= 0 or each <= 0:
        what = f"arm {arm!r} cannot spend as much as the baseline by {by}"
        raise MaskwiseError(what, got=f"{budget:.4g} in all, {budget - left:.4g} in its intermediate stage")
    return max(1, round(left / each))


class _Hashable:
    """A recipe as a key: measured once, however many runs are planned with it."""

    def __init__(self, link: Any):
        self.link = link
        self.key = link.model_copy(update={"name": "", "description": ""}).to_yaml()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.key == other.key


@cache
def _per_step(what: _Hashable, text: Path) -> dict[str, float]:
    link = what.link
    if link.objectives:  # matched by steps alone: which objective will be drawn is not known before
        return {"steps": 1}
    data = _load(text)  # a policy that learns masks with the weights of its beginning here
    masker = make_masker(link.masking.model_dump(), data.tokenizer, seed=link.training.seed)
    model = link.model
    if model.pretrained:
        config = load_config(model.pretrained)
    else:
        config = new_config(model.architecture, data.tokenizer, link.corpus.length, **model.settings)
    return per_step(MaskedSource(data.training, masker, link.training), empty_model(config))


@lru_cache(maxsize=4)
def _load(text: Path) -> Prepared:
    return Prepared.open(text / "data")
