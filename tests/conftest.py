"""Every test is offline, on one thread and, unless CUDA_VISIBLE_DEVICES is set, without CUDA."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Many tests compare results bit for bit, or fork, which CUDA does not support.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import typer.main

from maskwise.base import devices
from maskwise.jobs import pools
from maskwise.models import starts
from processes import SamePool

torch.set_num_threads(1)
# As the commands do. Imports and the collection of the tests make objects that stay, and going
# through them again and again takes a quarter of that time.
gc.set_threshold(10_000, 100, 10)
# A shell starts `make test &` with SIGINT ignored, which children inherit: those that tests
# interrupt would not notice.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests and tests of processes have no time limit of their own but the command line's."""
    for item in items:
        if "slow" in item.keywords or "process" in item.keywords:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="module", autouse=True)
def only_new_objects_are_searched_for_garbage() -> None:
    """Every ``Trainer.train``, and what else frees memory, would go through all imported modules
    and collected tests, for 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def tasks_are_done_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Studies and annotations start no workers, each of which imports torch for seconds.

    Times that the user's own studies have measured are neither read nor changed. Without AMX, all
    processors train in single precision.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pools.ENGINES, "local", SamePool)
        # Typer reads the options of every command anew in each call, most of a short one's time.
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with pytest.MonkeyPatch.context() as equally_fast:
            equally_fast.setattr(devices, "measured_rate", lambda *_: 1e9)
            devices.bf16_gain()
        yield


@pytest.fixture(autouse=True)
def but_tests_of_processes_have_workers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "process" in request.keywords:
        monkeypatch.setitem(pools.ENGINES, "local", pools.LocalPool)


@pytest.fixture(scope="session")
def small_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like the bundled encoder, with its tokenizer, 2 of 4 layers and 32 of 256 numbers."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    bundled = starts.bundled_file(starts.BUNDLED["encoder"])
    config = AutoConfig.from_pretrained(bundled)
    config.hidden_size, config.intermediate_size = 32, 64
    config.num_hidden_layers = config.num_attention_heads = 2
    config.layer_types = config.layer_types[:2]
    folder = tmp_path_factory.mktemp("small") / "encoder"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled).save_pretrained(folder)
    return folder


@pytest.fixture
def small_encoder(small_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``bundled:encoder`` is a small untrained model, for tests that need none that knows anything.

    A study of the bundled encoder takes twice as long.
    """
    find = starts.bundled_file
    encoder = starts.BUNDLED["encoder"]

    def found(name: str) -> Path:
        return small_encoder_folder if name == encoder else find(name)

    monkeypatch.setattr(starts, "bundled_file", found)
