"""OpenStack Swift with its S3 door, whole in one process: `python swift_process.py FOLDER ACCESS_KEY SECRET_KEY`.

Prints the port of the S3 endpoint when it serves, and leaves when its standard input closes, so that it never outlives
the tests that started it. Proxy, account, container and object server are Swift's own, each on a free port; each ring
has one device. A script and not a module of the tests, because eventlet replaces sockets and threads of the whole
interpreter.
"""

from __future__ import annotations

import os
import pwd
import sys
from configparser import ConfigParser
from pathlib import Path

import eventlet
import eventlet.green.socket
import eventlet.tpool
import eventlet.wsgi
from swift.common import storage_policy, utils
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.wsgi import loadapp

STORES = ("account", "container", "object")
DEVICE = "disk"


def main(folder: Path, access_key: str, secret_key: str) -> None:
    utils.monkey_patch()
    listeners = {name: eventlet.listen(("127.0.0.1", 0)) for name in ("proxy", *STORES)}
    log = eventlet.green.socket.socket(type=eventlet.green.socket.SOCK_DGRAM)
    log.bind(("127.0.0.1", 0))
    eventlet.spawn(copy_to_stderr, log)
    ports = {name: opened.getsockname()[1] for name, opened in {**listeners, "log": log}.items()}
    write_cluster(folder, ports, access_key, secret_key)
    utils.set_swift_dir(str(folder))
    utils.validate_configuration()
    storage_policy.reload_storage_policies()
    for name, listener in listeners.items():
        eventlet.spawn(serve, listener, loadapp(str(folder / f"{name}.conf")))
    print(ports["proxy"], flush=True)  # noqa: T201 - read by whoever started this script
    eventlet.tpool.execute(sys.stdin.read)


def serve(listener: eventlet.greenio.GreenSocket, app: object) -> None:
    # Header names keep their case on the way out: boto3 looks for `ETag`, eventlet would send `Etag`.
    eventlet.wsgi.server(
        listener, app, utils.NullLogger(), protocol=SwiftHttpProtocol, capitalize_response_headers=False
    )


def copy_to_stderr(log: eventlet.greenio.GreenSocket) -> None:
    while True:
        sys.stderr.write(log.recv(65536).decode(errors="replace").rstrip("\0") + "\n")


def write_cluster(folder: Path, ports: dict[str, int], access_key: str, secret_key: str) -> None:
    """Lay out disk, rings and configuration of a cluster that keeps one copy of each object."""
    (folder / "disks" / DEVICE).mkdir(parents=True)
    defaults = {
        "swift_dir": str(folder),
        "devices": str(folder / "disks"),
        "mount_check": "false",
        "user": pwd.getpwuid(os.getuid()).pw_name,
        # Swift logs to syslog only: to one of ours, for containers have none and a person's is not for tests.
        "log_udp_host": "127.0.0.1",
        "log_udp_port": str(ports["log"]),
    }
    for name in STORES:
        write_ring(folder / f"{name}.ring.gz", ports[name])
        write_sections(folder / f"{name}.conf", {"DEFAULT": defaults, "app:main": {"use": f"egg:swift#{name}"}})
    write_sections(folder / "proxy.conf", {"DEFAULT": defaults} | proxy_sections(access_key, secret_key))
    write_sections(
        folder / "swift.conf",
        {
            "swift-hash": {"swift_hash_path_prefix": "tests"},
            "storage-policy:0": {"name": "one-copy", "default": "yes"},
        },
    )


def write_ring(path: Path, port: int) -> None:
    builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"region": 1, "zone": 1, "weight": 1, "device": DEVICE, **address})
    builder.rebalance()
    builder.get_ring().save(str(path))


def proxy_sections(access_key: str, secret_key: str) -> dict[str, dict[str, str]]:
    filters: dict[str, dict[str, str]] = {
        "catch_errors": {},
        "gatekeeper": {},
        "listing_formats": {},
        "s3api": {"location": "us-east-1"},
        "tempauth": {"user_" + access_key.replace(":", "_"): f"{secret_key} .admin"},
        "copy": {},
        "slo": {},  # what multipart uploads are made of
        "dlo": {},
        "versioned_writes": {"allow_object_versioning": "true"},
        "symlink": {},  # what versions are made of
    }
    return {
        "pipeline:main": {"pipeline": " ".join([*filters, "proxy-server"])},
        "app:proxy-server": {"use": "egg:swift#proxy", "account_autocreate": "true"},
        **{f"filter:{name}": {"use": f"egg:swift#{name}", **options} for name, options in filters.items()},
    }


def write_sections(path: Path, sections: dict[str, dict[str, str]]) -> None:
    configuration = ConfigParser(interpolation=None)
    configuration.read_dict(sections)
    with path.open("w") as file:
        configuration.write(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
