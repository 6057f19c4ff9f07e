"""The Sentinels that other tests stand on."""

import os

import pytest

from asynclock.testing import Sentinels
from tests.support.kinds import needs

pytestmark = pytest.mark.serverless


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, config",
    [("valkey-9.1", {}), pytest.param("redis-8.2", {"requirepass": "secret"}, marks=needs("redis-8.2"))],
)
def test_the_primary_is_made_and_found(kind: str, config: dict[str, str]) -> None:
    with Sentinels(kind, config=config) as sentinels:
        first = sentinels.servers[0]
        assert sentinels.primary is first and sentinels.replicas == sentinels.servers[1:]
        assert len(sentinels.servers) == len(sentinels.sentinels) == 3
        hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
        assert sentinels.url == f"redis+sentinel://{hosts}/mymaster/0"
        assert sentinels.sentinels[2].execute("ROLE") == [b"sentinel", [b"mymaster"]]
        first.execute("SET", "key", "value")
        assert first.execute("WAIT", 2, 2000) == 2

        second = sentinels.failover()
        assert second is sentinels.primary is not first and first in sentinels.replicas
        assert second.execute("GET", "key") == b"value" and second.execute("SET", "key", "value") == "OK"

        second.kill()
        assert sentinels.primary is second
        third = sentinels.wait_for_failover(second)
        assert third is sentinels.primary is not second and third.execute("SET", "key", "value") == "OK"

        second.start()
        sentinels.wait_until_ok()
        assert second.execute("GET", "key") == b"value"
        with pytest.raises(RuntimeError, match="READONLY"):
            second.execute("SET", "key", "value")
        with pytest.raises(TimeoutError, match="switch-master"):
            sentinels.wait_for_failover(third, 0.1)
        pids = [server.pid for server in sentinels.servers + sentinels.sentinels]
    sentinels.close()
    assert sentinels.servers == sentinels.sentinels == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_cannot_start_leaves_nothing() -> None:
    with pytest.raises(RuntimeError, match="down-after"):
        Sentinels(sentinels=1, sentinel_config={"sentinel down-after-milliseconds mymaster": "soon"}).__enter__()
