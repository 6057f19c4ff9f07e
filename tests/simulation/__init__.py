"""The rules of the lock in a simulated world: random schedules, every one of them checked. See docs/reliability.md."""
