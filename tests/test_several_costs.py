"""What a training on several objectives counts and says: work of each, steps and probes, and the
guards of samplers.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskwise.objectives import Loss, objective
from maskwise.samplers import sampler
from maskwise.training.engine import Agreement
from maskwise.training.learners import Progress
from maskwise.training.loop import Exchange
from maskwise.training.several import Probe, SamplerLearner
from test_several import ARMS, lines, run
from training_tools import model


def test_chance_knows_the_settings() -> None:
    net = model("bert")
    assert objective("rtd(weight=10)", net).chance(100, 8) == pytest.approx(
        math.log(100) + 10 * math.log(2)
    )
    assert objective("atd", net).chance(100, 8) == math.log(2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_count_once_in_however_many_micro_batches(accumulate: int, tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("mlm", "atd")}
    run(tmp_path, arms=arms, spec="sequential(block=3)", accumulate=accumulate, log_every=3)
    found = [line["objective_steps"] for line in lines(tmp_path)]
    assert found == [{"mlm": 3, "atd": 0}, {"mlm": 0, "atd": 3}] * 2


# A rule is only watched, so its probes do not count.
@pytest.mark.parametrize(
    ("spec", "every", "probes"), [("mometas(every=2)", 0, 3), ("uniform", 2, 0)]
)
def test_flops_count_the_objective_that_was_drawn_and_the_probes_that_teach(
    spec: str, every: int, probes: int
) -> None:
    class Losses:
        flops = 1000

        def __call__(self, turn: int) -> torch.Tensor:
            return torch.full((2, 4, 2), 2.5)

    losses: Any = Losses()
    learner = SamplerLearner(sampler(spec, ["mlm", "atd"]), lambda: losses, watched_every=every)
    batch: Any = SimpleNamespace(objective="atd", tokens=4, targets=4)
    exchange = Exchange(Agreement(SimpleNamespace(num_processes=1)))
    exchange.update({"sampler": learner}, Progress(0, 4))
    for step in range(4):
        learner.observe(batch, Loss(torch.tensor(8.0), torch.tensor(4)))
        exchange.update({"sampler": learner}, Progress(step + 1, 4, closing=step == 3))
    spent = learner.spent()
    assert spent["mlm"]["steps"] == 0
    assert (spent["atd"]["steps"], spent["atd"]["tokens"]) == (4, 16)
    assert spent["atd"]["probes"] == probes and "probe_losses" in learner.facts()
    again = SamplerLearner(sampler(spec, ["mlm", "atd"]), None)
    again.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
    assert again.spent() == spent  # a stop forgets nothing
    assert torch.equal(again.before, learner.before)
    assert torch.equal(again.rewards, learner.rewards)
    # The first probe is before the first step.
    assert learner.probe_flops == again.probe_flops == 1000 * probes


def test_guards_are_logged_each_once_though_a_line_covers_several_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is NaN, and an arm that is never drawn and gets worse while another improves."""
    arms: dict[str, Any] = {name: ARMS[name] for name in ("mlm", "atd", "cse", "mlm-40")}

    def probed(self: Probe, turn: int) -> torch.Tensor:
        loss = torch.tensor([2.0 - 0.1 * turn, math.nan, 0.0, 1.0 + turn])
        sums = torch.stack([loss, torch.ones(4), torch.ones(4), torch.ones(4)]).double()
        return torch.stack([sums, sums]) / 2

    monkeypatch.setattr(Probe, "__call__", probed)
    monkeypatch.setattr("maskwise.samplers.base.Sampler.draw", lambda self, step, total=None: "mlm")
    run(tmp_path, arms=arms, spec="mometas(every=2)", log_every=6)
    expected = ["atd: the probe loss is not finite; its gain is set to 0"]
    found = [line["notes"] for line in lines(tmp_path)]
    assert found == [expected, expected]
    assert all("atd" not in line["probe_losses"] for line in lines(tmp_path))  # NaN is no JSON
