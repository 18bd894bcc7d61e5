"""``OTEL_CONFIG_FILE``: where Tachograph sets the SDK up, the file decides, and a bad one costs only the spans."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace

from tachograph.recording import provider as provider_module

CONSOLE = """
file_format: "1.0-rc.1"
resource:
  attributes:
    - {name: service.name, value: from-the-file}
tracer_provider:
  processors:
    - simple: {exporter: {console: {}}}
"""
TOKEN = "ghp_a1B2a1B2a1B2a1B2"
PROGRAM = """
import tachograph

@tachograph.step
def load():
    return 1

@tachograph.workflow
def nightly():
    return load()

nightly()
print("problems:", tachograph.get_recorder().problems)
"""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported while no provider is set."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    return []


def find(said: list[str]) -> trace.TracerProvider | None:
    return provider_module.find_provider(lambda _part, message: said.append(message))


@pytest.mark.parametrize("launcher", [[], ["opentelemetry-instrument"]], ids=["script", "launcher"])
def test_the_file_configures_the_sdk_and_the_variables_do_not(tmp_path: Path, launcher: list[str]) -> None:
    (tmp_path / "otel.yaml").write_text(CONSOLE)
    (tmp_path / "nightly.py").write_text(PROGRAM)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "TACHOGRAPH_"))},
        "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml"),
        # Ignored: nobody listens there.
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_SERVICE_NAME": "from-the-variables",
    }
    started = [str(Path(sys.executable).with_name(name)) for name in launcher]
    result = subprocess.run(
        [*([sys.executable, *started] if started else []), sys.executable, str(tmp_path / "nightly.py")],
        env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"name": "run nightly"' in result.stdout, result.stdout + result.stderr
    assert '"name": "load"' in result.stdout
    assert '"service.name": "from-the-file"' in result.stdout
    assert "from-the-variables" not in result.stdout
    assert "problems: []" in result.stdout or "problems: ()" in result.stdout, result.stdout
    assert "verrid" not in result.stderr, "it was configured twice"


def test_without_the_package_that_reads_it_the_problem_says_what_to_install(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_CONFIG_FILE", "otel.yaml")
    monkeypatch.setitem(sys.modules, "opentelemetry.configuration", None)
    assert find(said) is None
    assert "pip install opentelemetry-configuration" in said[-1]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[not, a, mapping",
        "file_format: 99",
        CONSOLE + "  sampler: {unknown: {}}",
        CONSOLE.replace("console: {}", f"otlp_http: {{headers: [{{name: a, value: Bearer {TOKEN}}}], x: 1}}"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_costs_only_the_spans(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "otel.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(path))
    assert find(said) is None
    assert "OTEL_CONFIG_FILE cannot be used" in said[-1]
    assert TOKEN not in said[-1]


@pytest.mark.parametrize("text", ['file_format: "1.0-rc.1"', CONSOLE + "\ndisabled: true"])
def test_a_file_without_spans_or_that_is_disabled_exports_none(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "otel.yaml"
    path.write_text(text)
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(path))
    assert find(said) is None
    assert not said
