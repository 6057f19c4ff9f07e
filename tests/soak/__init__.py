"""Soak: many locks and tasks for a long time, with occasional faults, to see whether memory or descriptors grow.

``python -m tests.soak --minutes 60`` runs it, with the workers, the logs and the checker of ``tests.chaos``.
"""
