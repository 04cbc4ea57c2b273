"""Where the time of a training step goes on a GPU: a trace of torch's profiler, by class of kernel.

    python benchmarks/gpu_trace.py TRACE.json.gz --steps 4 --vocabulary 30528

gpu.py writes such traces and puts their summaries into its record. Every moment between the first
and the last kernel belongs to one class, or to ``idle``. If two kernels overlap, the moment belongs
to the one that began first. A kernel is assigned by the operation that launched it (a matrix
product with a side as long as the vocabulary belongs to the head) or else by its name.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
"""An event of a trace in Chrome's format, with times in microseconds."""

ON_CARD = {"kernel", "gpu_memcpy", "gpu_memset"}
"""The categories of events on a GPU."""

CLASSES: tuple[tuple[str, str], ...] = (
    ("attention", r"flash|fmha|attention|sdpa|mha_"),
    ("optimiser", r"multi_tensor|fused_?adam|foreach|lpnorm|_amp_"),
    ("head", r"softmax|nll_loss|cross_entropy|logsumexp"),
    # The names of kernels that torch.compile generates list all operations, also views of products.
    ("GEMM", r"triton_tem"),
    ("elementwise", r"triton"),
    ("GEMM", r"gemm|gemv|cutlass|nvjet|cublas|xmma|wgmma|splitk|matmul|s16816"),
    ("copies", r"memcpy|memset"),
    ("elementwise", r"elementwise|reduce|norm|copy|fill|gather|scatter|index|embedding|drop|cat"),
)
"""Classes of kernels, and what their names contain. The first class whose pattern occurs counts."""
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"}
MOST = 12
"""Number of kernels that a summary names."""


def summarise(
    events: Iterable[Event], *, steps: int, vocabulary: int, on_card: bool = True
) -> dict[str, Any]:
    """Summarise a trace.

    Args:
        events: the events.
        steps: the number of training steps in the trace.
        vocabulary: the number of rows of the output matrix.
        on_card: whether the trace has events of a GPU. If not, operations of the processor that
            contain no other one are counted instead, so that the code runs without a GPU.

    Returns:
        ``ms_per_step``: from the first kernel to the last one, per step. ``ms_by_class``: the same
        time by class, with "idle" and "other". ``share_by_class``: the same, relative to the whole.
        ``explained``: the share of the time that is not "other". ``kernels_per_step``. ``kernels``:
        the most expensive kernels, with ms per step.
    """
    events = [event for event in events if event.get("ph") == "X"]
    products = _head_products(events, vocabulary)
    work = []
    for event in events:
        category = event.get("cat")
        if category in ON_CARD if on_card else category == "cpu_op":
            work.append(event)
    # A long event before a short one that begins at the same time.
    work.sort(key=lambda event: (float(event["ts"]), -float(event["dur"])))
    if not work:
        return {
            "ms_per_step": 0.0,
            "explained": 0.0,
            "kernels_per_step": 0,
            "left_out": "no kernels",
        }
    by_class = Counter[str]()
    by_name = Counter[str]()
    begin = now = float(work[0]["ts"])
    for event in work:
        start = float(event["ts"])
        end = start + float(event["dur"])
        if start > now:
            by_class["idle"] += start - now
        spent = max(0.0, end - max(start, now))
        by_class[class_of(event, products)] += spent
        by_name[str(event["name"])] += spent
        now = max(now, end)
    span = max(now - begin, 1e-9)
    return {
        "ms_per_step": round(span / 1000 / steps, 3),
        "ms_by_class": {name: round(by_class[name] / 1000 / steps, 3) for name in sorted(by_class)},
        "share_by_class": {name: round(by_class[name] / span, 4) for name in sorted(by_class)},
        "explained": round(1 - by_class["other"] / span, 4),
        "kernels_per_step": round(len(work) / steps, 1),
        "kernels": {
            name[:120]: round(spent / 1000 / steps, 3) for name, spent in by_name.most_common(MOST)
        },
    }


def class_of(event: Event, head_products: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    """Return the class of an event on the GPU.

    >>> class_of({"name": "void flash_fwd_kernel<Flash_fwd_kernel_traits>", "cat": "kernel"})
    'attention'
    >>> class_of({"name": "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "cat": "kernel"})
    'GEMM'
    >>> class_of({"name": "triton_poi_fused_gelu_3", "cat": "kernel"})
    'elementwise'
    """
    if event.get("cat") in ("gpu_memcpy", "gpu_memset"):
        return "copies"
    if (event.get("args") or {}).get("External id") in head_products:
        return "head"
    name = str(event["name"]).lower()
    for found, pattern in CLASSES:
        if re.search(pattern, name):
            return found
    return "other"


def _head_products(events: Iterable[Event], vocabulary: int) -> set[int]:
    """Return the external ids of matrix products with a side as long as the vocabulary.

    The profiler must record shapes. Operations inside the product have other ids, so the ids of all
    operations during the product are returned.
    """
    spans = []
    operations = []
    for event in events:
        if event.get("cat") != "cpu_op":
            continue
        arguments = event.get("args") or {}
        operations.append(event)
        sides = arguments.get("Input Dims") or []
        if event["name"] in PRODUCTS and any(vocabulary in side for side in sides if side):
            spans.append((event["tid"], float(event["ts"]), float(event["ts"]) + event["dur"]))
    spans.sort()
    found = set()
    by_thread: dict[Any, list[tuple[float, float]]] = {}
    for thread, begin, end in spans:
        by_thread.setdefault(thread, []).append((begin, end))
    for event in operations:
        at = float(event["ts"])
        inside = by_thread.get(event["tid"], ())
        if any(begin <= at <= end for begin, end in inside):
            number = (event.get("args") or {}).get("External id")
            if number is not None:
                found.add(number)
    return found


def read(path: Path) -> list[Event]:
    """Return the events of a trace file, which may be compressed."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    given = parser.parse_args()
    found = summarise(read(given.trace), steps=given.steps, vocabulary=given.vocabulary)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
