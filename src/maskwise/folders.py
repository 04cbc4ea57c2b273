"""Files and folders that are whole or not there, folders that one process claims, and JSON lines.

Everything that maskwise keeps is written here: under a temporary name beside its place, then
renamed. An interruption leaves the old content or the new one, and what a killed process leaves
behind has a name that ``sweep`` knows. A full disk or a folder that cannot be written is one line
for the user, never a traceback.

A folder with a manifest (``write_folder``) also says what its files held, so that ``damage`` finds
a flipped bit. Hashing costs about a second for a gigabyte.
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
"""What file systems without locks answer."""
RELEASE_SECONDS = 0.2
"""How long a lock is tried for: its file may be one that another process is just removing."""
LATE_SECONDS, RANK_SECONDS = 30.0, 3600.0
"""How long a shared file system may take to show what was written elsewhere, and how long ranks
wait for rank 0.
"""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says against writing to ``path`` into one line.

    Raises:
        MaskwiseError: a full disk, a folder that is read-only or is not there.
    """
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers are written in Rust, and raise errors of their own for a full
        # disk.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        got = getattr(error, "strerror", None) or str(error)
        do = "make room, or give a folder that can be written; what was finished is kept"
        raise MaskwiseError(f"cannot write {path}", got=got, do=do) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that it is whole or not there; missing folders above it are made.

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
    """The same with None for every number that is not finite: JSON has no such numbers.

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
    """The JSON object in a file; None where there is no file, or it holds anything else (it was
    cut, say).
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file of lines, those that are whole: the last line may have been cut by
    a power failure.
    """
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write into a new folder, add the manifest, and only then give the folder its
    name.

    A folder of that name is replaced. A process that is killed between removing the old folder and
    renaming the new one leaves neither; at any other time one of the two is whole.

    Raises:
        MaskwiseError: it cannot be written.
    """
    partial = _partial(folder)
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            fill(partial)
            # A card is for people, who may write in it; everything else is for programs.
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
    """What is wrong with a folder that ``write_folder`` wrote, in a few words; None where every
    file is as it was.

    Args:
        weights: whether to look at ``*.safetensors`` too, which take a second for a gigabyte.
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
    """Check a folder before it is read. One without a manifest, from the hub or another program, is
    not checked.

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
    """Keep other processes out of a folder for as long as the context lasts.

    The operating system holds the lock and frees it when the process dies, however that ends: what
    stays is a file with nothing behind it. On a file system without locks nobody is kept out.

    Args:
        what: what the folder is used for, as the second process hears it: "another study runs in".
        lock: the name of the lock's file in the folder.
        stays: whether that file is left at the end.

    Raises:
        MaskwiseError: another process has the folder, or it cannot be written.
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
    with suppress(OSError):  # a full disk: whoever comes second hears less
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if not stays:
            path.unlink(missing_ok=True)
        held.release()


def locked(path: Path, *, wait: float) -> FileLock:
    """The lock of a file, held until it is released; on a file system without locks nothing is
    locked.

    Args:
        wait: seconds for which another process may have it; negative: as long as it takes.

    Raises:
        Timeout: another process has it still.
    """
    held = FileLock(path, timeout=wait, fallback_to_soft=False)
    try:
        held.acquire()
    except OSError as error:  # a ``Timeout`` too, which has no number
        if error.errno not in NO_LOCKS:
            raise
    return held


def appears(path: Path, *, within: float | None = None) -> bool:
    """Whether a file is there. If not, wait (LATE_SECONDS): what another machine wrote may show
    late.
    """
    end = time.monotonic() + (LATE_SECONDS if within is None else within)
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)  # network file systems refresh listings every few seconds
    return True


def require_file(path: Path) -> None:
    """Wait, on the other ranks, for what rank 0 writes: to prepare a text can outlast a
    collective's time limit.

    Raises:
        MaskwiseError: an hour has passed.
    """
    if not appears(path, within=RANK_SECONDS):
        raise MaskwiseError(f"{path} did not appear", do="is the folder shared by all processes?")


def require_own(folder: Path, *marks: str, what: str) -> None:
    """Refuse a folder that holds something else than what is to be written into it.

    Args:
        folder: may be missing or empty.
        marks: names (patterns) of which one at least is in a folder of the right kind.
        what: the right kind, such as "a study".

    Raises:
        MaskwiseError: a file, or a folder with other content.
    """
    if folder.exists() and not folder.is_dir():
        raise MaskwiseError("--out is a file", got=str(folder), do="give a folder")
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any(any(folder.glob(mark)) for mark in marks)
    ):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        do = f"give a new folder, or that of {what}"
        raise MaskwiseError(f"--out {folder} holds something else", got=names, do=do)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half-written below a folder. Only for who has
    claimed it.
    """
    for partial in list(folder.rglob(".*.partial")):
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(
            missing_ok=True
        )


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
    """What a message says of a path that is not there: where a relative one was looked for."""
    return None if path.is_absolute() else f"no such path in {Path.cwd()}"


def refuse_missing(*names: str) -> None:
    """Refuse what is spelt like a file and does not exist; a task may have its options in brackets
    behind it.
    """
    for name in names:
        file, _ = split_options(name)
        spelt = (Path(file).suffix or "/" in file) and not file.startswith(("hf:", "bundled:"))
        if spelt and not Path(file).expanduser().exists():
            raise MaskwiseError(f"file {file!r} does not exist")


def recipe_path(source: str | Path) -> Path:
    """The file of a recipe, or of a shipped one by name. It is here so that a typo is told before
    torch is imported.

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
