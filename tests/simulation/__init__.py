"""The lock's rules (core/) in a simulated world: random schedules, checked at every event. See docs/reliability.md."""
