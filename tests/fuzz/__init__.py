"""Fuzzing: malformed replies, mutated from recorded ones. None may harm more than its connection."""
