"""Which server answers for a key: one server or several independent ones, or the nodes of a cluster."""

from .base import Topology
from .cluster import Cluster
from .fixed import Fixed
from .opening import connect
from .servers import Servers, cluster_client

__all__ = ["Cluster", "Fixed", "Servers", "Topology", "cluster_client", "connect"]
