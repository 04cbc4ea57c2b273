"""What people see of the speed: FLOPs as torch counts them, shares that are known, a rate that is
measured once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskwise.base import devices
from maskwise.masking import Masker
from maskwise.masking.batch import Lengths
from maskwise.models.flops import Flops
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training import MaskedSource
from maskwise.training.data import Step, look_ahead
from maskwise.training.engine import new_accelerator
from maskwise.training.log import Meter
from test_training import DATA, settings
from training_tools import funnel, model, tokenizer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(devices, "SIZES", {"cpu": 64})


def test_the_flops_of_a_step_are_what_torch_counts() -> None:
    """Rows without padding, one document each: what is left out is the special tokens' share of the
    weights.
    """
    net = model("bert", hidden_size=128, intermediate_size=512)
    net.set_attn_implementation("eager")
    source = MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), settings())
    [step] = look_ahead(source, range(1))
    objective = MaskedLanguageModelling(net)
    with FlopCounterMode(display=False) as counter:
        objective(step.batches[0]).total.backward()

    def measured(step: Step, *, frozen: bool = False) -> float:
        meter = Meter(objective, CPU, ranks=1, frozen=frozen, rate=1.0)
        meter.add(step)
        return meter.flops / counter.get_total_flops()

    # 14 of 16 tokens are no special tokens
    assert 0.85 < measured(step) <= 1.0 and measured(step, frozen=True) < measured(step)
    with_specials = {**step.facts, "tokens": step.facts["present"]}
    assert measured(step._replace(facts=with_specials)) == 1


def test_a_meter_measures_between_readings_and_leaves_pauses_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    objective = MaskedLanguageModelling(model("bert"))
    meter = Meter(objective, CPU, ranks=2, frozen=False, rate=1e6)
    lengths = Lengths(np.array([4, 6]), np.zeros(0, int))
    for _ in range(4):
        found = meter.add(Step(0, [], 3, {"tokens": 10.0}, 3, lengths=lengths))
        assert found == Flops(objective).trained(10, 3, lengths) > Flops(objective).trained(10, 3)
        now[0] += 0.5
    with meter.paused():
        now[0] += 100.0
    flops, found = meter.flops, meter.read(left=6)
    assert found["tokens_per_second"] == 40.0 and found["seconds_left"] == 3.0
    assert (
        found["mfu"] == pytest.approx(flops / 2.0 / 1e6, abs=1e-4)
        and 0.01 < found["memory_gib"] < 100
    )
    meter.add(Step(0, [], 0, {}, 0))
    now[0] += 1.0
    assert meter.read(left=0)["tokens_per_second"] == 0.0
    # The FLOPs of some families are not known.
    other = MaskedLanguageModelling(funnel())
    meter = Meter(other, CPU, ranks=2, frozen=False, rate=1e6)
    meter.add(Step(0, [], 3, {"tokens": 10.0}, 3, lengths=lengths))
    now[0] += 1.0
    assert "mfu" not in meter.read(left=0)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that makes this a processor with AVX-512, on which bf16 gains so much."""

    def changed(gain: float, *, amx: bool = False) -> None:
        rates = {torch.bfloat16: gain * 1e9, torch.float32: 1e9}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(devices, "measured_rate", lambda _, dtype: rates[dtype])
        devices.bf16_gain.cache_clear()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield changed
    devices.bf16_gain.cache_clear()


def trained_in(width: int = 256) -> str:
    return new_accelerator(settings(precision="auto"), width).mixed_precision


@pytest.mark.parametrize(
    ("gain", "amx", "wanted"), [(0.6, False, "no"), (2.2, False, "bf16"), (0.6, True, "bf16")]
)
def test_a_processor_trains_in_bf16_by_itself_only_where_that_is_faster(
    gain: float, amx: bool, wanted: str, processor: Callable[..., None]
) -> None:
    processor(gain, amx=amx)
    assert trained_in() == wanted
    assert trained_in(128) == "no"  # converting its weights takes longer than its products save


def test_all_processes_of_a_machine_train_in_the_precision_that_was_measured_first(
    processor: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may measure another gain in the next process, or at the same time."""
    processor(2.2)
    assert trained_in() == "bf16"
    processor(0.6)
    assert trained_in() == "bf16"
    (file,) = (tmp_path / "cache" / "maskwise").iterdir()
    assert json.loads(file.read_text())["measured"] == 2.2
    # Another process writes while this one measures.
    first = file.read_text()
    file.unlink()

    def slow(_: object, dtype: torch.dtype) -> float:
        file.write_text(first)
        return 1e9

    processor(0.6)
    monkeypatch.setattr(devices, "measured_rate", slow)
    assert trained_in() == "bf16" and [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("damaged", ["", "[]", "{}", "null", '{"meas'])
def test_a_damaged_measurement_is_replaced(
    damaged: str, processor: Callable[..., None], tmp_path: Path
) -> None:
    processor(2.2)
    assert devices.bf16_gain() == 2.2
    (file,) = (tmp_path / "cache" / "maskwise").iterdir()
    file.write_text(damaged)
    processor(1.9)
    assert devices.bf16_gain() == 1.9 and json.loads(file.read_text())["measured"] == 1.9
    processor(0.6)
    assert devices.bf16_gain() == 1.9 and [*file.parent.iterdir()] == [file]


def test_where_no_measurement_can_be_kept_processors_train_in_single_precision(
    processor: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    processor(2.2)
    assert trained_in() == "no"


@pytest.mark.parametrize(
    ("card", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_data_sheet_of_a_card_is_found_by_its_name(
    card: str, bf16: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    gpu = torch.device("cuda")
    assert devices.peak_rate(gpu, "bf16") == bf16
    assert devices.peak_rate(gpu, "no") == (bf16 / 2 if bf16 else None)
    assert devices.peak_rate(CPU, "bf16") is None
