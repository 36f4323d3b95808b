"""A receiver of callbacks to learn from: checks signatures, prints events. DG_CALLBACK_SECRET is the sender's."""

import base64
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LONGEST_BODY = 1 << 20
MOST_SECONDS_OFF = 300


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(min(int(self.headers["content-length"]), LONGEST_BODY))
        is_genuine = verify(self.headers, body, os.environ["DG_CALLBACK_SECRET"])
        if is_genuine:
            event = json.loads(body)
            # The same webhook-id may come twice: whoever acts on an event remembers which ones he has seen.
            print(self.headers["webhook-id"], event["type"], event["data"]["output"], flush=True)  # noqa: T201
        self.send_response(204 if is_genuine else 401)
        self.end_headers()

    def log_message(self, *_):
        """Leave the events alone on the terminal."""


def verify(headers, body, secrets):
    """Whether the request is signed with one of the secrets, lately (https://www.standardwebhooks.com)."""
    stamp = headers.get("webhook-timestamp", "0")
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > MOST_SECONDS_OFF:
        return False
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
    valid = [
        b"v1," + base64.b64encode(hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256"))
        for secret in secrets.split()
    ]
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(one, other) for one in given for other in valid)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    ThreadingHTTPServer(("0.0.0.0", port), Receiver).serve_forever()
