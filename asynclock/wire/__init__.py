"""One server: its connection, its protocol, its abilities and the commands it understands."""
