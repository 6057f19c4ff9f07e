"""Every scenario there is, in the order in which they run. Each one's docstring is the heading of its figures."""

from __future__ import annotations

from .cycle import cycle, one_name
from .independent import independent
from .loss import loss, outage
from .many import held, memory
from .run import Scenario
from .waiting import waiters, waiting

SCENARIOS: dict[str, Scenario] = {
    "loss": loss,
    "outage": outage,
    "waiting": waiting,
    "waiters": waiters,
    "held": held,
    "memory": memory,
    "cycle": cycle,
    "one name": one_name,
    "independent": independent,
}
