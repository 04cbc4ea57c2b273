"""Variants of a training step on a GPU: their numbers, and the plan that measures them.

How fast they are only a GPU can say.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gpu as gpu_bench
import pytest
import torch
from functorch.compile import make_boxed_func
from gpu_variants import (
    VARIANTS,
    Gelu,
    HashDropout,
    PackedRotary,
    SavedSlope,
    hash_dropout,
    in_halves,
)
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx
from transformers import AutoConfig
from transformers.models.bert.modeling_bert import BertLayer

from maskwise.models.families import patched
from maskwise.models.weights import blocks_of
from test_compiled import built, outcome

pytestmark = pytest.mark.script

RATE = 0.1
COUNT = 1 << 20


def seeds(count: int, *, seed: int = 0) -> list[Tensor]:
    """Return pairs of a start and a stride, as ``HashDropout`` draws them."""
    variant = HashDropout()
    torch.manual_seed(seed)
    variant.change(nn.ModuleList([nn.Dropout(RATE), nn.Linear(1, 1)]))
    assert variant.seeds is not None
    return list(variant.seeds[:count])


def stays(pair: Tensor, count: int = COUNT, rate: float = RATE) -> Tensor:
    """Return, for each of ``count`` places, whether it stays."""
    return hash_dropout(torch.ones(count), rate, *pair) > 0


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack((one.float(), other.float())))[0, 1].item()


# Dropout by a hash


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_the_mean_and_the_variance_are_those_of_dropout(rate: float) -> None:
    torch.manual_seed(1)
    values = torch.randn(COUNT)
    for pair in seeds(3):
        dropped = hash_dropout(values, rate, *pair)
        share = (dropped == 0).double().mean().item()
        assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / COUNT)
        # E(x²) / (1 − rate) is the variance of a dropped number with mean 0.
        variance = 1 / (1 - rate)
        assert abs(dropped.mean().item()) < 5 * math.sqrt(variance / COUNT)
        assert dropped.var().item() == pytest.approx(variance, rel=0.02)
        left = dropped != 0
        torch.testing.assert_close(dropped[left], values[left] / (1 - rate))


def test_places_are_dropped_independently() -> None:
    """Near ones, those of one feature, and the same one in another step or layer."""
    width = 768
    most = 5 / math.sqrt(COUNT)
    pairs = seeds(8)
    kept = [stays(pair) for pair in pairs]
    for line in kept:
        for lag in (1, 2, 3, 64, width, 128 * width):
            assert abs(correlation(line[:-lag], line[lag:])) < most
    for number, line in enumerate(kept):
        for other in kept[:number]:
            assert abs(correlation(line, other)) < most
    # The number of places that stay in a block varies as that of independent draws.
    for size in (64, width):
        counts = torch.cat([line[: COUNT - COUNT % size].view(-1, size).sum(1) for line in kept])
        expected = size * RATE * (1 - RATE)
        assert counts.double().var().item() == pytest.approx(expected, rel=0.05)


def test_seeds_that_differ_little_drop_different_places() -> None:
    start = torch.tensor(12345, dtype=torch.int32)
    one, two, three = (torch.tensor(value, dtype=torch.int32) for value in (1, -1, 3))
    most = 5 / math.sqrt(COUNT)
    for other in (two, three):
        pairs = (torch.stack((start, one)), torch.stack((start, other)))
        assert abs(correlation(*map(stays, pairs))) < most
    torch.testing.assert_close(stays(pairs[0]), stays(pairs[0]))


def test_the_gradient_is_that_of_masking_by_hand() -> None:
    (pair,) = seeds(1)
    values = torch.randn(64, 48, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(64, 48, dtype=torch.float64)
    hash_dropout(values, RATE, *pair).backward(slope)
    mask = stays(pair, 64 * 48).view(64, 48)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, slope * mask / (1 - RATE))


def test_every_layer_and_every_step_has_seeds_of_its_own() -> None:
    variant = HashDropout()
    block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(RATE), nn.Dropout(RATE), nn.Dropout(0.0))
    values = torch.ones(50, 4)
    with patched(block):
        variant.change(block)
        assert variant.layers == 2
        first = [layer(values) for layer in block[1:3]]
        assert torch.equal(block[1](values), first[0]) and not torch.equal(*first)
        variant.before_step()
        assert not torch.equal(block[1](values), first[0])
        assert torch.equal(block.eval()[1](values), values)
    assert "forward" not in vars(block[1])


# GELU and rotary embeddings


def bert_layer() -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    return BertLayer(config)


def graphs_of(block: nn.Module, states: Tensor) -> tuple[list[Any], list[Tensor]]:
    """Return the compiler's graphs of both passes, and the output and gradients that they give.

    No code is generated: the graphs run as they are.
    """
    torch.compiler.reset()
    graphs = []

    def kept(graph: Any, inputs: Any, **named: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def run(states: Tensor) -> Tensor:
        return block(states)

    block.zero_grad()
    compiled = torch.compile(
        run, backend=partial(compile_fx, inner_compile=kept), fullgraph=True, dynamic=True
    )
    out = compiled(states)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    gradients = [weight.grad.clone() for weight in block.parameters() if weight.grad is not None]
    return graphs, [out.detach(), *gradients]


def test_gelu_and_its_gradient_are_those_of_torch() -> None:
    values = torch.linspace(-9, 9, 2001, requires_grad=True)
    slope = torch.linspace(1, 2, 2001)
    expected = nn.functional.gelu(values)
    found = Gelu.apply(values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, values, slope)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, values, slope)[0], rtol=1e-5, atol=1e-6
    )
    half = values.detach().bfloat16().requires_grad_()
    found = Gelu.apply(half)
    torch.testing.assert_close(found, nn.functional.gelu(half), rtol=2**-7, atol=1e-6)
    # The slope is rounded, to 8 bits.
    (gradient,) = torch.autograd.grad(found.sum(), half)
    (exact,) = torch.autograd.grad(nn.functional.gelu(half).sum(), half)
    torch.testing.assert_close(gradient, exact, rtol=2**-7, atol=1e-6)
    assert math.isnan(Gelu.apply(torch.tensor(math.nan)))


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_the_slope_of_gelu_is_computed_in_the_forward_pass(half: bool) -> None:
    """The plain step saves its input, too, but computes what GELU returns only once."""
    block = bert_layer()
    states = torch.rand(3, 10, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        plain, before = graphs_of(block, states)
        with SavedSlope().active(), patched(block):
            SavedSlope().change(block)
            changed, after = graphs_of(block, states)
    if half:
        # The slope is rounded.
        old, new = (
            torch.cat([part.float().flatten() for part in side]) for side in (before, after)
        )
        assert (new - old).norm() <= 0.01 * old.norm()
    else:
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-6)

    def count(graph: Any, name: str) -> int:
        return sum(name in str(node.target) for node in graph.graph.nodes)

    def saved(graphs: list[Any]) -> list[str]:
        (output,) = (node for node in graphs[0].graph.nodes if node.op == "output")
        values = [node.meta["val"] for node in output.args[0]]
        return sorted(str(x.dtype) for x in values if isinstance(x, Tensor) and x.shape[-1] == 48)

    assert [count(graph, "erf") for graph in plain] == [1, 1]
    assert [count(graph, "erf") for graph in changed] == [1, 0]
    assert [count(graph, "exp.") for graph in plain] == [0, 1]
    assert [count(graph, "exp.") for graph in changed] == [1, 0]
    # What GELU returns, and its input or its slope.
    assert saved(plain) == saved(changed)


@pytest.mark.parametrize("biased", [False, True])
def test_rotary_embeddings_in_halves_are_the_same(biased: bool) -> None:
    model = built("modernbert")
    if not biased:
        for block in model.layers:
            block.attn.Wqkv.bias = None
    before = outcome(model)
    with patched(model):
        for block in blocks_of(model):
            PackedRotary().change(block)
        after = outcome(model)
    for old, new in zip(before, after, strict=True):
        # Rotary embeddings are computed in single precision.
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(model.layers[0].attn)


def test_rows_in_halves() -> None:
    # (queries, keys, values) × two heads × four rows
    rows = torch.arange(24)
    first = [0, 1, 4, 5]
    second = [2, 3, 6, 7]
    halves = [*first, *second, *(8 + row for row in first), *(8 + row for row in second)]
    assert in_halves(rows, 4).tolist() == [*halves, *range(16, 24)]


# The plan


def test_the_plan_measures_in_the_given_order_and_the_plain_step_first(tmp_path: Path) -> None:
    bench = gpu_bench.Bench(smoke=True)
    parts = [part for part in bench.trials_of([*VARIANTS], tmp_path) if "trace" not in part.name]
    bert, modern = (f"{family}-base, {length}" for family, length in gpu_bench.PROMISED)
    assert [part.name for part in parts] == [
        "machine",
        f"{bert}: plain",
        f"{bert}: hash-dropout",
        f"{bert}: gelu",
        f"{modern}: plain",
        f"{modern}: rotary",
        f"{bert}: fa3",
        f"{modern}: fa3",
        f"{bert}: graphs",
        f"{modern}: graphs",
    ]


def test_a_variant_that_cannot_run_says_why(tmp_path: Path) -> None:
    bench = gpu_bench.Bench(smoke=True)
    shape = bench.shape("bert", 128)
    line = bench.tried(shape, VARIANTS["fa3"])
    assert "FlashAttention 3" in line["left_out"] and not bench.trials
    assert bench.seen(shape, VARIANTS["fa3"], tmp_path)["left_out"]


def test_an_unknown_variant_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--try", "gelu,fa4"])
    with pytest.raises(SystemExit):
        gpu_bench.main()
    said = capsys.readouterr().err
    assert "fa4" in said and all(name in said for name in VARIANTS)


@pytest.mark.slow
def test_variants_run_beside_the_plain_step_in_miniature(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    lines = gpu_bench.bench(tmp_path, seconds=600, smoke=True, tries=[*VARIANTS], traces=traces)
    assert [line for line in lines if "error" in line] == []
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == len(lines)
    left_out = lines[-1]["without_result"]
    assert {name.partition(": ")[2] for name in left_out} == {"fa3", "fa3, trace"}
    measured = [line for line in lines if "gain_ms" in line]
    assert {line["name"] for line in measured} == {*VARIANTS, "plain"} - {"fa3"}
    for line in measured:
        assert len(line["ms_of_turns"]) == 2 and line["mfu_measured"] > 0
        least, most = line["gain_range"]
        assert least <= line["gain_ms"] <= most
        # All begin with the same weights and the same batch. Only dropout differs.
        near = 0.2 if line["name"] == "hash-dropout" else 1e-3
        assert line["losses"] == pytest.approx(line["plain_losses"], rel=near)
    seen = [line for line in lines if line["part"].endswith("trace") and "file" in line]
    assert len(seen) == len(measured)
    assert all((traces / line["file"]).stat().st_size > 1000 for line in seen)
    json.dumps(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hash-dropout", "gelu", "rotary"])
def test_compiled_variants_compute_what_they_compute_uncompiled(name: str) -> None:
    """On this processor, with code that the compiler generates."""
    torch.compiler.reset()
    variant = VARIANTS[name]()
    torch.manual_seed(0)
    if name == "rotary":
        block = built("modernbert").float().layers[1]
        angles = torch.rand(3, 12, 8).repeat(1, 1, 2)
        inputs: dict[str, Any] = {"position_embeddings": (angles.cos(), angles.sin())}
    else:
        block = bert_layer()
        inputs = {}
        for layer in block.modules():
            if name == "hash-dropout" and isinstance(layer, nn.Dropout):
                layer.p = RATE
        block.attention.self.dropout.p = 0.0
    block.train()
    states = torch.rand(3, 12, 32)
    with patched(block), variant.active():
        variant.change(block)
        found = []
        for run in (block.forward, torch.compile(block.forward, dynamic=True, fullgraph=True)):
            block.zero_grad()
            out = run(states, attention_mask=None, **inputs)
            out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
            found.append([out.detach(), *(weight.grad.clone() for weight in block.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
