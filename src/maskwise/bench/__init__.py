"""Side by side with the peers, on real text and in one run. ``maskwise bench NAME`` runs a member of
``BENCHES``.

Every bench returns plain figures (for ``--json``) with the hardware they were measured on, and checks the
results that it times. May import everything but ``cli``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from maskwise.bench.annotate import bench_annotate, render_annotate
from maskwise.bench.mask import bench_mask, render_mask
from maskwise.bench.samplers import bench_samplers, render_samplers
from maskwise.bench.train import bench_train, render_train
from maskwise.errors import unknown_name

BENCHES: dict[str, Callable[..., dict[str, Any]]] = {
    "mask": bench_mask,
    "annotate": bench_annotate,
    "samplers": bench_samplers,
    "train": bench_train,
}
_SHOWN: dict[str, Callable[[dict[str, Any]], RenderableType]] = {
    "mask": render_mask,
    "annotate": render_annotate,
    "samplers": render_samplers,
    "train": render_train,
}


def run(name: str, **settings: Any) -> dict[str, Any]:
    """Run the bench of that name; its result says under ``bench`` which it was.

    Raises:
        MaskwiseError: an unknown name.
    """
    if name not in BENCHES:
        raise unknown_name("bench", name, BENCHES)
    return {"bench": name, **BENCHES[name](**settings)}


def render(result: dict[str, Any]) -> RenderableType:
    """The result of ``run`` as a table for the terminal."""
    return _SHOWN[result["bench"]](result)


__all__ = ["BENCHES", "bench_annotate", "bench_mask", "render", "run"]
