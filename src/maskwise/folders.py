"""Atomic writes, manifests, locks, JSON lines, and where recipes are found.

Every file is written under a temporary name and renamed, so that an interruption leaves the old
content or the new one. A manifest (``write_folder``) has the hashes of a folder's files; hashing
takes about a second for a gigabyte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.specs import split_options

MANIFEST = "manifest.json"
CARD = "README.md"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without locks."""
RELEASE_SECONDS = 0.2
"""How long to retry a lock: another process may be removing its file."""
LATE_SECONDS, RANK_SECONDS = 30.0, 3600.0
"""How long to wait for files of another machine, and how long ranks wait for rank 0."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing to ``path`` into one line.

    Raises:
        MaskwiseError: a full disk, a folder that is read-only or is not there.
    """
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers, written in Rust, raise other errors for a full disk
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        got = getattr(error, "strerror", None) or str(error)
        do = "make room, or give a folder that can be written; what was finished is kept"
        raise MaskwiseError(f"cannot write {path}", got=got, do=do) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all, and the folders above it.

    Raises:
        MaskwiseError: it cannot be written.
    """
    # in the same folder, since a rename is atomic within one file system only
    partial = _partial(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False))


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON cannot hold.

    >>> finite({"score": float("nan"), "dev": [0.5]})
    {'score': None, 'dev': [0.5]}
    """
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file of lines; a line that a power failure has cut is skipped."""
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write into a new folder, add the manifest, and then rename the folder.

    A folder of that name is replaced. Only a process that is killed between removing the old folder
    and renaming the new one leaves neither.

    Raises:
        MaskwiseError: it cannot be written.
    """
    partial = _partial(folder)
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            fill(partial)
            # A card is not hashed: people may edit it.
            files = sorted(
                path for path in partial.rglob("*") if path.is_file() and path.name != CARD
            )
            hashes = {str(path.relative_to(partial)): file_hash(path) for path in files}
            (partial / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1))
            # a folder cannot be renamed onto one that is not empty
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def damage(folder: Path, *, weights: bool = True) -> str | None:
    """What is wrong with a folder of ``write_folder``; None where no file has changed.

    Args:
        weights: whether to hash ``*.safetensors`` too.
    """
    hashes = (read_json(folder / MANIFEST) or {}).get("sha256")
    if not isinstance(hashes, dict):
        return "no readable manifest"
    for name, expected in hashes.items():
        path = folder / name
        if path.suffix == ".safetensors" and not weights:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if file_hash(path) != expected:
            return f"{name} is damaged"
    return None


def refuse_damaged(folder: Path, *, weights: bool = True) -> None:
    """Refuse a damaged folder. One without a manifest, such as from the hub, is not checked.

    Args:
        weights: as for ``damage``.

    Raises:
        MaskwiseError: a file has changed since the manifest was written.
    """
    if (folder / MANIFEST).exists() and (wrong := damage(folder, weights=weights)):
        do = f"take a whole copy, or remove its {MANIFEST} if the change is meant"
        raise MaskwiseError(f"{folder} is not as it was written", got=wrong, do=do)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claim(folder: Path, what: str, *, lock: str = ".lock", stays: bool = True) -> Iterator[None]:
    """Keep other processes out of a folder while the context lasts.

    The operating system frees the lock when the process dies. On a file system without locks
    nothing is locked.

    Args:
        what: the use of the folder, for the second process's error: "another study runs in".
        lock: the name of the lock's file in the folder.
        stays: whether to keep that file at the end.

    Raises:
        MaskwiseError: another process holds the lock, or the folder cannot be written.
    """
    path, holder = folder / lock, None
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = locked(path, wait=RELEASE_SECONDS)
        except Timeout:
            with suppress(OSError):  # Windows lets nobody read it
                holder = path.read_text() or None
            do = "wait for it, or give another folder"
            raise MaskwiseError(f"{what} {folder}", got=holder, do=do) from None
    with suppress(OSError):  # on a full disk the second process's error has no holder
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if not stays:
            path.unlink(missing_ok=True)
        held.release()


