"""asynclock.integrations.opentelemetry: what the SDK's readers and exporters see of locks and servers.

That dashboard and alerts fit these metrics is in tests/test_observability.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from fastapi import FastAPI
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asynclock import (
    AcquireTimeoutError,
    ConfigurationError,
    Locker,
    LockLostError,
    LossReason,
    NotLockedError,
    ServerError,
    __version__,
    sync,
)
from asynclock.events import Event, ExtensionLate
from asynclock.integrations import aiohttp as aiohttp_locks
from asynclock.integrations.fastapi import Locks
from asynclock.integrations.opentelemetry import BUCKETS, instrument
from asynclock.testing import Proxy, Server
from tests.support.apps import serve_aiohttp
from tests.support.helpers import AT_ONCE, ROOT, key, until

pytestmark = [pytest.mark.every_python, pytest.mark.serverless, pytest.mark.asyncio]

NAME = "asynclock.lock.name"
Attributes = frozenset[tuple[str, Any]]


def attributes(**given: Any) -> Attributes:
    """``error_type="X"`` stands for ``error.type``."""
    return frozenset((name.replace("_", "."), value) for name, value in given.items())


class Telemetry:
    """The SDK, without anything global."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], exemplar_filter=AlwaysOnExemplarFilter())
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracer_provider.get_tracer("test")

    def instrument(self, locker: Locker, **options: Any) -> Callable[[], None]:
        return instrument(locker, meter_provider=self.meter_provider, tracer_provider=self.tracer_provider, **options)

    def scopes(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [] if data is None else [scope for resource in data.resource_metrics for scope in resource.scope_metrics]

    def metrics(self) -> dict[str, Any]:
        found = [metric for scope in self.scopes() for metric in scope.metrics]
        assert len({metric.name for metric in found}) == len(found)
        return {metric.name: metric for metric in found}

    def points(self, name: str) -> dict[Attributes, Any]:
        """The data points of a metric by their attributes; none if there is no such metric."""
        metric = self.metrics().get(name)
        return {} if metric is None else {frozenset(each.attributes.items()): each for each in metric.data.data_points}

    def value(self, name: str, **given: Any) -> float | None:
        point = self.points(name).get(attributes(**given))
        return None if point is None else point.value

    def count(self, name: str, **given: Any) -> int:
        point = self.points(name).get(attributes(**given))
        return 0 if point is None else point.count

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.meter_provider.shutdown()
    telemetry.tracer_provider.shutdown()


async def told() -> None:
    """Events are told in the next turn of the event loop."""
    for _ in range(3):
        await asyncio.sleep(0)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def is_child(span: ReadableSpan, parent: Any) -> bool:
    of = parent.get_span_context()
    return span.parent is not None and (span.parent.trace_id, span.parent.span_id) == (of.trace_id, of.span_id)


# What there is


@pytest.mark.fast
async def test_metrics_have_names_units_and_kinds_and_no_names_of_locks(
    telemetry: Telemetry, locker: Locker, other: Locker
) -> None:
    telemetry.instrument(locker)
    async with locker.with_context("user:7"), other.with_context("user:8"):
        with pytest.raises(NotLockedError):
            await locker.try_acquire("user:8")
    await told()
    (scope,) = telemetry.scopes()
    assert (scope.scope.name, scope.scope.version) == ("asynclock", __version__)
    assert scope.scope.schema_url.startswith("https://opentelemetry.io/schemas/")
    metrics = telemetry.metrics()
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "asynclock.acquire.duration": "s",
        "asynclock.hold.duration": "s",
        "asynclock.lost": "{lock}",
        "asynclock.extension.late": "{extension}",
        "asynclock.waiting": "{task}",
        "asynclock.held": "{lock}",
    }
    assert all(metric.description for metric in metrics.values())
    for name, monotonic in (
        ("asynclock.lost", True),
        ("asynclock.extension.late", True),
        ("asynclock.waiting", False),
        ("asynclock.held", False),
    ):
        assert metrics[name].data.is_monotonic is monotonic
    assert "user:" not in "".join(metric.to_json() for metric in metrics.values())
    for name in ("asynclock.acquire.duration", "asynclock.hold.duration"):
        assert all(point.explicit_bounds == BUCKETS for point in metrics[name].data.data_points)
    assert list(BUCKETS) == sorted(set(BUCKETS)) and BUCKETS[0] < 0.001 and BUCKETS[-1] >= 600


