"""Receivers that misbehave, and addresses of receivers that should never be called: what becomes of the callback.

Keys of the server's answers are paths on `{tricky}`. The job itself succeeds, whatever its receiver does.
"""

from __future__ import annotations

from jobs.ledger import Verdict
from tests.hostile.web import answers, head, redirects_to
from tests.storage.raw_server import Script, breaks_off, drips, sends

REFUSED: dict[str, tuple[str, str]] = {
    "a user and password": ("https://me:secret@example.org/", "callback.url: has a user or password in it"),
    "a file": ("file:///etc/passwd", "callback.url: 'file:///etc/passwd' is not a URI with one of"),
    "gopher": ("gopher://127.0.0.9:{inside_port}/", "is not a URI with one of the schemes https, http"),
    "a bucket": ("s3://bucket/hook", "is not a URI with one of the schemes https, http"),
    "no host": ("https:///hook", "does not have the form https://host/path"),
    "a script": ("javascript:alert(1)", "is not a URI with one of the schemes"),
    "half a bracket": ("http://[::1/", "callback.url: "),
    "a port that is a word": ("http://example.org:port/", "callback.url: "),
    "a port of 65,536": ("http://example.org:65536/", "callback.url: "),
    "half a character": ("https://h/\ud800", "callback.url: has half of a surrogate pair"),
    "8,193 characters": ("https://h/" + "a" * 8183, "callback.url: has 8,193 characters"),
}
"""Jobs that are refused: `invalid_job` with these words."""

ADDRESSES: dict[str, tuple[str, Verdict, str]] = {
    "inside": ("{inside}/hook", "dropped", "a loopback address"),
    "inside, one number": ("http://2130706441:{inside_port}/", "dropped", "a loopback address"),
    "inside, as IPv6": ("http://[::ffff:7f00:9]:{inside_port}/", "dropped", "a loopback address"),
    "metadata of AWS": ("http://169.254.169.254/latest/api/token", "dropped", "a link-local address"),
    "metadata of Alibaba": ("http://100.100.100.200/", "dropped", "a carrier's shared address"),
    "a private network": ("http://192.168.0.1/hook", "dropped", "a private address"),
    "mail of a public host": ("http://8.8.8.8:25/", "dropped", "port 25 is not one of"),
    "nobody listens": ("{closed}/hook", "pending", "ConnectError"),
    "a line end in the path": ("{tricky}/hook\r\nX-Injected: 1", "pending", "InvalidURL"),
}

ANSWERS: dict[str, tuple[Script, Verdict, str]] = {
    "hook 200": (answers(b"thanks"), "delivered", "HTTP 200"),
    "hook 299": (answers(b"", status="299 Fine"), "delivered", "HTTP 299"),
    "hook 410": (answers(b"", status="410 Gone"), "dropped", "HTTP 410"),
    "hook 404": (answers(b"", status="404 Not Found"), "pending", "HTTP 404"),
    "hook 500": (answers(b"", status="500 Oh"), "pending", "HTTP 500"),
    "hook with a reason of escapes": (answers(b"", status="500 \x1b[2J" + "x" * 60_000), "pending", ""),
    "hook redirects inside": (redirects_to("http://127.0.0.9/"), "pending", "HTTP 302"),
    "hook redirects to metadata": (redirects_to("http://169.254.169.254/", 307), "pending", "HTTP 307"),
    "hook without end": (drips(head("HTTP/1.1 200 OK"), bytes(20_000)), "delivered", "HTTP 200"),
    "hook that is no HTTP": (sends(b"220 mail.example.org ESMTP\r\n"), "pending", "RemoteProtocolError"),
    "hook that says nothing": (sends(), "pending", "RemoteProtocolError"),
    "hook that breaks off": (breaks_off(b"HTTP/1.1 2"), "pending", "Error"),
    "hook of 200 kB of headers": (sends(head("HTTP/1.1 200 OK", "X: " + "a" * 200_000)), "pending", "Error"),
    "hook later, in a million years": (
        answers(b"", "Retry-After: 99999999999999", status="503 Later"),
        "pending",
        "HTTP 503",
    ),
    "hook later, at no time": (answers(b"", "Retry-After: Feb 31", status="503 Later"), "pending", "HTTP 503"),
}