def locked(path: Path, *, wait: float) -> FileLock:
    """Acquire the lock of a file; on a file system without locks nothing is locked.

    Args:
        wait: seconds to wait for another process; negative: without limit.

    Raises:
        Timeout: another process still holds it.
    """
    held = FileLock(path, timeout=wait, fallback_to_soft=False)
    try:
        held.acquire()
    except OSError as error:  # a ``Timeout`` too, which has no number
        if error.errno not in NO_LOCKS:
            raise
    return held


def appears(path: Path, *, within: float | None = None) -> bool:
    """Whether a file exists, after waiting for it: other machines' files may appear late."""
    end = time.monotonic() + (LATE_SECONDS if within is None else within)
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)  # network file systems refresh listings every few seconds
    return True


def require_file(path: Path) -> None:
    """Wait, on other ranks, for a file of rank 0, longer than a collective's time limit.

    Raises:
        MaskwiseError: an hour has passed.
    """
    if not appears(path, within=RANK_SECONDS):
        raise MaskwiseError(f"{path} did not appear", do="is the folder shared by all processes?")


def require_own(folder: Path, *marks: str, what: str) -> None:
    """Refuse an output folder with unrelated content.

    Args:
        folder: may be missing or empty.
        marks: patterns of names; a folder of the right kind matches at least one.
        what: the right kind, such as "a study".

    Raises:
        MaskwiseError: a file, or a folder with other content.
    """
    if folder.is_file():
        raise MaskwiseError("--out is a file", got=str(folder), do="give a folder")
    names = sorted(path.name for path in folder.glob("*"))
    if names and not any(any(folder.glob(mark)) for mark in marks):
        do = f"give a new folder, or that of {what}"
        got = ", ".join(names[:3])
        raise MaskwiseError(f"--out {folder} holds something else", got=got, do=do)


def sweep(folder: Path) -> None:
    """Remove partial files of killed processes below a folder that this process has claimed."""
    for partial in list(folder.rglob(".*.partial")):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


MOVED = {
    *("decay-claim", "decay-claim-flops", "decay-claim-targets", "mometas-claim", "ptw-claim"),
    *("policy-control", "ptw-control", "sampler-control", "schedule-control"),
    *("learn-meta-full", "learn-meta-seq2seq", "learn-meta-university", "learn-trivia", "transfer"),
    *("factworld-full", "factworld-causal", "factworld-seq2seq", "factworld-university"),
    *("mometas-encoder", "mrd", "ptw-mrd", "diffusion-policies", "online-policies"),
    "continual-minilm",
}
"""Recipes of single experiments, which are no longer part of the package."""


def shipped() -> dict[str, Path]:
    """The recipes that come with maskwise, by name."""
    folder = Path(str(files("maskwise") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def looked_in(path: Path) -> str | None:
    """For the error of a missing path: the folder that a relative one was looked for in."""
    return None if path.is_absolute() else f"no such path in {Path.cwd()}"


def refuse_missing(*names: str) -> None:
    """Refuse names that look like files and do not exist; options in brackets are left out."""
    for name in names:
        file, _ = split_options(name)
        spelt = (Path(file).suffix or "/" in file) and not file.startswith(("hf:", "bundled:"))
        if spelt and not Path(file).expanduser().exists():
            raise MaskwiseError(f"file {file!r} does not exist")


def recipe_path(source: str | Path) -> Path:
    """The file of a recipe, or of a shipped one by name; without importing torch.

    Raises:
        MaskwiseError: no such recipe.
    """
    path = shipped().get(str(source), Path(source))
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise MaskwiseError("no such recipe file", got=str(source))
    refuse_missing(str(source))
    if str(source) in MOVED:
        do = f"in a checkout of the project, give the path benchmarks/recipes/{source}.yaml"
        raise MaskwiseError(f"recipe {source} is not part of the package any more", do=do)
    raise unknown_name("recipe", str(source), shipped(), do="or give the path of a YAML file")


def write_page(path: Path, template: str, **values: object) -> None:
    """Write one self-contained page; every text is escaped.

    Raises:
        MaskwiseError: a path that cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("maskwise", "report"), autoescape=True)
    write_whole(path, environment.get_template(template).render(**values))
