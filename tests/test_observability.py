"""docs/observability.md, its dashboard and its alerts name metrics, labels, events and figures that there are.

The Prometheus names are those of the real exporter.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asynclock import AcquireTimeoutError, Locker
from asynclock.events import Event, ExtensionLate, Reconnected
from asynclock.integrations.opentelemetry import instrument
from asynclock.statistics import Statistics
from asynclock.testing import Proxy, Server
from tests.support.helpers import key, until

pytestmark = pytest.mark.serverless

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "observability.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "observability" / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DOCS / "observability" / "alerts.yaml").read_text())["groups"][0]["rules"]
TARGETS = [(panel, target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [target["expr"] for _, target in TARGETS] + [rule["expr"] for rule in RULES]

OF_PROMETHEUS = {"job", "instance"}  # labels that the scrape adds
FUNCTIONS = {"histogram_quantile", "increase", "rate", "sum"}
Used = set[tuple[str, str]]  # metrics and labels


def used_by(expression: str) -> Used:
    """Every metric of a PromQL expression, with each of its labels, and with ``""``."""
    return {used for operand in re.split(r"\bor\b| / ", expression) for used in used_by_operand(operand)}


def used_by_operand(operand: str) -> Used:
    """The labels of its ``by (…)`` are labels of all its metrics."""
    operand = re.sub(r"\[[^]]+\]|\boffset \w+", "", operand)
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", operand) for label in re.findall(r"\w+", labels)}
    operand = re.sub(r"\bby \([^)]*\)", "", operand)
    found = {
        (name, label)
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", operand)
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
    }
    rest = re.sub(r"\{[^}]*\}", "", operand)
    names = set(re.findall(r"\b[a-zA-Z_]\w*", rest)) - FUNCTIONS - {"unless"}
    return found | {(name, label) for name in names for label in (*grouped, "")}


def test_what_an_expression_uses() -> None:
    expression = 'sum by (job, le) (rate(a_total{x="1", y!~"2|3"}[5m])) > 0 or sum(b unless b{z=~"4"} offset 5m)'
    assert used_by(expression) == {
        *(("a_total", each) for each in ("", "x", "y", "job", "le")),
        *(("b", each) for each in ("", "z")),
    }


class Exported:
    """What a service exports to Prometheus after everything that asynclock reports has happened once."""

    def __init__(self) -> None:
        self.labels: dict[str, set[str]] = {}
        self.values: dict[str, set[str]] = {}  # of labels
        self.spans: set[str] = set()
        self.attributes: set[str] = set()


@pytest.fixture(scope="module")
def exported(shared_server: Server) -> Exported:
    return asyncio.run(everything(shared_server))


async def everything(server: Server) -> Exported:
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([PrometheusMetricReader()])
    async with Proxy(server.port) as proxy, Locker(proxy.url, key_validity=4, extend_interval=0.2) as locker:
        instrument(locker, meter_provider=meters, tracer_provider=tracers)
        events: list[Event] = []
        locker.subscribe(events.append)
        async with Locker(server.url) as other, other.with_context("theirs"):
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("theirs", timeout=0.1)
        scope = await locker.acquire("job")
        await until(lambda: locker.statistics().extensions)
        proxy.freeze()
        await until(lambda: any(isinstance(event, ExtensionLate) for event in events))
        proxy.thaw()
        proxy.reset()
        await until(lambda: any(isinstance(event, Reconnected) for event in events))
        server.execute("DEL", key("job"))
        await scope.wait_lost()
        async with Locker(server.url, client_side_caching=False, key_validity=30) as late:
            instrument(late, meter_provider=meters, tracer_provider=tracers)
            scope = await late.acquire("late")
            await asyncio.sleep(0.05)  # until after the first look
            server.execute("DEL", key("late"))
            await scope.release()
            await until(lambda: any(span.name == "asynclock.lost" for span in exporter.get_finished_spans()))
        exported = Exported()
        for family in text_string_to_metric_families(generate_latest(REGISTRY).decode()):
            for sample in family.samples:
                exported.labels.setdefault(sample.name, set()).update(sample.labels)
                for label, value in sample.labels.items():
                    exported.values.setdefault(label, set()).add(value)
    for span in exporter.get_finished_spans():
        exported.spans.add(span.name)
        exported.attributes.update(span.attributes or {})
        exported.attributes.update(each for event in span.events for each in event.attributes or {})
    meters.shutdown()
    tracers.shutdown()
    return exported


@pytest.mark.parametrize("changed", [None, "asynclock_lost_total", "error_type"])
def test_dashboard_and_alerts_use_what_is_exported(exported: Exported, changed: str | None) -> None:
    """... and this test would find a metric or a label that has another name there."""
    there = {name: labels - {changed} for name, labels in exported.labels.items() if name != changed}
    unknown = {
        (name, label)
        for expression in EXPRESSIONS
        for name, label in used_by(expression)
        if name not in there or label not in there[name] | OF_PROMETHEUS | {""}
    }
    if changed is None:
        assert not unknown
        unused = {name for name in exported.labels if name.startswith("asynclock_")}
        unused -= {name for expression in EXPRESSIONS for name, _ in used_by(expression)}
        assert all(name.endswith(("_sum", "_created", "_count")) for name in unused), unused  # else why is it measured?
    else:
        assert any(changed in pair for pair in unknown)


def test_the_page_has_every_metric_span_and_attribute(exported: Exported) -> None:
    rows = re.findall(r"^\| `(asynclock\.[\w.]+)` \| `(asynclock_\w+)` \| (.*?) \| (.*?) \|", PAGE, re.MULTILINE)
    suffixes = ("_bucket", "_count", "_sum", "_created")
    names = {re.sub(rf"({'|'.join(suffixes)})$", "", name) for name in exported.labels if name.startswith("asynclock_")}
    assert {prometheus for _, prometheus, _, _ in rows} == names
    for name, prometheus, kind, attributes in rows:
        suffix = {"histogram, s": "_seconds", "counter": "_total", "up-down counter": ""}[kind]
        assert prometheus == name.replace(".", "_") + suffix
        sample = prometheus + "_count" if kind == "histogram, s" else prometheus
        said = {each.replace(".", "_") for each in re.findall(r"`([\w.]+)`", attributes)}
        assert {label for label in exported.labels[sample] if not label.startswith("otel_")} == said, name
    spans = PAGE.partition("## Spans")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(asynclock\.[\w.]+)`", spans, re.MULTILINE)) == exported.spans
    for attribute in exported.attributes:
        assert f"`{attribute}`" in spans, attribute


def test_values_that_expressions_compare_with_exist(exported: Exported) -> None:
    compared = {pair for expression in EXPRESSIONS for pair in re.findall(r"(\w+)\s*!?=\s*\"([^\"]+)\"", expression)}
    assert {label for label, _ in compared} == {"asynclock_lost_reason", "error_type"}
    for label, value in compared:
        assert value in exported.values[label] or value == "ServerError", (label, value)


def test_the_dashboard_is_whole() -> None:
    assert DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD["panels"])
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"} == variables == {"datasource", "job"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"]) >= 9
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and all(x < 24 for x, _ in cells)
    for panel, target in TARGETS:
        assert panel["title"] and panel["description"]
        assert 'job=~"$job"' in target["expr"]
        grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert grouped is not None and label in grouped[1]


def test_the_alerts_are_whole() -> None:
    assert len(RULES) == 3
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert f"| `{rule['alert']}` |" in PAGE
        for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
            for label in re.findall(r"\$labels\.(\w+)", text):  # in every branch of the expression
                for grouped in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
                    assert label in grouped.split(", ")


def test_the_page_has_every_event_and_figure_with_its_fields() -> None:
    table = PAGE.partition("\n## Without OpenTelemetry")[2]
    for event in get_args(Event):
        row = re.search(rf"^\| `{event.__name__}` \|.*$", table, re.MULTILINE)
        assert row is not None, event
        for field in dataclasses.fields(event):
            assert field.name == "at" or f"`{field.name}`" in row[0].rpartition(" | ")[2], (event, field.name)
    assert len(re.findall(r"^\| `[A-Z]\w+` \|", table, re.MULTILINE)) == len(get_args(Event))
    said = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", table, re.MULTILINE)
    figures = [name for row in said for name in re.findall(r"\w+", row)]
    assert sorted(figures) == sorted(field.name for field in dataclasses.fields(Statistics))
