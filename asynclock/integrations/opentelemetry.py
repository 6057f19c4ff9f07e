"""Metrics and spans for OpenTelemetry. See https://asynclock.github.io/asynclock/observability/.

end = instrument(locker)

All of it is made from ``Locker.subscribe`` and ``Locker.statistics``.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable

from .._version import __version__
from ..core.reasons import LossReason
from ..errors import AcquireTimeoutError, ConfigurationError, LockLostError
from ..events import Acquired, Event, ExtensionLate, GaveUp, Lost, Reconnected, Released, TimedOut
from ..locker import Locker
from ..statistics import Statistics

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
except ImportError as error:
    raise ImportError(
        "asynclock.integrations.opentelemetry needs opentelemetry-api: pip install 'asynclock[otel]'", name=error.name
    ) from error

__all__ = ["instrument"]

SCOPE = "asynclock"  # the instrumentation scope of all metrics and spans
SCHEMA = "https://opentelemetry.io/schemas/1.30.0"  # of the names that are not asynclock's own: error.type

NAME = "asynclock.lock.name"
OWNER = "asynclock.lock.owner"
REASON = "asynclock.lost.reason"
DETAIL = "asynclock.lost.detail"
REMAINING = "asynclock.remaining"
SERVER = "asynclock.server"
ERROR = "error.type"

# Seconds. A free lock on a near server is acquired in less than a millisecond; a job may hold one for minutes.
BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0),
)
REMEMBERED = 1000  # spans of released holds: a loss that the answer to the release shows belongs to one of them


def instrument(
    locker: Locker,
    *,
    lock_names: bool = False,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Callable[[], None]:
    """Report what happens to this locker's locks and servers to OpenTelemetry, as metrics and as spans.

    :param lock_names: put the name of the lock on metrics, too. Each name then has time series of its own: only for
        services with few names. Spans always have it
    :param meter_provider: default: the global one, also if that is set later
    :param tracer_provider: likewise
    :returns: a function that ends this; call it in the locker's event loop. Spans of locks that are held then end, too
    :raises ConfigurationError: this is no ``asynclock.Locker``, or it is instrumented with these providers already

    It does not keep the locker alive, and ends with it. What goes wrong in it is logged, and never raised into the
    program.
    """
    if not isinstance(locker, Locker):
        raise ConfigurationError(
            f"instrument() needs an asynclock.Locker, and not {locker!r}; "
            "with asynclock.sync, use locker.subscribe() and locker.statistics()"
        )
    for each in list(_instrumented):
        if each.locker() is locker and each.providers == (meter_provider, tracer_provider):
            raise ConfigurationError(
                f"{locker!r} is instrumented already; call the function that instrument() has returned first"
            )
    return _Instrumentation(locker, lock_names, meter_provider, tracer_provider).end


class _Instrumentation:
    """One locker that is instrumented: turns events into measurements and spans.

    Invariant: it is in ``_instrumented`` until ``end``, or until the locker is gone.
    """

    def __init__(
        self,
        locker: Locker,
        lock_names: bool,
        meter_provider: metrics.MeterProvider | None,
        tracer_provider: trace.TracerProvider | None,
    ) -> None:
        self.locker = weakref.ref(locker)
        self.providers = meter_provider, tracer_provider
        self._lock_names = lock_names
        self._make_instruments(metrics.get_meter(SCOPE, __version__, meter_provider, SCHEMA))
        self.spans = _Spans(trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA))
        _instrumented[self] = None
        self._forget = weakref.finalize(locker, _instrumented.pop, self, None)
        self._forget.atexit = False
        self._unsubscribe = locker.subscribe(self._told)

    def end(self) -> None:
        self._unsubscribe()
        self._forget()
        self.spans.end()

    def _make_instruments(self, meter: metrics.Meter) -> None:
        self._acquire_duration = meter.create_histogram(
            "asynclock.acquire.duration",
            unit="s",
            description="Time from the call until the lock was acquired, or until that failed",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._hold_duration = meter.create_histogram(
            "asynclock.hold.duration",
            unit="s",
            description="Time for which a lock was held",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._lost = meter.create_counter("asynclock.lost", unit="{lock}", description="Locks that were lost")
        self._late = meter.create_counter(
            "asynclock.extension.late",
            unit="{extension}",
            description="How often a held lock was found not extended in time: up to 3 times before it is lost",
        )
        self._reconnects = meter.create_counter(
            "asynclock.reconnects", unit="{reconnect}", description="Lost connections to servers that were made again"
        )
        provider = self.providers[0]
        meter.create_observable_up_down_counter(
            "asynclock.waiting",
            [_sum(provider, lambda statistics: statistics.waiting)],
            unit="{task}",
            description="Tasks that wait for a lock",
        )
        meter.create_observable_up_down_counter(
            "asynclock.held",
            [_sum(provider, lambda statistics: statistics.held)],
            unit="{lock}",
            description="Locks that are held",
        )
        if not self._lock_names:  # so that the first one is an increase, and not the beginning of a series
            for reason in LossReason:
                if reason is not LossReason.RELEASED:
                    self._lost.add(0, {REASON: reason.value}, Context())
            self._late.add(0, {}, Context())

    def _told(self, event: Event) -> None:
        match event:
            case Acquired():
                self.spans.acquired(event)
                self._acquire_duration.record(event.waited, self._attributes(event.name))
            case Released():
                context = self.spans.released(event)
                self._hold_duration.record(event.held, self._attributes(event.name), context)
            case Lost():
                context, counted = self.spans.lost(event)
                attributes = self._attributes(event.name)
                if not counted:
                    self._hold_duration.record(event.held, attributes, context)
                self._lost.add(1, {**attributes, REASON: event.reason.value}, context)
            case TimedOut():
                self._failed(event, AcquireTimeoutError.__name__, event.holder.owner if event.holder else None)
            case GaveUp():
                self._failed(event, event.error, None)
            case ExtensionLate():
                self._late.add(1, self._attributes(event.name), self.spans.extension_late(event))
            case Reconnected():
                self._reconnects.add(1, {SERVER: event.server}, Context())

    def _failed(self, event: TimedOut | GaveUp, error: str, owner: str | None) -> None:
        self.spans.failed(event, error, owner)
        self._acquire_duration.record(event.waited, {**self._attributes(event.name), ERROR: error})

    def _attributes(self, name: str) -> dict[str, str]:
        return {NAME: name} if self._lock_names else {}


_instrumented: dict[_Instrumentation, None] = {}  # a dict, since list() of it is safe while other threads change it


def _sum(
    provider: metrics.MeterProvider | None, figure: Callable[[Statistics], int]
) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    """A callback that observes a figure of all lockers that report to ``provider`` together: of the callbacks of all
    instruments of one name, the SDK calls the first one only."""

    def observe(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        mine = metrics.get_meter_provider() if provider is None else provider
        figures: list[int] = []
        for each in list(_instrumented):
            given, locker = each.providers[0], each.locker()
            if locker is not None and (metrics.get_meter_provider() if given is None else given) is mine:
                figures.append(figure(locker.statistics()))
        return [metrics.Observation(sum(figures))] if figures else []

    return observe


class _Spans:
    """The spans of one locker.

    The event of a wait comes at its end, in the context of the task, so its parent is the task's span. A hold has an
    event at both ends, and the second one may come in any context: so its span is kept open.

    Starts and durations are those of the events. An end is start and duration, since people may set the clock
    meanwhile.

    Invariants: ``_held`` has the spans of the holds that have begun and not ended: no more than locks are held.
    ``_released`` has the latest REMEMBERED of those that were released.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._held: dict[int, tuple[trace.Span, float]] = {}  # with the Unix seconds of its start
        self._released: OrderedDict[int, Context] = OrderedDict()

    def end(self) -> None:
        """No more events come."""
        while self._held:
            self._held.popitem()[1][0].end()

    def drop(self) -> None:
        """This is the child of a fork: the parent ends its spans itself."""
        self._held.clear()

    def acquired(self, event: Acquired) -> None:
        named = {NAME: event.name}
        wait = self._tracer.start_span("asynclock.acquire", attributes=named, start_time=_ns(event.at - event.waited))
        wait.end(_ns(event.at))
        hold = self._tracer.start_span("asynclock.hold", attributes=named, start_time=_ns(event.at))
        self._held[event.hold] = hold, event.at

    def failed(self, event: TimedOut | GaveUp, error: str, owner: str | None) -> None:
        attributes = {NAME: event.name, ERROR: error}
        if owner is not None:
            attributes[OWNER] = owner
        wait = self._tracer.start_span(
            "asynclock.acquire", attributes=attributes, start_time=_ns(event.at - event.waited)
        )
        wait.set_status(trace.StatusCode.ERROR, error)
        wait.end(_ns(event.at))

    def released(self, event: Released) -> Context:
        """Returns the context of the hold; so do those below."""
        if event.hold not in self._held:
            return Context()  # it was acquired before the locker was instrumented
        span, began = self._held.pop(event.hold)
        span.end(_ns(began + event.held))
        context = self._released[event.hold] = _context_of(span)
        if len(self._released) > REMEMBERED:
            self._released.popitem(last=False)
        return context

    def lost(self, event: Lost) -> tuple[Context, bool]:
        """Returns also whether this hold was released before."""
        released = event.hold in self._released
        if event.hold in self._held:
            span, began = self._held.pop(event.hold)
            context, over = _context_of(span), began + event.held
        else:  # the span has ended, so the loss gets one of its own, in it
            context, over = self._released.pop(event.hold, Context()), event.at
            span = self._tracer.start_span(
                "asynclock.lost", context, attributes={NAME: event.name}, start_time=_ns(over)
            )
        reason = event.reason.value
        span.add_event("asynclock.lost", {REASON: reason, DETAIL: event.detail}, _ns(over))
        span.set_attribute(ERROR, LockLostError.__name__)
        span.set_attribute(REASON, reason)
        span.set_status(trace.StatusCode.ERROR, f"the lock was lost: {reason}")
        span.end(_ns(over))
        return context, released

    def extension_late(self, event: ExtensionLate) -> Context:
        if event.hold not in self._held:
            return Context()
        span = self._held[event.hold][0]
        span.add_event("asynclock.extension.late", {REMAINING: event.remaining}, _ns(event.at))
        return _context_of(span)


def _context_of(span: trace.Span) -> Context:
    """Of its identity alone: the span is not kept."""
    return trace.set_span_in_context(trace.NonRecordingSpan(span.get_span_context()), Context())


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _in_child() -> None:
    for each in list(_instrumented):
        each.spans.drop()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_in_child)
