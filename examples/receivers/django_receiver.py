"""A receiver of callbacks on Django, in one file.

pip install django kontext-edits
DG_CALLBACK_SECRET=whsec_... python django_receiver.py runserver --noreload 9000
producer submit data.csv --callback-url http://this-machine:9000/hook
"""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from producer import CallbackRefused, JobState, verify_callback

settings.configure(SECRET_KEY=os.urandom(32).hex(), ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
seen: set[str] = set()  # a real receiver asks its database: callbacks come at least once


@csrf_exempt  # the signature says who sends it
@require_POST
def hook(request: HttpRequest) -> HttpResponse:
    try:
        event = verify_callback(request.body, request.headers, os.environ["DG_CALLBACK_SECRET"])
    except CallbackRefused as refusal:
        return HttpResponse(str(refusal), status=401)
    webhook_id = request.headers["webhook-id"]
    if webhook_id not in seen:
        seen.add(webhook_id)
        done = event.data.state is JobState.SUCCEEDED
        print(event.data.job_id, event.data.output if done else event.data.error, flush=True)  # noqa: T201
    return HttpResponse(status=204)


urlpatterns = [path("hook", hook)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
