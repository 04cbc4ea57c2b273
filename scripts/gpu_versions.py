"""Run the benchmarks for GPUs in miniature, with the versions of a machine that has a GPU.

    make test-gpu-versions

Nothing of maskwise is installed there, and neither is spaCy. The result is written to
benchmarks/results/gpu/versions.json: versions, commit, seconds, and for each script the parts that
ran, failed or were left out. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gpu" / "versions.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "pydantic", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": git("rev-parse", "--short=10", "HEAD"),
        # Untracked results do not matter, but changed code does.
        "changed_files": git("status", "--porcelain", "--untracked-files=no").splitlines(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "installed": {name: is_installed(name) for name in ("maskwise", "spacy", "flash_attn")},
    }
    with tempfile.TemporaryDirectory() as folder:
        found["gpu.py"] = ran(Path(folder) / "gpu", "gpu.py", "gpu.jsonl", "part")
        found["gpu_claims.py"] = ran(
            Path(folder) / "claims",
            "gpu_claims.py",
            "claims.jsonl",
            "study",
            "--jobs=2",
            f"--work={folder}/work",
        )
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    given.result.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    scripts = (found["gpu.py"], found["gpu_claims.py"])
    return int(any(each["exit_code"] or each["failed"] for each in scripts))


def ran(out: Path, script: str, lines: str, key: str, *arguments: str) -> dict[str, Any]:
    """Run a script in miniature, and return which of its parts ran.

    Args:
        out: the folder for its results.
        script: the file in benchmarks.
        lines: the file of its lines.
        key: the key of a part's name in a line.
        arguments: further arguments.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--smoke", f"--out={out}"]
    command += ["--seconds=1500", *arguments]
    folders = [ROOT / "src", ROOT / "packages" / "maskwise-data" / "src"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    result: dict[str, Any] = {
        "exit_code": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "ran": [],
        "failed": {},
        "left_out": {},
    }
    if done.returncode:
        result["output"] = done.stderr[-2000:]
    file = out / lines
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        part = json.loads(line)
        name = part[key]
        if "error" in part:
            result["failed"][name] = part["error"]
        elif "left_out" in part:
            result["left_out"][name] = part["left_out"]
        elif name not in result["ran"]:
            result["ran"].append(name)
    return result


def is_installed(name: str) -> bool:
    """Return whether a library is installed. Importable source alone does not count."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
