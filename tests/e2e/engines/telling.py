"""How a program that drives an engine tells what happened, according to that engine.

A program plays scenes. After each it calls `tell` with what the engine's own API, history or database says, never with
what its spans say, and goes on when the reader has seen enough of the spans.
"""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime


def tell(scene, executions, *, unknowable=(), unknown=(), **more):
    """Print the truth of a scene as a line, and wait until the reader lets the program go on.

    With ``goes_on=True`` it is what is true so far; the same executions are told of again.
    """
    print(
        json.dumps(
            {
                "scene": scene,
                "truth": {"executions": executions, "unknown": [*unknown], "unknowable": [*unknowable], **more},
            }
        )
    )
    sys.stdout.flush()
    sys.stdin.readline()


def play_scenes(prefix, scenes, names, *, flush=None, **more):
    """Play the scenes that are named, or all, and tell of each. ``flush`` delivers what this process has recorded."""
    for scene in scenes:
        if not names or scene.__name__ in names:
            executions = scene()
            if flush is not None:
                flush()
            tell(f"{prefix}_{scene.__name__}", executions, **more)


def spawn(command, log, **options):
    """Start a worker or server in a session of its own, so that it can be killed with all its processes."""
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **options)


def stop_at_sigterm():
    """At SIGTERM, leave the program as at Ctrl-C, so that it stops its workers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def at(seconds):
    """A Unix time as the truth has it; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def for_later(entry, asked, due, begun):
    """A step that was asked for a later time, in a run that had ``begun``: waits are counted from then on."""
    return entry | {"asked_at": max(asked, begun, key=datetime.fromisoformat), "scheduled_at": due}


def may_be_open(fields):
    """What was killed seems to run, or to wait, until its lease has passed."""
    if fields["status"] == "lost":
        fields["status_or"] = [*fields.get("status_or", []), "running", "pending"]
    return fields


def execution(workflow, status, steps=None, **more):
    """An execution of the truth. Fields that are None are left out."""
    fields = {"workflow": workflow, "status": status, **{k: v for k, v in more.items() if v is not None}}
    return may_be_open(fields if steps is None else {**fields, "steps": steps})


def without_module(error):
    """``package.module.Kind: message`` → ``Kind: message``; None stays None."""
    if error is None:
        return None
    kind, _, message = error.partition(": ")
    return f"{kind.rpartition('.')[2]}: {message}"


def step(name, status, attempts, depends_on=None, *, index=None, **more):
    """A step of the truth. Without ``depends_on`` nothing is claimed of what it waited for."""
    fields = {"name": name, "index": index, "status": status, "attempts": attempts}
    if depends_on is not None:
        fields["depends_on"] = depends_on
    return may_be_open({**fields, **{k: v for k, v in more.items() if v is not None}})
