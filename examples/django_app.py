"""A lock in Django: withdrawals from an account run one at a time, over all threads and processes of all workers.

python -m examples.django_app  # creates the table
gunicorn --preload --workers 2 --threads 4 examples.django_app:app
curl -X POST http://127.0.0.1:8000/accounts/anna/withdraw
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from asynclock import AcquireTimeoutError, LockerClosedError, LockLostError, ServerError
from asynclock.sync import Locker

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", "accounts.db")}
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {**database, "OPTIONS": {"timeout": 30}}},
    MIDDLEWARE=[f"{__name__}.AnswerWithoutLock"],
    ROOT_URLCONF=__name__,
)
django.setup()

# Nothing is connected here, so it does not matter which process does this. Each worker connects at its first request.
locker = Locker(os.environ.get("LOCK_URL", "redis://127.0.0.1:6379"))


class Account(models.Model):
    name = models.CharField(max_length=100, primary_key=True)
    balance = models.IntegerField(default=100)

    class Meta:
        app_label = "accounts"


@csrf_exempt
@transaction.non_atomic_requests  # with ATOMIC_REQUESTS, the commit would come when the lock is released
def withdraw(request: HttpRequest, account: str) -> JsonResponse:
    with locker.with_context(f"account:{account}", timeout=5) as lock, transaction.atomic():
        row, _ = Account.objects.get_or_create(name=account)
        time.sleep(0.01)  # work
        row.balance -= 1
        row.save()
        lock.check()  # nothing stops a thread: so look again, right before the commit
    return JsonResponse({"balance": row.balance})


urlpatterns = [path("accounts/<account>/withdraw", withdraw)]


class AnswerWithoutLock:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, AcquireTimeoutError | LockLostError | LockerClosedError | ServerError):
            return None
        busy = isinstance(error, AcquireTimeoutError) and not isinstance(error.__cause__, ServerError)
        answer = {"detail": "busy" if busy else "unavailable"}
        return JsonResponse(answer, status=423 if busy else 503, headers={"Retry-After": "1"})


app = get_wsgi_application()

if __name__ == "__main__":
    with connection.schema_editor() as schema:
        schema.create_model(Account)
