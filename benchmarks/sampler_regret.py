"""What samplers lose against always drawing the best arm, at the noise that rewards really have.

Five arms of known worth, in units of a rollout's reward. A rollout's reward is the mean worth of
what was drawn, plus normal noise: .4 to .8 was measured with probes of 6 rows, and probes of 64
have less (probe_reliability.py). Regret is the mean over rollouts of what was lost, and ``largest``
the mean of the largest probability: where no arm is better it should stay near .2. ``exp-weights``
is a bandit of exponential weights (EXP3) that is told the reward of each rollout, with its learning
rate at the theory's best; ``loss-proportional`` is told losses in proportion to 1 − worth.

    python benchmarks/sampler_regret.py [--games 100] > regret.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from maskwise.bench import surroundings
from maskwise.samplers import Mometas, sampler

ARMS = ("a", "b", "c", "d", "e")
EVERY = 10
WORLDS: dict[str, Callable[[float], list[float]]] = {
    "no effect": lambda t: [0.1] * 5,
    "one arm is best": lambda t: [0.3, 0.05, 0.05, 0.05, 0.05],
    "the best arm changes": lambda t: (
        [0.3, 0.05, 0.05, 0.05, 0.05] if t < 0.5 else [0.05, 0.05, 0.3, 0.05, 0.05]
    ),
    "one arm harms": lambda t: [0.05, 0.05, 0.05, 0.05, -0.4],
}
"""The reward of a rollout of each arm alone, by the share of the run that is over."""
NOISES, LENGTHS = (0.1, 0.4, 0.8), (12, 60, 240)
PLAYERS = ("uniform", "loss-proportional", "exp-weights", "mometas", "mometas-plus")


def play(name: str, world: str, *, noise: float, rollouts: int, seed: int) -> tuple[float, float]:
    """One game: the mean regret of a rollout, and the mean of the largest probability behind every
    update.
    """
    draws, regret, largest = np.random.default_rng(seed), 0.0, 0.0
    rate = math.sqrt(2 * math.log(len(ARMS)) / (rollouts * len(ARMS)))
    weights, player = np.zeros(len(ARMS)), None
    if name != "exp-weights":
        spec = name if name == "uniform" else f"{name}(every={EVERY})"
        player = sampler(spec, ARMS, seed=seed, steps=rollouts * EVERY)
    for turn in range(rollouts):
        worth = np.array(WORLDS[world](turn / rollouts))
        if player is None:
            p = 0.9 * np.exp(weights - np.logaddexp.reduce(weights)) + 0.1 / len(ARMS)
            share = draws.multinomial(EVERY, p) / EVERY
        elif name == "mometas-plus":  # has draws of its own
            names = [player.draw(turn * EVERY + step) for step in range(EVERY)]
            share = np.array([names.count(arm) for arm in ARMS]) / EVERY
        else:
            counts = draws.multinomial(EVERY, player.probabilities().numpy())
            share = counts / EVERY
            if isinstance(player, Mometas):
                player.rollout = dict(enumerate(np.repeat(ARMS, counts).tolist()))
        regret += float(worth.max() - share @ worth)
        reward = float(share @ worth) + noise * draws.standard_normal()
        if player is None:
            weights += rate * reward * share / p
            p = 0.9 * np.exp(weights - np.logaddexp.reduce(weights)) + 0.1 / len(ARMS)
        elif name == "loss-proportional":
            player.update([1.0] * 5, (1 - worth).tolist())
            p = player.probabilities().numpy()
        else:  # five gains whose sum is the reward
            player.update([1.0] * 5, [1.0 - reward / 5] * 5)
            p = player.probabilities().numpy()
        largest += float(p.max())
    return regret / rollouts, largest / rollouts


def games(*, count: int) -> list[dict[str, Any]]:
    """All players in all worlds."""
    rows = []
    for world in WORLDS:
        for rollouts in LENGTHS:
            for noise in NOISES:
                found = {
                    name: [
                        play(name, world, noise=noise, rollouts=rollouts, seed=seed)
                        for seed in range(count)
                    ]
                    for name in PLAYERS
                }
                rows.append(
                    {
                        "world": world,
                        "rollouts": rollouts,
                        "noise": noise,
                        "regret": {
                            n: round(float(np.mean([r for r, _ in f])), 4) for n, f in found.items()
                        },
                        "error": {n: round(_error([r for r, _ in f]), 4) for n, f in found.items()},
                        "largest": {
                            n: round(float(np.mean([p for _, p in f])), 3) for n, f in found.items()
                        },
                    }
                )
    return rows


def _error(values: list[float]) -> float:
    """The standard error of a mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=100, help="games of each player in each world")
    given = parser.parse_args()
    rows = games(count=given.games)
    result = {
        "bench": "sampler_regret",
        "games": given.games,
        "every": EVERY,
        "rows": rows,
        "hardware": surroundings(["torch", "numpy"]),
    }
    Console().print_json(data=result)


if __name__ == "__main__":
    main()
