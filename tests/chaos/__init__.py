"""Chaos: several processes contend for locks on real servers under faults. Then their logs are checked.

``python -m tests.chaos --minutes 4`` runs it; docs/chaos.md describes it, with results.
"""