@pytest.mark.fast
async def test_a_wait_and_a_hold(telemetry: Telemetry, locker: Locker, other: Locker) -> None:
    telemetry.instrument(locker)
    theirs = await other.acquire("job")

    async def release_later() -> None:
        await asyncio.sleep(0.1)
        await theirs.release()

    releasing = asyncio.create_task(release_later())
    before = time.time_ns()
    with telemetry.tracer.start_as_current_span("request") as request:
        async with locker.with_context("job"):
            with telemetry.tracer.start_as_current_span("inside"):
                await asyncio.sleep(0.2)
        await told()
    await releasing
    wait, hold = telemetry.span("asynclock.acquire"), telemetry.span("asynclock.hold")
    for span in (wait, hold):
        assert is_child(span, request) and span.kind is SpanKind.INTERNAL
        assert dict(span.attributes or {}) == {NAME: "job"}
        assert span.status.status_code is StatusCode.UNSET and not span.events
        assert span.instrumentation_scope is not None
        assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("asynclock", __version__)
    assert wait.start_time is not None and wait.end_time == hold.start_time
    assert 0 <= wait.start_time - before < AT_ONCE * 1e9
    # Of timers: uvloop's count from where the turn began, in whole milliseconds.
    assert 0.08 <= seconds(wait) < 0.1 + AT_ONCE and 0.18 <= seconds(hold) < 0.2 + AT_ONCE
    assert is_child(telemetry.span("inside"), request)
    metrics = telemetry.metrics()
    (waited,) = metrics["asynclock.acquire.duration"].data.data_points
    (held,) = metrics["asynclock.hold.duration"].data.data_points
    assert (waited.count, held.count) == (1, 1)
    assert waited.sum == pytest.approx(seconds(wait), abs=1e-5) and held.sum == pytest.approx(seconds(hold), abs=1e-5)
    (exemplar,) = held.exemplars
    assert exemplar.span_id == hold.context.span_id and exemplar.trace_id == hold.context.trace_id


