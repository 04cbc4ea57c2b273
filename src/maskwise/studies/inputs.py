"""Write texts and labelled rows that exist only in Python to files, which recipes can name.

A study can be resumed by another process, so all that it reads is in files. The name of a file has
a hash of its rows: the same rows give the same file, and other rows do not replace it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from uuid import uuid4

from maskwise.base.constants import rank_here
from maskwise.base.errors import MaskwiseError, items_of
from maskwise.base.folders import (
    FilesState,
    OutputFolder,
    files_state,
    finite,
    in_utf8,
    own_rows,
    read_json,
    writing,
)
from maskwise.base.specs import of_run, split_options, with_options
from maskwise.recipe.setting_layers import parse_override
from maskwise.recipe.yamls import plain_value
from maskwise.studies.stages import ROWS
from maskwise.tasks import load_task
from maskwise.tasks.loading import options_of
from maskwise.tasks.reading import SPLIT_OF
from maskwise.text.source import with_class_names

if TYPE_CHECKING:
    from maskwise.recipe import Recipe

AnyRecipe: TypeAlias = "str | Path | Mapping[str, object] | Recipe"
"""The name of a shipped recipe, the path of a file, settings, or a recipe."""
Overrides: TypeAlias = Iterable[str] | Mapping[str, object]
"""Settings to change: "key=value" as on the command line, or values keyed by the setting."""

ALLOWED = "texts, dicts, a pandas.DataFrame, a datasets.Dataset, or the path of a file"
TABLE = "a pandas.DataFrame, a datasets.Dataset, dicts, or a dict of these by split"


def overrides_of(overrides: Overrides, texts: object, tasks: object, out: Path) -> list[str]:
    """Return overrides as on the command line, with the texts and tasks that Python gives.

    Args:
        overrides: further settings to change.
        texts, tasks: as for ``text_source`` and ``task_specs``; None for those of the recipe.
        out: the folder of the study, in which files are written.

    >>> overrides_of({"training.steps": 9}, "my.txt", None, Path("runs"))
    ['training.steps=9', 'corpus.source="my.txt"']
    """
    given: dict[str, object] = {}
    changes: list[str] = []
    if isinstance(overrides, Mapping):
        given |= {str(key): value for key, value in plain_value(overrides, "").items()}
    else:
        changes += items_of("overrides", overrides, of="texts 'key=value', or a dict")
    for name, argument, key in (("texts", texts, "corpus.source"), ("tasks", tasks, "tasks")):
        if argument is not None:
            _refuse_twice(name, key, {**dict(map(parse_override, changes)), **given})
    if texts is not None:
        given["corpus.source"] = text_source(texts, out)
    if tasks is not None:
        given["tasks"] = task_specs(tasks, out)
    # JSON is YAML, too.
    return changes + [f"{key}={_yaml(value)}" for key, value in given.items()]


def _refuse_twice(name: str, key: str, overrides: Mapping[str, object]) -> None:
    """Raise an error if overrides set what an argument gives."""
    section, _, last = key.rpartition(".")
    for other, value in overrides.items():
        whole = other == section and isinstance(value, Mapping) and last in value
        if whole or other == key or other.startswith(f"{key}."):
            raise MaskwiseError(
                f"{name} are the {key} of the recipe, which overrides set, too",
                got=f"{other}={value!r}",
                do=f"give one of the two: {name}, or {other} in overrides",
            )


def _yaml(value: object) -> str:
    # Escaped surrogates would be two characters in YAML.
    return json.dumps(value, ensure_ascii=False, default=str)


@contextmanager
def kept_if_begun(folder: OutputFolder) -> Iterator[None]:
    """Remove the files of rows that a call has written, if it is refused before its work begins.

    The work has begun if a file of the folder itself has changed, such as study.json.

    Raises:
        MaskwiseError: the folder is that of another command (``OutputFolder.require``).
    """
    folder.require()
    out = folder.out
    known = own_rows(out)
    before = _state(out)
    missing = [path for path in (out / ROWS, out, *out.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        # Under torchrun, the others may be ahead of the first rank.
        if rank_here() == 0 and _state(out) == before:
            for path in own_rows(out) - known:
                path.unlink(missing_ok=True)
            for path in missing:
                # Another call may have begun there.
                with suppress(OSError):
                    path.rmdir()
        raise


def _state(out: Path) -> FilesState:
    # Locks are hidden files.
    paths = [path for path in sorted(out.glob("[!.]*")) if path.is_file()]
    return tuple(chain.from_iterable(map(files_state, paths)))


def text_source(texts: object, out: Path, *, name: str = "texts") -> str:
    """Return the source of texts for ``corpus.source``; texts without a file get one.

    Args:
        texts: the path of a file, or another source of a recipe; or rows (``file_of_rows``).
        out: the folder of the study, in which the file is written.
        name: the beginning of the name of the file.
    """
    if isinstance(texts, str | Path):
        return str(texts)
    return str(file_of_rows(texts, out / ROWS, name=name))


def task_specs(tasks: object, out: Path) -> list[str]:
    """Return the specs of tasks for a recipe; labelled rows without a file get one.

    Args:
        tasks: a spec, specs, or rows keyed by the name of their task. Beside rows, there may be
            options: ``{"faq": (rows, {"kind": "retrieval"})}``. Rows may be keyed by split.
        out: the folder of the study, in which files are written.

    Raises:
        MaskwiseError: ``tasks`` is a table without the name of its task; see ``file_of_rows``.
    """
    if isinstance(tasks, str | Path):
        return [str(tasks)]
    if isinstance(tasks, Mapping):
        return [_task_spec(str(name), rows, out) for name, rows in tasks.items()]
    if isinstance(tasks, list | tuple) and all(isinstance(each, str | Path) for each in tasks):
        return [*map(str, tasks)]
    raise MaskwiseError(
        "tasks in Python need a name",
        got=type(tasks).__name__,
        allowed="specs, or a dict such as {'topics': rows}",
    )


def _task_spec(spec: str, rows: object, out: Path) -> str:
    given: Mapping[str, object] = {}
    if isinstance(rows, tuple) and len(rows) == 2 and isinstance(rows[1], Mapping):
        rows, given = rows
    name, options = split_options(with_options(spec, **given) if given else spec)
    if isinstance(rows, str | Path):
        path, own = split_options(str(rows))
        return _with_name(path, name, own, options)
    # A dict of splits, as datasets.load_dataset returns it.
    if isinstance(rows, Mapping):
        kept = []
        for split, part in rows.items():
            # Data sets of a hub may have splits without labels, such as "unsupervised".
            if split in SPLIT_OF or not hasattr(part, "features"):
                kept.append(_in_split(split, part, name))
            else:
                warnings.warn(f"{name}: the split {split!r} is left out", stacklevel=4)
        rows = chain.from_iterable(kept)
    written = file_of_rows(rows, out / ROWS, name=name, allowed=TABLE)
    return _with_name(str(written), name, options)


def _with_name(path: str, name: str, *options: str | None) -> str:
    """Return the spec of a task with options, and its name as the last of them."""
    known = ", ".join(filter(None, options))
    return with_options(f"{path}({known})" if known else path, name=name)


def _in_split(split: object, rows: object, name: str) -> Iterator[dict[str, Any]]:
    for row in _rows_in(rows, name, TABLE):
        if not isinstance(row, Mapping):
            raise MaskwiseError(
                f"a row of {name} is no dict", got=type(row).__name__, allowed=TABLE
            )
        yield {**row, "split": split}


FOUND = {"kind", "text", "pair", "label", "metric", "classes"}
"""The arguments of a task that are found in its file."""


def settled(specs: Iterable[str], out: Path | None = None, *, seed: int = 0) -> tuple[str, ...]:
    """Return specs of tasks that say what their files are, so that nobody guesses it again.

    Args:
        specs: the specs of a recipe or a command, which may have ``{seed}``.
        out: the folder of a study or of fine-tuning. What it says of a file is kept.
        seed: the seed of the rows that are read.

    Raises:
        MaskwiseError: a task cannot be read.
    """
    known = tasks_before(out) if out else []
    found = []
    for spec in specs:
        options = options_of(spec)[1]
        if "kind" in options:
            found.append(spec)
            continue
        # What is found comes last, and the kind before the others.
        begin = with_options(spec, kind="").removesuffix("'')")
        kept = next(
            (
                other
                for other in known
                if other.startswith(begin)
                and {"kind", "metric"} <= options_of(other)[1].keys() - options.keys() <= FOUND
            ),
            None,
        )
        if kept is None:
            more = {**load_task(of_run(spec, seed)).suggested}
            # Rows of other seeds may have other labels.
            if "{seed}" in spec:
                more.pop("classes", None)
            kept = with_options(spec, **more) if more else spec
        found.append(kept)
    return (*found,)


def read_as(asked: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """Say which tasks were ``settled``, and how."""
    both = zip(asked, tasks, strict=True)
    return [f"task {spec} is read as {task}" for spec, task in both if task != spec]


def with_settled_tasks(recipe: Recipe, out: Path | None) -> Recipe:
    """Return a recipe whose tasks are ``settled``, for the study in a folder."""
    tasks = settled(recipe.tasks, out, seed=recipe.study.first_seed)
    return recipe.model_copy(update={"tasks": tasks})


def tasks_before(out: Path) -> list[str]:
    """Return the specs of the tasks that a study, or fine-tuning, in a folder has read."""
    before = (read_json(out / name) or {} for name in ("study.json", "finetune.json"))
    return [spec for each in before for spec in (each.get("recipe") or {}).get("tasks") or ()]


def file_of_rows(rows: object, folder: Path, *, name: str, allowed: str = ALLOWED) -> Path:
    """Write rows to ``folder``/``name``-HASH.jsonl, unless this file exists.

    Args:
        rows: texts; dicts; a data frame or a series of pandas; or a dataset of datasets.
        folder: the folder of the file.
        name: the beginning of the name of the file.
        allowed: what errors name as allowed.

    Raises:
        MaskwiseError: there is no row, a row is neither a text nor a dict, a value of a row has no
            form in JSON, or the file cannot be written.
    """
    content = hashlib.sha256()
    count = 0
    # Data sets of a hub have names such as glue/sst2.
    file_name = name.replace("/", "-").replace("\\", "-")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes, also of other machines, may write the same rows.
        partial = folder / f".{file_name[:50]}-{uuid4().hex}.partial"
        try:
            with partial.open("wb") as file:
                for row in _rows_in(rows, name, allowed):
                    line = in_utf8(_line(row, f"row {count} of {name}", allowed))
                    content.update(line)
                    file.write(line)
                    count += 1
            if not count:
                raise MaskwiseError(f"{name} has no rows", allowed=allowed)
            path = folder / f"{file_name}-{content.hexdigest()[:8]}.jsonl"
            if not path.is_file():
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _rows_in(rows: object, what: str, allowed: str) -> Iterable[Any]:
    # A data frame, and not a series, which has no columns.
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return cast(list[Any], cast(Any, rows).to_dict("records"))
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping):
        return with_class_names(rows, getattr(rows, "features", None) or {})
    raise MaskwiseError(f"{what} has no rows", got=type(rows).__name__, allowed=allowed)


def _line(row: object, where: str, allowed: str) -> str:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise MaskwiseError(
            f"{where} is neither a text nor a dict", got=type(row).__name__, allowed=allowed
        )
    try:
        return json.dumps(finite({**row}), ensure_ascii=False, default=_plain) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskwiseError(f"{where} has no form in JSON", got=str(error)) from None


def _plain(value: Any) -> Any:
    """Return numbers and arrays of numpy, and times, as JSON has them."""
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if hasattr(value, "isoformat"):
        # A missing time is not equal to itself.
        return value.isoformat() if value == value else None
    raise TypeError(f"{type(value).__name__} is no JSON value")
