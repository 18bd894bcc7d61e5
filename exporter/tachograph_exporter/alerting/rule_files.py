"""The rules as files for Prometheus.

YAML is written here rather than by a library, so that the service needs none. Texts are single-quoted, or in JSON's
notation where that is not possible (https://yaml.org/spec/1.2.2/, sections 7.3.2 and 1.3).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tachograph_exporter.alerting.alerts import alerts
from tachograph_exporter.alerting.recording_rules import recording_rules
from tachograph_exporter.alerting.thresholds import Thresholds

RULE_FILES: Final[Mapping[str, Callable[[Thresholds], list[dict[str, Any]]]]] = {
    "recording.rules.yml": recording_rules,
    "alerts.rules.yml": alerts,
}
"""What builds the groups of each file."""
_PLAIN: Final = re.compile(r"(?!(?i:null|true|false|yes|no|on|off|y|n)$)[A-Za-z_][A-Za-z0-9_]*")
_HEADER: Final = "# Generated. To change limits: `tachograph dashboards export DIRECTORY --thresholds FILE`.\n"


def rule_files(thresholds: Thresholds) -> Iterator[tuple[str, str]]:
    """Name and content of every rule file."""
    for name, build_groups in RULE_FILES.items():
        yield name, rules_yaml(build_groups(thresholds))


def rules_yaml(groups: list[dict[str, Any]]) -> str:
    """A Prometheus rule file."""
    lines = [_HEADER + "groups:\n"]
    for group in groups:
        lines.append(f"- name: {group['name']}\n  interval: {group['interval']}\n  rules:\n")
        for rule in group["rules"]:
            entry = "".join(_lines(rule, "    "))
            lines.append(f"  - {entry.lstrip()}")
    return "".join(lines)


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:\n"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_scalar(str(value))}\n"


def _scalar(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return json.dumps(text)
