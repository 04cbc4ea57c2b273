"""Side by side with the peers, on real text and in one run. ``maskwise bench NAME`` runs a member of
``BENCHES``.

Every bench returns plain figures (for ``--json``) with the hardware they were measured on, and checks the
results that it times. May import everything but ``cli``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from maskwise.bench.mask import bench_mask, render_mask
from maskwise.bench.train import bench_train, render_train
from maskwise.errors import MaskwiseError, unknown_name

BENCHES: dict[str, Callable[..., dict[str, Any]]] = {"mask": bench_mask, "train": bench_train}
_SHOWN: dict[str, Callable[[dict[str, Any]], RenderableType]] = {"mask": render_mask, "train": render_train}
EVIDENCE = ("annotate", "samplers")
"""Benches that stand in benchmarks/, outside of the package: they need gold sets, or are run once."""


def run(name: str, **settings: Any) -> dict[str, Any]:
    """Run the bench of that name; its result says under ``bench`` which it was.

    Raises:
        MaskwiseError: an unknown name.
    """
    if name in EVIDENCE:
        do = f"in a checkout of the project: python benchmarks/{name}.py --help"
        raise MaskwiseError(f"bench {name} is not part of the package", do=do)
    if name not in BENCHES:
        raise unknown_name("bench", name, BENCHES)
    if "device" in settings and name != "train":
        raise MaskwiseError(
            f"bench {name} runs on the CPU alone", got=f"--device {settings['device']}", do="leave it out"
        )
    return {"bench": name, **BENCHES[name](**settings)}


def render(result: dict[str, Any]) -> RenderableType:
    """The result of ``run`` as a table for the terminal."""
    return _SHOWN[result["bench"]](result)


__all__ = ["BENCHES", "bench_mask", "render", "run"]
