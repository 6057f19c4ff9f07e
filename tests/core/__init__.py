"""Tests of the core: no socket, no loop, no sleeping. A package, so that the world can be imported from anywhere."""
