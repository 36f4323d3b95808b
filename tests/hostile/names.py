"""Names of inputs and outputs that try to leave their place: as in jobs, with the code and words that each must get.

`{in}` stands for the folder that the worker may read, `{out}` for the one that it may write.
"""

from __future__ import annotations

from jobs.errors import ErrorCode
from jobs.schema import JobState

INVALID, FORBIDDEN = ErrorCode.INVALID_JOB, ErrorCode.OUTPUT_FORBIDDEN
DEEP, LONG = "a/" * 65, "/".join(["x" * 250] * 5)

Wanted = tuple[ErrorCode | JobState, str]

OUTPUTS: dict[str, tuple[str, ErrorCode | JobState, str]] = {
    "up and out": ("file://{out}/../evil.png", INVALID, "output: should be a plain name, without '..'"),
    "up and out, encoded": ("file://{out}/%2e%2e/evil.png", INVALID, "without '..'"),
    "up, encoded twice": ("file://{out}/%252e%252e/fine.png", JobState.SUCCEEDED, ""),
    "a single dot": ("file://{out}/./evil.png", INVALID, "without '..' and '.'"),
    "a folder": ("file://{out}/", INVALID, "should end in the name of a file"),
    "3,000 folders": ("file://{out}/" + "a/" * 3000 + "b.png", INVALID, "is longer than 1,024 bytes"),
    "65 folders": ("s3://bucket/" + DEEP + "b.png", INVALID, "is more than 64 folders deep"),
    "a long part": ("file://{out}/" + "x" * 256 + ".png", INVALID, "has a part of more than 255 bytes"),
    "a long key": (f"s3://bucket/{LONG}.png", INVALID, "is longer than 1,024 bytes"),
    "a null byte": ("file://{out}/a%00.png", INVALID, "has control characters"),
    "a line end": ("file://{out}/a\nb.png", INVALID, "has control characters"),
    "an escape sequence": ("file://{out}/\x1b[2J.png", INVALID, "has control characters"),
    "a line separator": ("s3://bucket/a\u2028b.png", INVALID, "has control characters"),
    "a backslash": ("file://{out}/..\\evil.png", INVALID, "has a backslash"),
    "a backslash, encoded": ("file://{out}/..%5Cevil.png", INVALID, "has a backslash"),
    "a drive": ("file:///C:/evil.png", INVALID, "should not name a drive"),
    "a drive in a bucket": ("s3://bucket/C:evil.png", INVALID, "should not name a drive"),
    "a name that turns round": ("file://{out}/\u202egnp.exe.png", INVALID, "direction of writing"),
    "half a character": ("file://{out}/\ud800.png", INVALID, "half of a surrogate pair"),
    "no UTF-8": ("file://{out}/%FF.png", INVALID, "a path that is not UTF-8"),
    "another scheme": ("gopher://host/a.png", INVALID, "is not a URI with one of the schemes s3, file"),
    "no scheme": ("/etc/cron.d/evil.png", INVALID, "is not a URI with one of the schemes s3, file"),
    "another machine": ("file://host/share/a.png", INVALID, "does not have the form file:///absolute/path"),
    "a bucket alone": ("s3://bucket", INVALID, "does not have the form s3://bucket/key"),
    "/etc": ("file:///etc/evil.png", FORBIDDEN, "not below an allowed folder"),
    "the root": ("file:///evil.png", FORBIDDEN, "not below an allowed folder"),
    "/dev": ("file:///dev/shm/evil.png", FORBIDDEN, "not below an allowed folder"),
    "a neighbour of the folder": ("file://{out}-evil/a.png", FORBIDDEN, "not below an allowed folder"),
    "through a link": ("file://{out}/link/evil.png", FORBIDDEN, "not below an allowed folder"),
    "below a file": ("file://{in}/cat.png/a.png", ErrorCode.OUTPUT_NOT_FOUND, "is not a folder"),
    "over a folder": ("file://{in}/folder.png", ErrorCode.OUTPUT_FORBIDDEN, "folder"),
    "another's bucket": ("s3://someone-elses/a.png", FORBIDDEN, "DG_BUCKETS"),
    "a bucket that begins alike": ("s3://{bucket}-evil/a.png", FORBIDDEN, "DG_BUCKETS"),
    "a bucket with a user": ("s3://me@{bucket}/a.png", FORBIDDEN, "DG_BUCKETS"),
    "beside the prefix": ("s3://prefixed/outside.png", FORBIDDEN, "DG_BUCKETS"),
    "a prefix that begins alike": ("s3://prefixed/inside-evil/a.png", FORBIDDEN, "DG_BUCKETS"),
    "the web": ("https://bucket.example/a.png?X-Amz-Signature=x", FORBIDDEN, "outputs may not go to bucket.example"),
    "a cloud's metadata": ("http://169.254.169.254/latest/a.png", FORBIDDEN, "outputs may not go to 169.254.169.254"),
    "the web, without a name": ("https://bucket.example/", INVALID, "should end in the name of a file"),
    "a name of spaces": ("file://{out}/%20%20.png", JobState.SUCCEEDED, ""),
    "a name in other letters": ("file://{out}/кот/猫.png", JobState.SUCCEEDED, ""),
    "a name that is a flag": ("file://{out}/--help.png", JobState.SUCCEEDED, ""),
    "a formula": ("file://{out}/=cmd()|a.png", JobState.SUCCEEDED, ""),
    "markup": ("file://{out}/<script>alert(1)<%2Fscript>.png", JobState.SUCCEEDED, ""),
}

