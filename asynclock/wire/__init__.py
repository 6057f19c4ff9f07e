"""One server: its connections, their protocol, what the server can do, and the commands for it."""
