"""Size of an environment with maskwise and its extras: megabytes, and number of packages.

    python benchmarks/install_size.py [EXTRA …] > install-size.json     # default: none, and all

Each extra is installed into a new environment, with the versions in constraints.txt. The build of
torch is the one that pip finds on this machine. The benchmark takes minutes and some gigabytes on
disk, which are deleted at the end.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from command import run

from maskwise.base.errors import require_known

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "packages" / "maskwise-data"


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder. Links are not counted."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return round(sum(path.stat().st_size for path in files) / 1e6, 1)


def measure(extra: str, folder: Path) -> dict[str, object]:
    """Install maskwise with an extra ("" for none), and return the size of the environment."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    empty = megabytes(folder)
    wanted = [f"{ROOT}[{extra}]" if extra else str(ROOT)]
    if extra in ("all", "data"):
        wanted.append(str(DATA))
    install = [*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", *wanted]
    subprocess.run(install, check=True)
    listed = json.loads(subprocess.check_output([*pip, "list", "--format", "json"]))
    names = {line["name"] for line in listed} - {"pip", "setuptools"}
    return {
        "extra": extra or "(none)",
        "megabytes": round(megabytes(folder) - empty, 1),
        "distributions": len(names),
    }


def main(extras: Annotated[list[str] | None, typer.Argument()] = None) -> dict[str, object]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in extras or ():
        # pip only warns of an extra that does not exist, and installs none.
        require_known("extra", extra, project["optional-dependencies"])
    lines = []
    for extra in extras or ["", "all"]:
        with TemporaryDirectory() as folder:
            lines.append(measure(extra, Path(folder) / "new"))
    machine = {"python": platform.python_version(), "system": platform.platform()}
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"date": date, "environments": lines, **machine}


if __name__ == "__main__":
    run(main, __doc__)
