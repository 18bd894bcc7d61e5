"""The file of ``serve --expectations``: what is expected of workflows, and who is told (see docs/expectations.md).

    [default]
    timezone = "Europe/Berlin"

    [workflow.nightly]
    schedule = "0 3 * * *"
    grace = "10m"
    deadline = "1h"

    [[notify]]
    name = "on call"
    url_env = "ON_CALL_URL"

The tables ``default`` and ``workflow`` are those of the alerts' thresholds, so one file drives both.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec

from tachograph.errors import Fault
from tachograph.expectation import Expectation
from tachograph.identity import workspace_id
from tachograph.workflow.document import read_expectation
from tachograph.workflow.hints import did_you_mean
from tachograph_exporter.config import ConfigError
from tachograph_exporter.expectations.routing import Target, read_target, target_of_url
from tachograph_exporter.expectations.sending import NO_APPRISE
from tachograph_exporter.store.expectations import ANY

_TABLES: Final = ("default", "workflow", "workspace", "notify", "link")
MAX_WORKFLOWS: Final = 10_000


class ExpectationFile(msgspec.Struct, frozen=True):
    """What a file says. ``workflows`` are by (workspace id or "" for all, name); ``link``: the service's address."""

    default: Expectation = Expectation()
    workflows: Mapping[tuple[str, str], Expectation] = {}
    targets: tuple[Target, ...] = ()
    link: str = ""


NOTHING: Final = ExpectationFile()


def read_file(path: Path, environment: Mapping[str, str] = os.environ) -> ExpectationFile:
    """Read a file. Raises `ConfigError` with every fault of it: the thing, the place and the way out."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the expectations in {path} cannot be read: {error}") from None
    file, faults = read_document(document, environment)
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ConfigError(f"{path}: {'; '.join(str(fault) for fault in faults[:20])}{more}")
    return file


def read_document(document: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[ExpectationFile, list[Fault]]:
    """What a document says, and every fault of it."""
    faults: list[Fault] = []

    def table(value: Any, at: str) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        faults.append(Fault("wrong_type", at, "expected a table"))
        return {}

    def expectation(value: Any, at: str) -> Expectation:
        read, of_table = read_expectation(value, at)
        faults.extend(of_table)
        return read

    faults += [
        Fault("unknown_key", key, f'unknown key "{key}"{did_you_mean(key, _TABLES)}')
        for key in document
        if key not in _TABLES
    ]
    default = expectation(document.get("default", {}), "default")
    workflows = {
        (ANY, name): expectation(value, f"workflow.{name}")
        for name, value in table(document.get("workflow", {}), "workflow").items()
    }
    for slug, value in table(document.get("workspace", {}), "workspace").items():
        for key, inner in table(value, f"workspace.{slug}").items():
            if key != "workflow":
                faults.append(Fault("unknown_key", f"workspace.{slug}.{key}", 'expected the table "workflow"'))
                continue
            for name, said in table(inner, f"workspace.{slug}.workflow").items():
                at = f"workspace.{slug}.workflow.{name}"
                workflows[workspace_id(slug), name] = expectation(said, at)
    if len(workflows) > MAX_WORKFLOWS:
        faults.append(Fault("too_many", "workflow", f"{len(workflows)} workflows exceed the limit of {MAX_WORKFLOWS}"))
    targets: list[Target] = []
    receivers = document.get("notify", [])
    for i, value in enumerate(receivers if isinstance(receivers, list) else [None]):
        target, of_target = read_target(value, f"notify[{i}]", environment)
        faults.extend(of_target)
        if target is not None and any(other.name == target.name for other in targets):
            faults.append(Fault("duplicate_name", f"notify[{i}].name", f'another receiver is called "{target.name}"'))
        if target is not None:
            targets.append(target)
    link = document.get("link", "")
    if not isinstance(link, str) or not (link == "" or link.startswith(("http://", "https://"))):
        faults.append(Fault("bad_value", "link", "expected the address under which people see this service: https://…"))
        link = ""
    return ExpectationFile(default, workflows, tuple(targets), link.rstrip("/")), faults


def all_targets(file: ExpectationFile, urls: Sequence[str]) -> tuple[Target, ...]:
    """The receivers of a file, and those of ``serve --notify``. Raises `ConfigError`."""
    targets = list(file.targets)
    for url in urls:
        try:
            target = target_of_url(url)
        except ValueError as error:
            raise ConfigError(f"--notify: {error}") from None
        if all(other.url != url for other in targets):
            targets.append(target)
    if any(not target.is_webhook for target in targets) and find_spec("apprise") is None:
        name = next(target.name for target in targets if not target.is_webhook)
        raise ConfigError(f'the receiver "{name}" {NO_APPRISE}')
    return tuple(targets)
