"""All scenarios, in the order in which they run. The docstring of each is the heading of its figures."""

from __future__ import annotations

from .at_least import at_least
from .cycle import cycle, one_name
from .fencing import fencing
from .imports import imports
from .loss import loss, outage
from .many import at_once, held
from .permits import permits
from .processes import fairness, processes
from .quorum import quorum
from .run import Scenario
from .several import several
from .spread import spread_keys
from .stages import stages
from .waiters import waiters
from .waiting import killed, waiting

SCENARIOS: dict[str, Scenario] = {
    "cycle": cycle,
    "one name": one_name,
    "permits": permits,
    "processes": processes,
    "stages": stages,
    "fairness": fairness,
    "waiting": waiting,
    "killed": killed,
    "loss": loss,
    "outage": outage,
    "quorum": quorum,
    "several": several,
    "fencing": fencing,
    "at_least": at_least,
    "spread_keys": spread_keys,
    "held": held,
    "at once": at_once,
    "waiters": waiters,
    "import": imports,
}

ONE_LOOP = {"import"}  # scenarios that do not depend on the event loop
