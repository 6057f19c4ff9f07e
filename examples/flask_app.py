"""A lock in Flask: withdrawals from an account run one at a time, over all threads and processes of all workers.

gunicorn --preload --workers 2 --threads 4 examples.flask_app:app
curl -X POST http://127.0.0.1:8000/accounts/anna/withdraw
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

from flask import Flask
from flask.typing import ResponseReturnValue

from asynclock import AcquireTimeoutError, LockerClosedError, LockLostError, ServerError
from asynclock.sync import Locker

# Nothing is connected here, so it does not matter which process does this. Each worker connects at its first request.
locker = Locker(os.environ.get("LOCK_URL", "redis://127.0.0.1:6379"))
app = Flask(__name__)


@app.post("/accounts/<account>/withdraw")
def withdraw(account: str) -> ResponseReturnValue:
    with locker.with_context(f"account:{account}", timeout=5) as lock, closing(database()) as db, db:
        (balance,) = db.execute("SELECT balance FROM accounts WHERE name = ?", [account]).fetchone() or (100,)
        time.sleep(0.01)  # work
        lock.check()  # nothing stops a thread: so look again, right before what counts
        db.execute("REPLACE INTO accounts VALUES (?, ?)", [account, balance - 1])
    return {"balance": balance - 1}


@app.errorhandler(AcquireTimeoutError)
@app.errorhandler(LockLostError)
@app.errorhandler(LockerClosedError)
@app.errorhandler(ServerError)
def no_lock(error: Exception) -> ResponseReturnValue:
    busy = isinstance(error, AcquireTimeoutError) and not isinstance(error.__cause__, ServerError)
    return {"detail": "busy" if busy else "unavailable"}, 423 if busy else 503, {"Retry-After": "1"}


def database() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("DATABASE", "accounts.db"), timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER)")
    return db
