"""Web addresses, redirects and answers of a server that tries every trick, with the code and words each must get.

`{tricky}` is the server of `TRICKS` on an address that the worker may call; `{inside}` is one on an address that it may
not call, and which must never be asked anything; `{closed}` is a port where nobody listens.
"""

from __future__ import annotations

import gzip
import zlib

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.hostile.image_files import PNG
from tests.storage.raw_server import Script, breaks_off, drips, sends

INVALID = ErrorCode.INVALID_JOB
FORBIDDEN, MISSING = ErrorCode.INPUT_FORBIDDEN, ErrorCode.INPUT_NOT_FOUND
AWAY, LARGE, NO_IMAGE = ErrorCode.INPUT_UNREACHABLE, ErrorCode.INPUT_TOO_LARGE, ErrorCode.INPUT_NOT_AN_IMAGE

LARGEST_INPUT_BYTES = 500_000
"""What the suite's worker takes."""

LOOPBACK, LOCAL = "a loopback address; name it in DG_PRIVATE_HOSTS", "a link-local address"
LOGIN = "user or password in it"

ADDRESSES: dict[str, tuple[str, ErrorCode | JobState, str]] = {
    # this machine and its network, in every spelling
    "inside": ("{inside}/cat.png", FORBIDDEN, LOOPBACK),
    "inside, three numbers": ("http://127.0.9:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, two numbers": ("http://127.9:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, one number": ("http://2130706441:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, hexadecimal": ("http://0x7f000009:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, octal": ("http://0177.0.0.011:{inside_port}/", MISSING, "not a web address"),
    "inside, as IPv6": ("http://[::ffff:127.0.0.9]:{inside_port}/", FORBIDDEN, "a loopback address"),
    "inside, as IPv6 in hex": ("http://[::ffff:7f00:9]:{inside_port}/", FORBIDDEN, "a loopback address"),
    "inside, by NAT64": ("http://[64:ff9b::7f00:9]:{inside_port}/", FORBIDDEN, "a loopback address"),
    "inside, over https": ("https://127.0.0.9:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, by capitals": ("HTTP://127.0.0.9:{inside_port}/", FORBIDDEN, LOOPBACK),
    "inside, by other digits": ("http://\uff11\uff12\uff17.0.0.9:{inside_port}/", MISSING, "not a web address"),
    "inside, with other dots": ("http://127\u30020\u30020\u30029:{inside_port}/", FORBIDDEN, LOOPBACK),
    "IPv6 loopback": ("http://[::1]/", FORBIDDEN, "a loopback address"),
    "no address": ("http://0.0.0.0/", FORBIDDEN, "an unspecified address"),
    "the number 0": ("http://0/", FORBIDDEN, "an unspecified address"),
    "IPv6 no address": ("http://[::]/", FORBIDDEN, "an unspecified address"),
    "ten": ("http://10.0.0.1/", FORBIDDEN, "a private address"),
    "172.16": ("http://172.16.0.1/", FORBIDDEN, "a private address"),
    "192.168": ("http://192.168.0.1/", FORBIDDEN, "a private address"),
    "a carrier's": ("http://100.64.0.1/", FORBIDDEN, "a carrier's shared address"),
    "a unique local address": ("http://[fd00::1]/", FORBIDDEN, "a private address"),
    "a link-local address": ("http://[fe80::1]/", FORBIDDEN, LOCAL),
    "6to4": ("http://[2002:7f00:9::]/", FORBIDDEN, "a 6to4 address"),
    "Teredo": ("http://[2001:0:7f00:9::]/", FORBIDDEN, "a reserved address"),
    "multicast": ("http://224.0.0.1/", FORBIDDEN, "a multicast address"),
    "broadcast": ("http://255.255.255.255/", FORBIDDEN, "a reserved address"),
    # clouds
    "metadata of AWS": ("http://169.254.169.254/latest/meta-data/iam/", FORBIDDEN, LOCAL),
    "metadata of AWS, one number": ("http://2852039166/", FORBIDDEN, LOCAL),
    "metadata of AWS, IPv6": ("http://[fd00:ec2::254]/", FORBIDDEN, "a private address"),
    "metadata of AWS, IPv6 in IPv4": ("http://[::ffff:a9fe:a9fe]/", FORBIDDEN, LOCAL),
    "metadata of Azure": ("http://168.63.129.16/", FORBIDDEN, "a cloud metadata address"),
    "metadata of Alibaba": ("http://100.100.100.200/", FORBIDDEN, "a carrier's shared address"),
    "metadata of Oracle": ("http://192.0.0.192/", FORBIDDEN, "a reserved address"),
    # ports of public hosts
    "SSH of a public host": ("http://8.8.8.8:22/", FORBIDDEN, "port 22 is not one of 80, 443"),
    "Redis of a public host": ("http://8.8.8.8:6379/", FORBIDDEN, "port 6379 is not one of 80, 443"),
    "mail of a public host": ("https://8.8.8.8:25/", FORBIDDEN, "port 25 is not one of 80, 443"),
    # what is hardly an address
    "a user and password": ("http://me:secret@127.0.0.1/cat.png", INVALID, LOGIN),
    "a user that looks like a host": ("http://example.com@127.0.0.9:{inside_port}/", INVALID, LOGIN),
    "a user before a backslash": ("http://example.com\\@127.0.0.9:{inside_port}/", FORBIDDEN, LOGIN),
    "a fragment that looks like a host": ("{tricky}/none#@127.0.0.9:{inside_port}/", MISSING, "HTTP 404"),
    "another scheme": ("gopher://127.0.0.9:{inside_port}/_INFO", INVALID, "is not a URI with one of the schemes"),
    "dict": ("dict://127.0.0.9:{inside_port}/INFO", INVALID, "is not a URI with one of the schemes"),
    "ftp": ("ftp://127.0.0.9:{inside_port}/cat.png", INVALID, "is not a URI with one of the schemes"),
    "a jar": ("jar:http://127.0.0.9:{inside_port}!/cat.png", INVALID, "is not a URI with one of the schemes"),
    "a script": ("javascript:alert(1)", INVALID, "is not a URI with one of the schemes"),
    "no scheme": ("//127.0.0.9:{inside_port}/cat.png", INVALID, "is not a URI with one of the schemes"),
    "no slashes": ("http:127.0.0.9:{inside_port}", INVALID, "does not have the form http://host/path"),
    "no host": ("http:///cat.png", INVALID, "does not have the form http://host/path"),
    "half a bracket": ("http://[::1/cat.png", MISSING, "not a web address"),
    "a port that is a word": ("http://127.0.0.1:port/", MISSING, "not a web address"),
    "a port of 65,536": ("http://127.0.0.1:65536/", MISSING, "not a web address"),
    "a port below 0": ("http://127.0.0.1:-1/", MISSING, "not a web address"),
    "a line end in the host": (
        "http://127.0.0.1\r\nHost: x/",
        INVALID,
        "has a blank or a control character in its host",
    ),
    "a line end in the path": ("{tricky}/a\r\nX-Injected: 1", MISSING, "not a web address"),
    "a null byte": ("{tricky}/\x00", MISSING, "not a web address"),
    "a blank in the host": ("http://127.0.0.1 127.0.0.9/", INVALID, "has a blank or a control character in its host"),
    "an address of 8,193 characters": ("http://127.0.0.1/" + "a" * 8176, INVALID, "has 8,193 characters, at most"),
    "half a character": ("{tricky}/\ud800", INVALID, "half of a surrogate pair"),
    # images in the job itself
    "data that is no base64": ("data:image/png;base64,@@@", NO_IMAGE, "is not base64"),
    "data of five digits": ("data:;base64,AAAAA", NO_IMAGE, "is not base64"),
    "data too large": ("data:;base64," + "A" * 900_000, LARGE, "DG_MAX_INPUT_BYTES"),
    "data too large, encoded": ("data:," + "%41" * 600_000, LARGE, "DG_MAX_INPUT_BYTES"),
    "data that is a script": ("data:text/html,<script>alert(1)</script>", NO_IMAGE, "not a picture that can be read"),
    "data of nothing": ("data:,", NO_IMAGE, "0 bytes"),
    "no data": ("data:image/png", INVALID, "does not have the form data:image/png;base64,..."),
    "nobody listens": ("{closed}/cat.png", AWAY, "a later try may do"),
}


REDIRECTS: dict[str, tuple[str, int, ErrorCode | JobState, str]] = {
    "redirect inside": ("{inside}/cat.png", 302, FORBIDDEN, LOOPBACK),
    "redirect inside, no scheme": ("//127.0.0.9:{inside_port}/", 302, FORBIDDEN, LOOPBACK),
    "redirect inside, one number": ("http://2130706441:{inside_port}/", 302, FORBIDDEN, LOOPBACK),
    "redirect inside, IPv6": ("http://[::ffff:127.0.0.9]:{inside_port}/", 302, FORBIDDEN, "a loopback address"),
    "redirect inside, 301": ("{inside}/", 301, FORBIDDEN, LOOPBACK),
    "redirect inside, 303": ("{inside}/", 303, FORBIDDEN, LOOPBACK),
    "redirect inside, 307": ("{inside}/", 307, FORBIDDEN, LOOPBACK),
    "redirect inside, 308": ("{inside}/", 308, FORBIDDEN, LOOPBACK),
    "redirect to metadata": ("http://169.254.169.254/latest/", 302, FORBIDDEN, LOCAL),
    "redirect to a port": ("http://8.8.8.8:22/", 302, FORBIDDEN, "port 22 is not one of"),
    "redirect with a password": ("http://me:secret@127.0.0.1:{tricky_port}/", 302, FORBIDDEN, LOGIN),
    "redirect to a file": ("file:///etc/passwd", 302, FORBIDDEN, "redirects to file:/etc/passwd, which is no web"),
    "redirect to a bucket": ("s3://bucket/cat.png", 302, FORBIDDEN, "which is no web address"),
    "redirect into itself": ("data:image/png;base64,AAAA", 302, FORBIDDEN, "which is no web address"),
    "redirect to gopher": ("gopher://127.0.0.9:{inside_port}/", 302, FORBIDDEN, "which is no web address"),
    "redirect to a script": ("javascript:alert(1)", 302, FORBIDDEN, "which is no web address"),
    "redirect to nonsense": ("http://[::1", 302, MISSING, "not a web address"),
    "redirect in a circle": ("{tricky}/redirect-in-a-circle", 302, MISSING, "more than 3 redirects"),
    "redirect by one slash": ("/good", 302, JobState.SUCCEEDED, ""),
}


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def answers(body: bytes, *lines: str, status: str = "200 OK") -> Script:
    return sends(head(f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines), body)


def redirects_to(location: str, status: int = 302) -> Script:
    return sends(head(f"HTTP/1.1 {status} Found", f"Location: {location}", "Content-Length: 0"))


def packed(encoding: str, body: bytes) -> Script:
    return answers(body, f"Content-Encoding: {encoding}")


TOO_MANY = LARGEST_INPUT_BYTES + 1
BOMB = gzip.compress(bytes(50_000_000))

ANSWERS: dict[str, tuple[Script, ErrorCode | JobState, str]] = {
    "redirect without a place": (sends(head("HTTP/1.1 302 Found", "Content-Length: 0")), MISSING, "HTTP 302"),
    # what is no answer
    "no byte": (sends(), AWAY, "a later try may do"),
    "no HTTP": (sends(b"SSH-2.0-OpenSSH_9.6\r\n"), AWAY, "a later try may do"),
    "HTTP 0.9": (sends(PNG), AWAY, "a later try may do"),
    "a status that is a word": (sends(head("HTTP/1.1 OK", "Content-Length: 0")), AWAY, "a later try may do"),
    "a status of 999": (answers(PNG, status="999 Strange"), AWAY, "HTTP 999"),
    "a header of 200 kB": (sends(head("HTTP/1.1 200 OK", "X: " + "a" * 200_000)), AWAY, "a later try may do"),
    "100,000 headers": (sends(head("HTTP/1.1 200 OK", *["X: y"] * 100_000)), AWAY, "a later try may do"),
    "headers without end": (drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 2000), AWAY, "a later try may do"),
    "a length that is a word": (sends(head("HTTP/1.1 200 OK", "Content-Length: many"), PNG), AWAY, "a later try"),
    "a length below zero": (sends(head("HTTP/1.1 200 OK", "Content-Length: -1"), PNG), AWAY, "a later try may do"),
    "two lengths": (sends(head("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6"), PNG), AWAY, "a later"),
    "a chunk that is none": (sends(head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"xyz\r\n"), AWAY, "a later"),
    "it breaks off": (breaks_off(head("HTTP/1.1 200 OK", "Content-Length: 900") + PNG[:40]), AWAY, "a later try may"),
    "shorter than announced": (sends(head("HTTP/1.1 200 OK", "Content-Length: 900"), PNG[:40]), AWAY, "a later try"),
    # reasons that forge
    "a reason of 60 kB": (answers(b"", status="404 " + "x" * 60_000), MISSING, "HTTP 404"),
    "a reason of escapes": (answers(b"", status="404 \x1b[2J\x1b]0;evil"), MISSING, "HTTP 404"),
    # more bytes than may be
    "too large, announced": (
        sends(head("HTTP/1.1 200 OK", f"Content-Length: {TOO_MANY}")),
        LARGE,
        "DG_MAX_INPUT_BYTES",
    ),
    "too large, unannounced": (sends(head("HTTP/1.1 200 OK"), bytes(TOO_MANY)), LARGE, "DG_MAX_INPUT_BYTES"),
    "without end": (drips(head("HTTP/1.1 200 OK"), bytes(20_000)), LARGE, "DG_MAX_INPUT_BYTES"),
    "a length of 40 digits": (sends(head("HTTP/1.1 200 OK", f"Content-Length: {10**40}"), PNG), AWAY, "a later try"),
    "a gzip bomb": (packed("gzip", BOMB), LARGE, "DG_MAX_INPUT_BYTES"),
    "a deflate bomb": (packed("deflate", zlib.compress(bytes(50_000_000))), LARGE, "DG_MAX_INPUT_BYTES"),
    "a bomb in a bomb": (packed("gzip, gzip", gzip.compress(BOMB)), NO_IMAGE, "gzip"),
    "packed garbage": (packed("gzip", b"garbage"), NO_IMAGE, "gzip"),
    "packed as nobody knows": (packed("rot13", PNG), NO_IMAGE, "rot13"),
    # answers that mean something
    "401": (answers(b"", status="401 Unauthorized"), FORBIDDEN, "HTTP 401"),
    "404": (answers(PNG, status="404 Not Found"), MISSING, "HTTP 404"),
    "418": (answers(PNG, status="418 Teapot"), MISSING, "HTTP 418"),
    "429 for a year": (answers(b"", "Retry-After: 31536000", status="429 Too Many"), AWAY, "HTTP 429"),
    "500": (answers(PNG, status="500 Oh"), AWAY, "HTTP 500"),
    "204": (sends(head("HTTP/1.1 204 No Content")), NO_IMAGE, "0 bytes"),
    "206, a part": (answers(PNG[:40], status="206 Partial Content"), NO_IMAGE, ""),
    "a web page": (answers(b"<html><body>Please log in</body></html>"), NO_IMAGE, "start like a web page"),
    "a web page named image": (answers(b"<!DOCTYPE html><p>", "Content-Type: image/png"), NO_IMAGE, "like a web page"),
    "cookies and links": (answers(PNG, "Set-Cookie: a=b", "Link: <{inside}/>; rel=preload"), JobState.SUCCEEDED, ""),
    "refresh inside": (answers(PNG, "Refresh: 0; url={inside}/"), JobState.SUCCEEDED, ""),
    "more bytes than announced": (
        sends(head("HTTP/1.1 200 OK", f"Content-Length: {len(PNG)}"), PNG, PNG),
        JobState.SUCCEEDED,
        "",
    ),
    "good": (answers(PNG), JobState.SUCCEEDED, ""),
}
