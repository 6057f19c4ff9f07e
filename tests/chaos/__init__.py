"""Chaos: several processes contend for locks on real servers while things break; what they wrote down is checked.

``python -m tests.chaos --minutes 4`` runs it; docs/chaos.md says what it does and what was seen.
"""