INPUTS: dict[str, tuple[str, ErrorCode | JobState, str]] = {
    "/etc/passwd": ("file:///etc/passwd", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "the environment": ("file:///proc/self/environ", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "up and out": ("file://{in}/../secret.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "up and out, encoded": ("file://{in}/%2e%2e/secret.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "through a link": ("file://{in}/link/secret.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "a link to a file": ("file://{in}/linked.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "a neighbour of the folder": ("file://{in}-evil/cat.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "the folder of outputs": ("file://{out}/cat.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "the root": ("file:///", INVALID, "does not have the form file:///absolute/path"),
    "the folder itself": ("file://{in}", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "a folder": ("file://{in}/folder.png", ErrorCode.INPUT_FORBIDDEN, "irectory"),
    "a pipe": ("file://{in}/pipe.png", ErrorCode.INPUT_FORBIDDEN, "not a regular file"),
    "a device": ("file:///dev/zero", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "a null byte": ("file://{in}/cat.png%00.png", ErrorCode.INPUT_FORBIDDEN, "has a null byte"),
    "a long name": ("file://{in}/" + "x" * 300, ErrorCode.INPUT_FORBIDDEN, "ame too long"),
    "below a file": ("file://{in}/cat.png/cat.png", ErrorCode.INPUT_NOT_FOUND, "cat.png"),
    "nothing there": ("file://{in}/none.png", ErrorCode.INPUT_NOT_FOUND, "none.png"),
    "a file too large": ("file://{in}/large.png", ErrorCode.INPUT_TOO_LARGE, "DG_MAX_INPUT_BYTES"),
    "another machine": ("file://host/cat.png", INVALID, "does not have the form"),
    "a backslash": ("file://{in}\\..\\secret.png", ErrorCode.INPUT_FORBIDDEN, "DG_FILE_ROOTS"),
    "another's bucket": ("s3://someone-elses/cat.png", ErrorCode.INPUT_FORBIDDEN, "DG_BUCKETS"),
    "up in a bucket": ("s3://bucket/../other/cat.png", INVALID, "image: should be a plain name, without '..'"),
    "a control character in a key": ("s3://bucket/a\r\nb.png", INVALID, "image: has control characters"),
    "beside the prefix": ("s3://prefixed/cat.png", ErrorCode.INPUT_FORBIDDEN, "DG_BUCKETS"),
    "an unknown bucket": ("s3://no-such-bucket/cat.png", ErrorCode.INPUT_NOT_FOUND, "no-such-bucket"),
    "a missing object": ("s3://{bucket}/none.png", ErrorCode.INPUT_NOT_FOUND, "none.png"),
}
