"""`unetx-opt queue`: look at a node's queue and change it, while the node runs and while it does not."""

from __future__ import annotations

import datetime
import getpass
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetx_opt.cli.output import echo_json, note
from unetx_opt.errors import DataError

if TYPE_CHECKING:
    import sqlite3

    from unetx_opt.node.audit import AuditTrail
    from unetx_opt.node.queue import QueueChange

__all__ = ["queue"]

_NODE = click.argument("node", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def queue() -> None:
    """List, show, send again or drop what a node holds, and check its audit trail.

    NODE is the node's folder of state, or its configuration file. Receipts are named as they are listed, deliveries
    by d and their number.
    """


@queue.command("list")
@_NODE
@click.option("--state", "states", multiple=True, help="Only these states; by default what is not finished.")
@click.option("--destination", help="Only deliveries of this destination.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="The newest so many of each.")
@_JSON
def list_command(node: Path, states: tuple[str, ...], destination: str | None, limit: int, as_json: bool) -> None:
    """List receipts and deliveries, the newest first."""
    from unetx_opt.node.queue import QueueFilter, list_queue

    wanted = QueueFilter(limit=limit, destination=destination, **({"states": states} if states else {}))
    with _opened(node) as (journal, _):
        found = list_queue(journal, wanted)
    if as_json:
        echo_json(found)
        return
    for row in found["receipts"]:
        click.echo(_line(row["receipt_id"], row["state"], row["received_at"], row["calling_ae"], row["reason"]))
    for row in found["deliveries"]:
        what = f"{row['kind']} to {row['destination']}, {row['attempts']} attempts"
        click.echo(_line(row["entry"], row["state"], row["stored_at"], what, row["error"]))
    if not found["receipts"] and not found["deliveries"]:
        note("nothing waits")


@queue.command("show")
@_NODE
@click.argument("entry")
@_JSON
def show_command(node: Path, entry: str, as_json: bool) -> None:
    """Show a receipt, or a delivery's receipt, with all its deliveries."""
    from unetx_opt.node.queue import show_entry

    with _opened(node) as (journal, _):
        found = show_entry(journal, entry)
    if as_json:
        echo_json(found)
        return
    for title, rows in (("receipt", [found["receipt"]]), ("delivery", found["deliveries"])):
        for row in rows:
            click.echo(title)
            for name, value in row.items():
                if value is not None:
                    click.echo(f"  {name:20} {_readable(name, value)}")


@queue.command("retry")
@_NODE
@click.argument("entries", nargs=-1)
@click.option("--dead", is_flag=True, help="Everything that is dead.")
@click.option("--destination", help="With --dead: only deliveries of this destination.")
@_JSON
def retry_command(node: Path, entries: tuple[str, ...], dead: bool, destination: str | None, as_json: bool) -> None:
    """Try again from the first attempt what is dead, and at once what waits."""
    from unetx_opt.node.queue import retry_entries

    _change(node, entries, (dead, destination), retry_entries, as_json=as_json)


@queue.command("drop")
@_NODE
@click.argument("entries", nargs=-1)
@click.option("--dead", is_flag=True, help="Everything that is dead; needs --yes.")
@click.option("--destination", help="With --dead: only deliveries of this destination.")
@click.option("--yes", is_flag=True, help="Drop everything that is dead without asking.")
@_JSON
def drop_command(
    node: Path, entries: tuple[str, ...], dead: bool, destination: str | None, yes: bool, as_json: bool
) -> None:
    """Forget deliveries that wait or are dead, and receipts that were refused or are dead."""
    from unetx_opt.node.queue import drop_entries

    if dead and not yes:
        raise click.UsageError("--dead drops results that nobody has: pass --yes to mean it")
    _change(node, entries, (dead, destination), drop_entries, as_json=as_json)


@queue.command("audit")
@_NODE
@click.option("--expect", metavar="COUNT:SHA256", help="A head that was kept: the trail must still hold it.")
@_JSON
def audit_command(node: Path, expect: str | None, as_json: bool) -> None:
    """Check every record of the audit trail; exit 1 where one was altered, taken out or cut off."""
    from unetx_opt.node.audit_check import check_trail
    from unetx_opt.node.queue import state_folder

    check = check_trail(state_folder(node), _parse_head(expect))
    head = f"{check.head.count}:{check.head.sha256}"
    if as_json:
        echo_json({"ok": not check.problems, "records": check.head.count, "head": head, "problems": check.problems})
    else:
        click.echo(f"records  {check.head.count}")
        click.echo(f"head     {head}")
        for problem in check.problems:
            click.echo(f"problem  {problem}")
    if check.problems:
        raise DataError(f"the audit trail of {node} is not whole: {check.problems[0]}")


def _parse_head(text: str | None) -> Any:
    from unetx_opt.node.audit import AuditHead

    if text is None:
        return None
    count, _, digest = text.partition(":")
    if not count.isdigit() or len(digest) != 64:
        raise click.UsageError(f"--expect is {text!r}, expected COUNT:SHA256 as this command prints it")
    return AuditHead(int(count), digest)


@contextmanager
def _opened(node: Path) -> Iterator[tuple[sqlite3.Connection, AuditTrail]]:
    from unetx_opt.node.audit import AuditTrail
    from unetx_opt.node.journal import JOURNAL_NAME, connect_journal
    from unetx_opt.node.queue import state_folder

    folder = state_folder(node)
    with closing(connect_journal(folder / JOURNAL_NAME)) as journal:
        yield journal, AuditTrail(folder)


def _change(
    node: Path,
    entries: tuple[str, ...],
    dead: tuple[bool, str | None],
    change: Callable[[sqlite3.Connection, list[str], str, AuditTrail], list[QueueChange]],
    *,
    as_json: bool,
) -> None:
    from unetx_opt.node.queue import find_dead

    wants_dead, destination = dead
    if wants_dead == bool(entries) or (destination is not None and not wants_dead):
        raise click.UsageError("name entries, or pass --dead, alone or with --destination")
    with _opened(node) as (journal, audit):
        names = find_dead(journal, destination) if wants_dead else list(dict.fromkeys(entries))
        changes = change(journal, names, getpass.getuser(), audit)
    if as_json:
        echo_json({"entries": changes})
    else:
        for one in changes:
            click.echo(f"{'done' if one.changed else 'not done':9} {one.entry}{f': {one.why}' if one.why else ''}")
        if not changes:
            note("nothing is dead")
    left = [one for one in changes if not one.changed]
    if left:
        raise DataError(f"{len(left)} of {len(changes)} entries were not changed: {left[0].entry}: {left[0].why}")


def _line(entry: str, state: str, at: float | None, what: str, why: str | None) -> str:
    when = _readable("_at", at) if at is not None else ""
    return f"{entry:34} {state:9} {when:20} {what}{f': {why}' if why else ''}"


def _readable(name: str, value: object) -> str:
    if isinstance(value, float) and (name.endswith("_at") or name == "not_before") and value > 0:
        return datetime.datetime.fromtimestamp(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
