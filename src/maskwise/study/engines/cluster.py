"""The Ray engine: each task on one core, and one GPU where there are any, of whatever machine is free.

It joins the cluster of RAY_ADDRESS, else one that runs on this machine, else it starts one here (as it does at once
where RAY_ADDRESS is "local"). Ray itself retries nothing: a lost node is a failure that may pass, and the loop knows
what to do with it. Tasks must bear to run twice at once, for a node that is given up may still be alive.

Cost: about three seconds to connect, and on every node some seconds for the first task, which imports torch.
Needs: maskwise in the same versions on every machine, and a folder that all of them see.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.study.engines.base import Failure, Probe, Run, answer

CARRIED = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "TOKENIZERS_",
    "ATEN_",
    "MKL_",
    "CUBLAS_",
    "TORCH_",
    "MASKWISE_",
)
"""Beginnings of the variables that workers get from here: where models lie, and what moves the last bit."""
PROBE_SECONDS = 120.0
STORE_BYTES = 100 * 2**20
"""Of a cluster that we start: what passes through it are names."""


class RayEngine:
    """Tasks on a Ray cluster; see ``Engine``.

    Args:
        threads: of torch, in each task.

    Raises:
        MaskwiseError: no Ray; no cluster at RAY_ADDRESS; a node whose probe finds something.
    """

    def __init__(self, run: Run, *, jobs: int | None = None, probe: Probe | None = None, threads: int = 1):
        self.ray = _quiet_ray()
        self.jobs = jobs
        self.tasks: dict[Any, Any] = {}
        if not self.ray.is_initialized():
            _join(self.ray, jobs)
        self.unit = "GPU" if self.ray.cluster_resources().get("GPU") else "CPU"
        environment = {"env_vars": _environment(threads)}
        self.remote = self.ray.remote(
            num_cpus=1, num_gpus=int(self.unit == "GPU"), max_retries=0, runtime_env=environment
        )
        self.first = (run, str(Path.cwd()), threads)
        if probe:
            self._probe(probe, environment)

    @property
    def idle(self) -> int:
        places = self.jobs or int(self.ray.cluster_resources().get(self.unit, 1))  # nodes come and go
        return max(0, places - len(self.tasks))

    def start(self, task: Any) -> None:
        self.tasks[self.remote(_there).remote(*self.first, task)] = task

    def finished(self, timeout: float) -> Iterator[tuple[Any, Any, Failure | None]]:
        if not self.tasks:
            time.sleep(timeout)
            return
        ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=timeout)
        for reference in ready:
            yield self.tasks.pop(reference), *self._outcome(reference)

    def close(self) -> None:
        """End what runs. The connection stays until this process ends: the next phase of a study needs it."""
        for reference in self.tasks:
            self.ray.cancel(reference, force=True)
        self.tasks.clear()

    def _outcome(self, reference: Any) -> tuple[Any, Failure | None]:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # our own code could not even be loaded there
            return None, Failure(_line(error), passing=False)
        except self.ray.exceptions.RayError as error:
            return None, Failure(f"a worker or its machine was lost: {_line(error)}", passing=True)

    def _probe(self, probe: Probe, environment: dict[str, Any]) -> None:
        """Ask every node, before any work, whether it can do it. Lost or busy ones do not count, if any answers."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        task = self.ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(_answered)
        asked = {
            task.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(probe): node
            for node in self.ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        ready, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        failures = [
            (asked[reference]["NodeManagerAddress"], self._outcome(reference)[1]) for reference in ready
        ]
        for node, failure in failures:
            if failure and not failure.passing:
                raise MaskwiseError(f"the Ray node {node} cannot do stages: {failure.error}")
        if all(failure for _, failure in failures):
            do = "look at `ray status`; RAY_ADDRESS=local starts a cluster here"
            raise MaskwiseError(f"no node of the Ray cluster answers within {PROBE_SECONDS:.0f} s", do=do)


def _quiet_ray() -> Any:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    try:
        import ray
    except ImportError:
        raise MaskwiseError("--engine ray needs Ray", do="pip install 'maskwise[ray]'") from None
    # Told to be quiet, Ray still prints the fate of its nodes on stdout, where --json goes.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _join(ray: Any, jobs: int | None) -> None:
    given = os.environ.get("RAY_ADDRESS", "auto")
    settings = {"log_to_driver": False, "logging_level": "critical"}
    if given not in ("auto", "local"):
        _require(given)
    with suppress(ConnectionError):  # there is none
        if given != "local":
            ray.init(address=given, **settings)
            return
    ray.init(
        address="local", num_cpus=jobs or os.cpu_count(), include_dashboard=False,
        object_store_memory=STORE_BYTES, **settings,
    )  # fmt: skip


def _require(address: str) -> None:
    """Ask for the port first: Ray asks for minutes, and aloud."""
    host, _, port = address.rpartition("://")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError) as error:
        do = "start it with `ray start`, or unset RAY_ADDRESS"
        raise MaskwiseError("no Ray cluster at RAY_ADDRESS", got=f"{address}: {error}", do=do) from None


def _environment(threads: int) -> dict[str, str]:
    carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    return carried | {"OMP_NUM_THREADS": str(threads)}


def _there(run: Run, folder: str, threads: int, task: Any) -> tuple[Any, Failure | None]:
    """Runs on a node, in the folder where the study was started, for recipes name files as seen from there."""
    import torch

    torch.set_num_threads(threads)
    if Path(folder).is_dir():
        os.chdir(folder)
    return answer(run, task)


def _answered(probe: Probe) -> tuple[None, Failure | None]:
    wrong = probe()
    return None, Failure(wrong, passing=False) if wrong else None


def _line(error: Exception) -> str:
    """The first sentence of what Ray says; the rest is for its developers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
