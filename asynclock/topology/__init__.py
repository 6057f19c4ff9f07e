"""Which server stores a key: a single server, one of several independent servers, or a node of a cluster."""

from .base import Topology
from .cluster import Cluster
from .opening import connect
from .servers import Servers, cluster_client

__all__ = ["Cluster", "Servers", "Topology", "cluster_client", "connect"]
