"""A receiver of callbacks on FastAPI.

pip install fastapi uvicorn kontext-edits
DG_CALLBACK_SECRET=whsec_... uvicorn fastapi_receiver:app --port 9000
producer submit data.csv --callback-url http://this-machine:9000/hook
"""

import os

from fastapi import FastAPI, Request, Response

from producer import CallbackRefused, JobState, verify_callback

app = FastAPI()
seen: set[str] = set()  # a real receiver asks its database: callbacks come at least once


@app.post("/hook")
async def hook(request: Request) -> Response:
    try:
        event = verify_callback(await request.body(), request.headers, os.environ["DG_CALLBACK_SECRET"])
    except CallbackRefused as refusal:
        return Response(str(refusal), status_code=401)
    webhook_id = request.headers["webhook-id"]
    if webhook_id not in seen:
        seen.add(webhook_id)
        done = event.data.state is JobState.SUCCEEDED
        print(event.data.job_id, event.data.output if done else event.data.error, flush=True)  # noqa: T201
    return Response(status_code=204)
