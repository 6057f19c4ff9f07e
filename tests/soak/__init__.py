"""Soak: many locks and tasks for long, a fault now and then, and a look at what grows.

``python -m tests.soak --minutes 60`` runs it, with the workers, the logs and the checker of ``tests.chaos``.
"""
