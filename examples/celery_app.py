"""A lock in Celery: withdrawals from an account run one at a time, over all processes of all workers.

celery -A examples.celery_app worker --concurrency 4
python -c "from examples.celery_app import withdraw; withdraw.delay('anna')"
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

from celery import Celery
from celery.signals import worker_process_shutdown

from asynclock import AcquireTimeoutError, LockLostError, ServerError
from asynclock.sync import Locker

app = Celery("accounts", broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6379"))

# Nothing is connected here. Each process of the pool connects at its first task.
locker = Locker(os.environ.get("LOCK_URL", "redis://127.0.0.1:6379"))


@worker_process_shutdown.connect
def close(**_: object) -> None:
    locker.close()  # a process of the pool ends without the functions of atexit


@app.task(autoretry_for=(AcquireTimeoutError, LockLostError, ServerError), retry_backoff=True, max_retries=10)
def withdraw(account: str) -> int:
    with locker.with_context(f"account:{account}", timeout=5) as lock, closing(database()) as db, db:
        (balance,) = db.execute("SELECT balance FROM accounts WHERE name = ?", [account]).fetchone() or (100,)
        time.sleep(0.01)  # work
        lock.check()  # nothing stops a task: so look again, right before what counts
        db.execute("REPLACE INTO accounts VALUES (?, ?)", [account, balance - 1])
    left: int = balance - 1
    return left


def database() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("DATABASE", "accounts.db"), timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER)")
    return db
