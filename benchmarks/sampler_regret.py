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

import math
from itertools import product

import numpy as np
from command import run

from maskwise.bench import Figures, surroundings
from maskwise.samplers import sampler

ARMS = ("a", "b", "c", "d", "e")
EVERY = 10
WORLDS = {
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


class ExpWeights:
    """A bandit of exponential weights over so many rollouts."""

    def __init__(self, rollouts: int):
        self.rate = math.sqrt(2 * math.log(len(ARMS)) / (rollouts * len(ARMS)))
        self.weights = np.zeros(len(ARMS))

    def probabilities(self) -> np.ndarray:
        shares = np.exp(self.weights - np.logaddexp.reduce(self.weights))
        return 0.9 * shares + 0.1 / len(ARMS)


def play(name: str, world: str, *, noise: float, rollouts: int, seed: int) -> tuple[float, float]:
    """One game: the mean regret of a rollout, and the mean of the largest probability behind every
    update.
    """
    draws = np.random.default_rng(seed)
    regret = largest = 0.0
    if name == "exp-weights":
        player = ExpWeights(rollouts)
    else:
        spec = name if name == "uniform" else f"{name}(every={EVERY})"
        player = sampler(spec, ARMS, seed=seed, steps=rollouts * EVERY)
    for turn in range(rollouts):
        worth = np.array(WORLDS[world](turn / rollouts))
        p = np.asarray(player.probabilities())
        if name == "mometas-plus":  # has draws of its own
            names = [player.draw(turn * EVERY + step) for step in range(EVERY)]
            counts = np.array([names.count(arm) for arm in ARMS])
        else:
            counts = draws.multinomial(EVERY, p)
        if name == "mometas":
            player.rollout = dict(enumerate(np.repeat(ARMS, counts).tolist()))
        share = counts / EVERY
        regret += float(worth.max() - share @ worth)
        reward = float(share @ worth) + noise * draws.standard_normal()
        if name == "exp-weights":
            player.weights += player.rate * reward * share / p
        elif name == "loss-proportional":
            player.update([1.0] * 5, (1 - worth).tolist())
        else:  # five gains whose sum is the reward
            player.update([1.0] * 5, [1.0 - reward / 5] * 5)
        largest += float(max(player.probabilities()))
    return regret / rollouts, largest / rollouts


def main(games: int = 100) -> Figures:
    """
    Args:
        games: of each player in each world.
    """
    rows = []
    for world, rollouts, noise in product(WORLDS, LENGTHS, NOISES):
        row = {"world": world, "rollouts": rollouts, "noise": noise}
        row |= {"regret": {}, "error": {}, "largest": {}}
        for name in PLAYERS:
            found = [
                play(name, world, noise=noise, rollouts=rollouts, seed=seed)
                for seed in range(games)
            ]
            regret, largest = np.mean(found, axis=0)
            # The standard error of a mean.
            error = np.std(found, axis=0, ddof=1)[0] / math.sqrt(games)
            row["regret"][name] = round(float(regret), 4)
            row["error"][name] = round(float(error), 4)
            row["largest"][name] = round(float(largest), 3)
        rows.append(row)
    return {
        "bench": "sampler_regret",
        "games": games,
        "every": EVERY,
        "rows": rows,
        "hardware": surroundings(["torch", "numpy"]),
    }


if __name__ == "__main__":
    run(main, __doc__)