@pytest.mark.fast
async def test_how_many_hold_and_wait(telemetry: Telemetry, locker: Locker) -> None:
    telemetry.instrument(locker)
    assert (telemetry.value("asynclock.held"), telemetry.value("asynclock.waiting")) == (0, 0)
    scope = await locker.acquire("job")
    waiting = [asyncio.create_task(locker.acquire("job")) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert (telemetry.value("asynclock.held"), telemetry.value("asynclock.waiting")) == (1, 3)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await scope.release()
    assert (telemetry.value("asynclock.held"), telemetry.value("asynclock.waiting")) == (0, 0)


async def test_names_of_locks_on_metrics_if_they_are_asked_for(telemetry: Telemetry, locker: Locker) -> None:
    telemetry.instrument(locker, lock_names=True)
    scope = await locker.acquire("job")
    with pytest.raises(AcquireTimeoutError):
        await asyncio.create_task(locker.acquire("job", timeout=0.01))
    async with locker.force_with_context("job"):
        assert await scope.wait_lost() is LossReason.TAKEN_OVER
    await told()
    named = {NAME: "job"}
    assert set(telemetry.points("asynclock.acquire.duration")) == {
        frozenset(named.items()),
        frozenset({**named, "error.type": "AcquireTimeoutError"}.items()),
    }
    assert set(telemetry.points("asynclock.hold.duration")) == {frozenset(named.items())}
    lost = telemetry.points("asynclock.lost")
    assert {each: point.value for each, point in lost.items()} == {
        frozenset({**named, "asynclock.lost.reason": "taken over"}.items()): 1
    }
    assert set(telemetry.points("asynclock.held")) == {attributes()}


# Waits that fail


@pytest.mark.fast
async def test_a_timeout_names_who_held_the_lock(telemetry: Telemetry, locker: Locker, server: Server) -> None:
    telemetry.instrument(locker)
    async with Locker(server.url, owner="web-3:812") as other, other.with_context("job"):
        with telemetry.tracer.start_as_current_span("request") as request:
            with pytest.raises(AcquireTimeoutError):
                await locker.acquire("job", timeout=0.1)
            await told()
    wait = telemetry.span("asynclock.acquire")
    assert is_child(wait, request)
    assert dict(wait.attributes or {}) == {
        NAME: "job",
        "error.type": "AcquireTimeoutError",
        "asynclock.lock.owner": "web-3:812",
    }
    assert (wait.status.status_code, wait.status.description) == (StatusCode.ERROR, "AcquireTimeoutError")
    assert 0.08 <= seconds(wait) < 0.1 + AT_ONCE
    assert telemetry.count("asynclock.acquire.duration", error_type="AcquireTimeoutError") == 1
    assert telemetry.count("asynclock.acquire.duration") == 0
    assert telemetry.points("asynclock.hold.duration") == {} and not telemetry.spans("asynclock.hold")


async def test_other_failures(telemetry: Telemetry, locker: Locker, other: Locker) -> None:
    telemetry.instrument(locker)
    async with other.with_context("job"):
        with pytest.raises(NotLockedError):
            await locker.try_acquire("job")
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        waiting = asyncio.create_task(locker.acquire("job"))
        await asyncio.sleep(0.05)
        await locker.aclose()
        await asyncio.wait([waiting])
        assert waiting.exception() is not None
    await told()
    kinds = ["NotLockedError", "CancelledError", "LockerClosedError"]
    spans = telemetry.spans("asynclock.acquire")
    assert [(span.attributes or {})["error.type"] for span in spans] == kinds
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 3
    for kind in kinds:
        assert telemetry.count("asynclock.acquire.duration", error_type=kind) == 1


async def test_servers_that_are_away(telemetry: Telemetry) -> None:
    async with contextlib.aclosing(Locker("redis://127.0.0.1:1")) as locker:
        telemetry.instrument(locker)
        assert telemetry.value("asynclock.held") == 0
        for _ in range(2):
            with pytest.raises(ServerError):
                await locker.acquire("job")
        await told()
    assert telemetry.count("asynclock.acquire.duration", error_type="ServerError") == 2
    assert len(telemetry.spans("asynclock.acquire")) == 2


# Losses


@pytest.mark.fast
async def test_a_loss_ends_its_span_with_an_error(telemetry: Telemetry, locker: Locker, server: Server) -> None:
    telemetry.instrument(locker)
    reasons = {reason.value for reason in LossReason} - {"released"}
    zeros = {attributes(asynclock_lost_reason=reason): 0 for reason in reasons}
    lost = telemetry.points("asynclock.lost")
    assert {each: point.value for each, point in lost.items()} == zeros  # so that the first loss is an increase
    with telemetry.tracer.start_as_current_span("request") as request:
        with pytest.raises(LockLostError):
            async with locker.with_context("job"):
                await asyncio.sleep(0.05)
                server.execute("DEL", key("job"))
                await asyncio.sleep(10)
    await told()
    hold = telemetry.span("asynclock.hold")
    assert is_child(hold, request)  # though it was told while another span, or none, was current
    assert dict(hold.attributes or {}) == {
        NAME: "job",
        "error.type": "LockLostError",
        "asynclock.lost.reason": "deleted",
    }
    assert (hold.status.status_code, hold.status.description) == (StatusCode.ERROR, "the lock was lost: deleted")
    (event,) = hold.events
    assert event.name == "asynclock.lost" and event.timestamp == hold.end_time
    assert (event.attributes or {})["asynclock.lost.reason"] == "deleted"
    assert (event.attributes or {})["asynclock.lost.detail"]
    assert 0.03 <= seconds(hold) < AT_ONCE
    lost = telemetry.points("asynclock.lost")
    assert {each: point.value for each, point in lost.items()} == {
        **zeros,
        attributes(asynclock_lost_reason="deleted"): 1,
    }
    exemplars = lost[attributes(asynclock_lost_reason="deleted")].exemplars
    assert hold.context.span_id in {exemplar.span_id for exemplar in exemplars}
    assert telemetry.points("asynclock.hold.duration")[attributes()].sum == pytest.approx(seconds(hold), abs=1e-5)


@pytest.mark.parametrize("wait_release", [True, False])
async def test_a_loss_that_the_answer_to_the_release_shows(
    telemetry: Telemetry, server: Server, wait_release: bool
) -> None:
    """The span of the hold has ended by then, so the loss has one of its own."""
    async with Locker(server.url, client_side_caching=False, key_validity=30, wait_release=wait_release) as locker:
        telemetry.instrument(locker)
        with telemetry.tracer.start_as_current_span("request") as request:
            with contextlib.suppress(LockLostError):
                async with locker.with_context("job"):
                    await asyncio.sleep(0.05)  # until after the first look
                    server.execute("DEL", key("job"))
        await until(lambda: telemetry.spans("asynclock.lost"))
    hold, lost = telemetry.span("asynclock.hold"), telemetry.span("asynclock.lost")
    assert is_child(hold, request) and is_child(lost, hold)
    assert lost.status.status_code is StatusCode.ERROR
    assert dict(lost.attributes or {}) == {
        NAME: "job",
        "error.type": "LockLostError",
        "asynclock.lost.reason": "deleted",
    }
    assert telemetry.count("asynclock.hold.duration") == 1  # once
    assert telemetry.value("asynclock.lost", asynclock_lost_reason="deleted") == 1


async def test_a_locker_that_is_closed(telemetry: Telemetry, locker: Locker) -> None:
    telemetry.instrument(locker)
    with pytest.raises(LockLostError):
        async with locker.with_context("job") as scope:
            scope.create_task(locker.aclose())
            await asyncio.sleep(10)
    await told()
    assert (telemetry.span("asynclock.hold").attributes or {})["asynclock.lost.reason"] == "closed"
    assert telemetry.value("asynclock.lost", asynclock_lost_reason="closed") == 1
    assert telemetry.value("asynclock.held") == 0


async def test_a_scope_that_is_forgotten(telemetry: Telemetry, locker: Locker) -> None:
    telemetry.instrument(locker)
    scope: Any = await locker.acquire("job")
    with pytest.warns(ResourceWarning):
        del scope
        gc.collect()
    await until(lambda: telemetry.spans("asynclock.hold"))
    assert telemetry.count("asynclock.hold.duration") == 1


# Servers


@contextlib.asynccontextmanager
async def through_proxy(server: Server, **options: Any) -> AsyncIterator[tuple[Proxy, Locker]]:
    async with Proxy(server.port) as proxy, Locker(proxy.url, **options) as locker:
        yield proxy, locker


async def test_a_late_extension_is_an_event_of_the_hold(telemetry: Telemetry, server: Server) -> None:
    async with through_proxy(server, key_validity=4, extend_interval=0.2) as (proxy, locker):
        telemetry.instrument(locker)
        assert telemetry.value("asynclock.extension.late") == 0
        late: list[ExtensionLate] = []

        def listen(event: Event) -> None:
            if isinstance(event, ExtensionLate):
                late.append(event)

        locker.subscribe(listen)
        async with locker.with_context("job") as scope:
            await asyncio.sleep(0.3)  # extended
            proxy.freeze()
            await until(lambda: late)
            proxy.thaw()
            scope.check()
        await told()
    hold = telemetry.span("asynclock.hold")
    assert hold.status.status_code is StatusCode.UNSET
    assert len(hold.events) == len(late) == telemetry.value("asynclock.extension.late")
    for event, of in zip(hold.events, late, strict=True):
        assert event.name == "asynclock.extension.late"
        assert event.timestamp == pytest.approx(of.at * 1e9, abs=1e3)
        assert dict(event.attributes or {}) == {"asynclock.remaining": of.remaining}


async def test_a_reconnect(telemetry: Telemetry, server: Server) -> None:
    async with through_proxy(server) as (proxy, locker):
        telemetry.instrument(locker)
        assert telemetry.points("asynclock.reconnects") == {}
        where = f"127.0.0.1:{proxy.port}/0"
        for times in (1, 2):
            proxy.reset()
            await until(lambda times=times: locker.statistics().reconnects == times)  # type: ignore[misc]
            await told()
            assert telemetry.value("asynclock.reconnects", asynclock_server=where) == times
    metric = telemetry.metrics()["asynclock.reconnects"]
    assert metric.unit == "{reconnect}" and metric.data.is_monotonic


# Which lockers


@pytest.mark.fast
async def test_the_figures_of_two_lockers_are_added_up(telemetry: Telemetry, locker: Locker, other: Locker) -> None:
    ends = [telemetry.instrument(each) for each in (locker, other)]
    async with locker.with_context("a"), locker.with_context("b"), other.with_context("c"):
        assert telemetry.value("asynclock.held") == 3
        ends[0]()
        assert telemetry.value("asynclock.held") == 1
    await told()
    assert telemetry.count("asynclock.acquire.duration") == 3
    assert telemetry.count("asynclock.hold.duration") == 1


async def test_two_providers_are_kept_apart(telemetry: Telemetry, locker: Locker, other: Locker) -> None:
    second = Telemetry()
    telemetry.instrument(locker)
    second.instrument(other)
    async with locker.with_context("a"), other.with_context("b"), other.with_context("c"):
        assert (telemetry.value("asynclock.held"), second.value("asynclock.held")) == (1, 2)
        second.instrument(locker)  # so does one locker with two
        assert second.value("asynclock.held") == 3
    second.meter_provider.shutdown()


async def test_a_locker_is_instrumented_once(telemetry: Telemetry, locker: Locker) -> None:
    end = telemetry.instrument(locker)
    with pytest.raises(ConfigurationError, match="is instrumented already"):
        telemetry.instrument(locker)
    end()
    telemetry.instrument(locker)()


@pytest.mark.fast
async def test_the_end(telemetry: Telemetry, locker: Locker) -> None:
    end = telemetry.instrument(locker)
    scope = await locker.acquire("job")
    await told()
    assert not telemetry.spans("asynclock.hold")
    end()
    assert telemetry.span("asynclock.hold").status.status_code is StatusCode.UNSET  # it is no error
    end()
    await scope.release()
    async with locker.with_context("job"):
        assert telemetry.points("asynclock.held") == {}
    await told()
    assert len(telemetry.exporter.get_finished_spans()) == 2
    assert telemetry.count("asynclock.acquire.duration") == 1
    assert telemetry.count("asynclock.hold.duration") == 0


async def test_a_lock_that_was_held_before(telemetry: Telemetry, locker: Locker, server: Server) -> None:
    """Its loss is seen. It has no span, since nobody knows whose child that would be."""
    released, lost = await locker.acquire("released"), await locker.acquire("lost")
    await told()
    telemetry.instrument(locker)
    await released.release()
    server.execute("DEL", key("lost"))
    await lost.wait_lost()
    await told()
    assert telemetry.count("asynclock.hold.duration") == 1
    assert telemetry.value("asynclock.lost", asynclock_lost_reason="deleted") == 1
    assert not telemetry.spans("asynclock.hold")
    assert telemetry.span("asynclock.lost").parent is None


async def test_a_forgotten_locker_is_not_kept_alive(telemetry: Telemetry, server: Server) -> None:
    locker = Locker(server.url)
    end = telemetry.instrument(locker)
    async with locker.with_context("job"):
        pass
    await told()
    assert telemetry.value("asynclock.held") == 0
    gone = weakref.ref(locker)
    gc.disable()  # no cycle keeps it, either
    try:
        with pytest.warns(ResourceWarning):
            del locker
        assert gone() is None
    finally:
        gc.enable()
    await asyncio.sleep(0.01)
    assert telemetry.points("asynclock.held") == {}
    assert telemetry.count("asynclock.hold.duration") == 1
    end()


async def test_spans_do_not_pile_up(telemetry: Telemetry, locker: Locker) -> None:
    """Nothing is kept of holds that are over, but for the identities of the latest."""
    telemetry.instrument(locker)
    for _ in range(1500):
        async with locker.with_context("job"):
            pass
    await told()
    telemetry.exporter.clear()

    def living(kind: str) -> int:
        gc.collect()
        return sum(type(each).__name__ == kind for each in gc.get_objects())

    assert living("_Span") == 0 and living("NonRecordingSpan") <= 1010
    async with locker.with_context("job"):
        await told()
        assert living("_Span") == 1  # so they are seen


async def test_what_goes_wrong_is_logged_and_not_raised(
    telemetry: Telemetry, locker: Locker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("out of order")

    telemetry.instrument(locker)
    monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", failing)
    with caplog.at_level(logging.ERROR, "asynclock"):
        async with locker.with_context("job"):
            await told()
        await told()
    assert [record.getMessage() for record in caplog.records] == ["asynclock: a subscriber raised at Acquired"]


async def test_metrics_are_read_in_another_thread(
    telemetry: Telemetry, locker: Locker, caplog: pytest.LogCaptureFixture
) -> None:
    """As the SDK's periodic reader does, while names come and go."""
    telemetry.instrument(locker)
    over = threading.Event()
    readings: list[float | None] = []

    def read() -> None:
        while not over.is_set():
            readings.append(telemetry.value("asynclock.held"))

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reader.start()
    try:
        for number in range(1500):
            async with locker.with_context(f"job {number}"):
                pass
    finally:
        over.set()
        await asyncio.to_thread(reader.join)
        sys.setswitchinterval(interval)
    assert readings and None not in readings
    assert not caplog.records


@pytest.mark.parametrize("make", [str, sync.Locker], ids=["url", "sync"])
async def test_what_is_no_locker_is_refused(make: Any) -> None:
    wrong = make("redis://127.0.0.1:6379")
    with pytest.raises(ConfigurationError, match=r"needs an asynclock\.Locker.*asynclock\.sync cannot be instrumented"):
        instrument(wrong)


# In web frameworks: as docs/observability.md has it, with a span around each request


async def test_in_fastapi(telemetry: Telemetry, server: Server) -> None:
    locks = Locks(server.url)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        telemetry.instrument(await locks.locker())
        yield

    app = FastAPI(lifespan=lifespan)
    locks.install(app)

    @app.get("/", dependencies=[locks.lock("job")])
    async def endpoint() -> None: ...

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        with telemetry.tracer.start_as_current_span("request"):
            await app(scope, receive, send)

    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(traced), base_url="http://test") as client:
            assert (await client.get("/")).status_code == 200
        await told()
    for name in ("asynclock.acquire", "asynclock.hold"):
        assert is_child(telemetry.span(name), telemetry.span("request"))


async def test_in_aiohttp(telemetry: Telemetry, server: Server) -> None:
    @web.middleware
    async def traced(request: web.Request, handler: Any) -> Any:
        with telemetry.tracer.start_as_current_span("request"):
            return await handler(request)

    @aiohttp_locks.locked("job")
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[traced])
    telemetry.instrument(aiohttp_locks.setup(app, server.url))
    app.router.add_get("/", handler)
    async with serve_aiohttp(app) as port, aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{port}/") as response:
            assert response.status == 200
        await told()
    for name in ("asynclock.acquire", "asynclock.hold"):
        assert is_child(telemetry.span(name), telemetry.span("request"))


