"""Servers with a wrong clock."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asynclock.testing import KINDS, Clock, Server, clock_off, clocks
from tests.support.kinds import each

pytestmark = [
    pytest.mark.serverless,
    pytest.mark.skipif(sys.platform != "linux", reason="there is no libfaketime elsewhere"),
]


@pytest.mark.parametrize("kind", each(*KINDS))
@pytest.mark.parametrize("seconds", [3600, -7200.5])
def test_the_time_of_day_is_off_and_passes_as_always(kind: str, seconds: float) -> None:
    with Server(kind, environment=clock_off(seconds)) as server:

        def now() -> float:
            reply = server.execute("TIME")
            assert isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], bytes)
            return int(reply[0]) + int(reply[1]) / 1e6

        before = time.time()
        theirs = now()
        assert before + seconds - 0.01 <= theirs <= time.time() + seconds + 0.01  # it is told in milliseconds
        server.execute("SET", "key", "value", "PX", 150)
        assert 0 < server.execute("PTTL", "key") <= 150  # type: ignore[operator]
        time.sleep(0.2)
        assert server.execute("GET", "key") is None
        passed, here = now() - theirs, time.time() - before
        assert 0.19 <= passed <= here + 0.01


def test_a_clock_jumps_while_its_server_runs() -> None:
    with Clock() as clock, Server(environment=clock.environment) as server:
        assert server.execute("SET", "key", "value", "PX", 5000) == "OK"
        for off in (3.0, -2.0):
            clock.set(off)
            time.sleep(0.01)  # the server looks at the time once in a turn of its loop
            reply = server.execute("TIME")
            assert isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], bytes)
            assert abs(int(reply[0]) + int(reply[1]) / 1e6 - time.time() - off) < 0.1
            assert abs(server.execute("PTTL", "key") - (5000 - off * 1000)) < 1000  # type: ignore[operator]
        clock.set(7200)
        time.sleep(0.01)
        assert server.execute("GET", "key") is None
    with pytest.raises(RuntimeError, match=r"before start\(\)"):
        clock.set(1)


@pytest.fixture
def looked_for_anew() -> Iterator[None]:
    clocks._library.cache_clear()
    yield
    clocks._library.cache_clear()


@pytest.mark.usefixtures("looked_for_anew")
def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clocks, "find_spec", lambda name: None)
    monkeypatch.setattr(clocks, "_DEBIAN", str(tmp_path))
    with pytest.raises(RuntimeError, match="not installed: pip install libfaketime"):
        clock_off(1)
    (tmp_path / "some-linux" / "faketime").mkdir(parents=True)
    (tmp_path / "some-linux" / "faketime" / "libfaketime.so.1").write_text("for another machine")
    with pytest.raises(RuntimeError, match="can be loaded here: pip install libfaketime"):
        clock_off(1)
