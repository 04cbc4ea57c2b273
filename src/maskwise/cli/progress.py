"""The command ``maskwise status``: what is finished, running, failed and left of a study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.errors import MaskwiseError, duration, plural
from maskwise.base.printing import print_json, say
from maskwise.cli.terminal import Json, JsonObject


def status(
    out: Annotated[Path, typer.Argument(help="The folder of a study.", metavar="OUT")],
    drop: Annotated[
        bool,
        typer.Option(
            "--drop-checkpoints",
            help="Remove the checkpoints of finished runs, and name them. Results, logs and the "
            "page stay.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --drop-checkpoints: name them, and remove nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is finished, running, failed and left of a study, also while it runs."""
    from maskwise.studies.status import drop_checkpoints, status_of

    if dry_run and not drop:
        raise MaskwiseError(
            "maskwise status changes nothing by itself",
            got="--dry-run",
            do="use it with --drop-checkpoints",
        )
    if drop:
        dropped = drop_checkpoints(out, dry_run=dry_run)
        if as_json:
            print_json(dropped | {"dry_run": dry_run})
        else:
            _print_dropped(dropped, dry_run=dry_run)
        return
    found = status_of(out)
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: JsonObject) -> None:
    counts = found["counts"]
    finished = counts["finished"]
    total = sum(counts.values())
    state = "finished"
    if found["processes"]:
        state = f"running ({', '.join(found['processes'])})"
    elif finished < total or not found["planned_all"]:
        state = "stopped"
    say(f"{found['name']}: {state}", "bold")
    parts = [f"{finished} of {total} stages are finished"]
    parts += [f"{counts[name]} {name}" for name in ("running", "failed", "left") if counts[name]]
    if not found["planned_all"]:
        parts.append("more may be planned later")
    say(", ".join(parts))
    times = [f"work so far: {duration(found['seconds_done'])}"]
    if counts["running"] or counts["left"]:
        times.append(f"left: {_about(found['seconds_left'])}")
    say(", ".join(times))
    for stage in found["stages"]:
        line = f"{stage['run']}: {stage['work']}"
        if stage["state"] == "running":
            share = "" if stage["share"] is None else f", {stage['share']:.0%}"
            say(f"  running: {line}{share}", "cyan")
        elif stage["state"] == "failed":
            say(f"  failed: {line}: {stage['error']}", "red")
    left = Counter(stage["work"] for stage in found["stages"] if stage["state"] == "left")
    for work, count in left.items():
        say(f"  left: {count} × {work}")
    if found["pending"]:
        say(f"seeds without results: {', '.join(map(str, found['pending']))}")


def _about(seconds: float | None) -> str:
    if seconds is None:
        return "unknown, because no similar stage has run or was timed on this machine"
    return f"about {duration(seconds)} of work"


def _print_dropped(dropped: JsonObject, *, dry_run: bool) -> None:
    verb = "would remove" if dry_run else "removed"
    for path in dropped["removed"]:
        say(f"{verb} {path}")
    for name, reason in dropped["kept"].items():
        say(f"kept that of {name}: {reason}")
    count = plural(len(dropped["removed"]), "checkpoint")
    say(f"{verb} {count}, {dropped['bytes'] / 1e6:,.1f} MB", "bold")