# In processes of their own


def run(script: str, *arguments: str) -> str:
    # os.fork beside threads warns from Python 3.12 on; the child only looks and exits.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", textwrap.dedent(script)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.one_loop
async def test_asynclock_does_not_import_it() -> None:
    run("""
        import sys
        sys.modules["opentelemetry"] = None  # as if it were not there; redis-py imports it where it is
        import asynclock, asynclock.sync, asynclock.testing
        assert "asynclock.integrations.opentelemetry" not in sys.modules
    """)


@pytest.mark.one_loop
async def test_without_the_api_it_says_what_to_install() -> None:
    run("""
        import sys
        sys.modules["opentelemetry"] = None  # as if it were not there
        try:
            import asynclock.integrations.opentelemetry
        except ImportError as error:
            assert "pip install 'asynclock[otel]'" in str(error), error
        else:
            raise AssertionError("imported")
    """)


@pytest.mark.one_loop
async def test_the_api_alone_does_nothing_and_the_sdk_may_come_later(server: Server) -> None:
    script = """
        import asyncio, sys
        from opentelemetry import metrics, trace
        from asynclock import Locker
        from asynclock.integrations.opentelemetry import instrument

        async def main():
            async with Locker(sys.argv[1]) as locker, Locker(sys.argv[1]) as other:
                instrument(locker)
                async with locker.with_context("a"):
                    pass
                from opentelemetry.sdk.metrics import MeterProvider
                from opentelemetry.sdk.metrics.export import InMemoryMetricReader
                from opentelemetry.sdk.trace import TracerProvider
                from opentelemetry.sdk.trace.export import SimpleSpanProcessor
                from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
                reader, exporter, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
                tracers.add_span_processor(SimpleSpanProcessor(exporter))
                metrics.set_meter_provider(MeterProvider([reader]))
                trace.set_tracer_provider(tracers)
                instrument(other)  # and one that comes later still
                async with locker.with_context("a"), other.with_context("b"):
                    data = reader.get_metrics_data().resource_metrics[0].scope_metrics
                    (scope,) = data
                    (held,) = (metric for metric in scope.metrics if metric.name == "asynclock.held")
                    (point,) = held.data.data_points
                    assert point.value == 2, point
                await asyncio.sleep(0.01)
                assert len(exporter.get_finished_spans()) == 4

        asyncio.run(main())
    """
    run(script, server.url)


@pytest.mark.one_loop
@pytest.mark.skipif(sys.platform == "win32", reason="no process is forked there")
async def test_a_fork_leaves_spans_and_figures_to_the_parent(server: Server) -> None:
    script = """
        import asyncio, os, sys
        from asynclock import Locker
        from asynclock.integrations.opentelemetry import instrument
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        reader, exporter, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        meters = MeterProvider([reader])

        def names():
            return [span.name for span in exporter.get_finished_spans()]

        def held():
            (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
            (metric,) = (metric for metric in scope.metrics if metric.name == "asynclock.held")
            return metric.data.data_points[0].value

        async def main():
            async with Locker(sys.argv[1]) as locker:
                end = instrument(locker, meter_provider=meters, tracer_provider=tracers)
                async with locker.with_context("job"):
                    await asyncio.sleep(0.01)
                    pid = os.fork()
                    if not pid:
                        figure = held()
                        end()
                        os._exit(0 if figure == 0 and names() == ["asynclock.acquire"] else 1)
                    assert os.waitpid(pid, 0)[1] == 0
                    assert held() == 1
                await asyncio.sleep(0.01)
                assert names() == ["asynclock.acquire", "asynclock.hold"]

        asyncio.run(main())
    """
    run(script, server.url)
