"""``tachograph spool``: what waits on this machine to be delivered, and delivering it."""

from __future__ import annotations

import argparse
import os
import sys

from tachograph.errors import StoreError, TachographError
from tachograph.recording import setup
from tachograph.recording.spool import Spool
from tachograph.variables import DATABASE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE


def main(arguments: list[str]) -> int:
    """Run the command; returns what to exit with: 0, or 1 when something still waits after ``send``."""
    parser = argparse.ArgumentParser(
        prog="tachograph spool",
        description="What waits in the spool of a service or database: how many files and events, and how many events "
        "were dropped because it was full. With `send`, deliver it.",
    )
    parser.add_argument("action", nargs="?", choices=["show", "send"], default="show")
    parser.add_argument("--url", default=None, help=f"URL of the service ({URL_VARIABLE}; token: {TOKEN_VARIABLE})")
    parser.add_argument("--database", default=None, help=f"URL of the database ({DATABASE_VARIABLE})")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(arguments)
    target = options.database or options.url or os.environ.get(DATABASE_VARIABLE, "").strip()
    target = target or os.environ.get(URL_VARIABLE, "").strip()
    if not target:
        print(f"tachograph spool: set {URL_VARIABLE} or {DATABASE_VARIABLE}, or give --url or --database",
              file=sys.stderr)  # fmt: skip
        return 2
    try:
        return _send(target, options.quiet) if options.action == "send" else _show(Spool(target))
    except TachographError as error:
        print(f"tachograph spool: {error}", file=sys.stderr)
        return 2


def _show(spool: Spool) -> int:
    files, events = spool.waiting()
    print(f"{spool.destination}: {events} event(s) in {files} file(s) wait in {spool.directories[0]}")
    if dropped := spool.dropped():
        print(f"{dropped} event(s) were dropped because the spool was full")
    return 0


def _send(target: str, is_quiet: bool) -> int:
    spool = Spool(target)
    why = ""
    delivered = 0
    if not spool.is_empty:
        store = setup.open_store(target, retry=True)
        try:
            delivered = store.deliver_spooled(None)
            why = store.spool.problem
        except StoreError as error:
            why = str(error)
        finally:
            store.close()
    files, events = spool.waiting()
    if not is_quiet:
        print(f"{spool.destination}: delivered {delivered} event(s); {events} event(s) in {files} file(s) wait")
        if dropped := spool.take_dropped():
            print(f"{dropped} event(s) were dropped because the spool was full")
        if why and files:
            print(f"tachograph spool: {why}", file=sys.stderr)
    return 1 if files else 0
