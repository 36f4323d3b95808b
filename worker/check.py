"""`worker check`: what this machine has and lacks, each finding with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobs.connection import connect, redis_errors
from jobs.errors import BrokerError, EditFailure, Error, ErrorCode
from jobs.ledger import redis_key
from jobs.registry import WorkerRegistry
from jobs.settings import unknown_variables
from jobs.shown import hide_in_url, hide_secrets
from storage import Storage
from worker.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

    from kontext.weights.layout import ModelFiles

KONTEXT_T5 = "black-forest-labs/FLUX.1-Kontext-dev --include 'text_encoder_2/*' 'tokenizer_2/*'"


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is and, unless all is well, what to do."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


def check_machine(settings: Settings, verify: bool = False) -> Iterator[Finding]:
    """Look at everything a worker needs; a check that fails does not stop the others.

    Args:
        verify: also compare the weights with their SHA-256.
    """
    for subject, look in {**CHECKS, **({"checksums": check_checksums} if verify else {})}.items():
        try:
            yield from look(settings)
        except Error as error:
            yield Finding(subject, Level.FAIL, str(error))
        except Exception as error:  # a check must report, whatever a library raises
            yield Finding(subject, Level.FAIL, f"{type(error).__name__}: {error}")


def check_device(settings: Settings) -> Iterator[Finding]:
    import torch

    from kontext.device import choose_device, too_old
    from kontext.errors import DeviceError

    try:
        choose_device(settings.flux_kontext_device)
    except DeviceError as error:
        yield Finding("device", Level.FAIL, str(error), "correct DG_FLUX_KONTEXT_DEVICE, or unset it")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            if reason := too_old(torch.device("cuda", index)):
                yield Finding("device", Level.FAIL, f"cuda:{index} {reason}", "hide it with CUDA_VISIBLE_DEVICES")
                continue
            yield Finding("device", Level.OK, f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    else:
        yield Finding(
            "device",
            Level.WARN,
            f"no CUDA device; torch {torch.__version__} on the CPU",
            "fine for the tiny model only",
        )


def check_model(settings: Settings) -> Iterator[Finding]:
    from kontext.weights.layout import find_model

    if ":" in settings.flux_kontext_engine:
        yield Finding("model", Level.OK, f"engine {settings.flux_kontext_engine}")
        return
    if settings.flux_kontext_engine == "official":
        from kontext.official import find_source
        from worker.engines import check_official_settings

        check_official_settings(settings)
        find_source()
    files = find_model(settings.flux_kontext_model)
    yield Finding("model", Level.OK, str(files.transformer))
    yield from _check_weights(files)


def _check_weights(files: ModelFiles) -> Iterator[Finding]:
    """Map every file of a model as loading does, which reads headers and compares keys and shapes, but no values."""
    import torch

    from kontext.networks import load_networks
    from kontext.weights.reading import Reader

    networks = load_networks(files, torch.bfloat16, Reader(torch.device("cpu")).convert)
    yield Finding("weights", Level.OK, "all files are whole and fit the model")
    for approximation in networks.approximations:
        yield Finding("weights", Level.WARN, approximation, "pictures differ a little from those of bfloat16 weights")
    if pickles := [path for path in files.t5.weights if path.suffix == ".bin"]:
        remedy = f"take the safetensors of the model's own repository as text_encoder_2: hf download {KONTEXT_T5}"
        yield Finding("weights", Level.WARN, f"{pickles[0]} is a pickle, read for plain tensors only", remedy)


def check_prepared(settings: Settings) -> Iterator[Finding]:
    from kontext.loading import facts_of_load
    from kontext.prepared.preparation import find
    from worker.engines import engine_options

    if settings.prepared_dir is None or settings.flux_kontext_engine != "native":
        return
    facts = facts_of_load(settings.flux_kontext_model, engine_options(settings))
    folder, manifest = find(settings.prepared_dir, facts)
    if manifest is None:
        remedy = "worker prepare does so; otherwise the first worker to start does"
        yield Finding("prepared", Level.WARN, f"no {folder} that fits this model, machine and settings", remedy)
    else:
        proof = manifest.proof
        proven = f"proven: ready after {proof['ready_seconds']} s" if proof else "by a worker's first start"
        yield Finding("prepared", Level.OK, f"{folder}, {proven}")


def check_checksums(settings: Settings) -> Iterator[Finding]:
    from kontext.weights.layout import model_folder
    from worker.weights import LOCK_FILE, Lock, differences

    folder = model_folder(settings.flux_kontext_model)
    lock = Lock.read(folder)
    if lock is None:
        remedy = f"worker fetch-model REPOSITORY {folder} writes it, and fetches no file that is right"
        yield Finding("checksums", Level.FAIL, f"no {LOCK_FILE} in {folder} to compare with", remedy)
        return
    wrong = list(differences(lock, folder).values())
    for found in wrong:
        yield Finding("checksums", Level.FAIL, found, f"worker fetch-model {lock.repository} {folder}")
    if not wrong:
        yield Finding("checksums", Level.OK, f"{len(lock.files)} files of {lock.repository} at {lock.commit[:12]}")


def check_redis(settings: Settings) -> Iterator[Finding]:
    redis = connect(settings.redis_url)
    with redis_errors(redis):
        facts = redis.info()
    server = f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else f"Redis {facts['redis_version']}"
    yield Finding("redis", Level.OK, f"{server} at {hide_secrets(settings.broker_url)}")
    yield from _check_writing(redis, settings)
    yield from _check_prefix(redis, settings)
    if not facts.get("aof_enabled"):
        yield Finding(
            "redis persistence", Level.WARN, "no append-only file", "accepted jobs die with Redis: set appendonly yes"
        )
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            "redis eviction", Level.WARN, f"maxmemory-policy {policy}", "Redis may drop jobs: set it to noeviction"
        )
    if _is_remote(settings.broker_url) and not urlsplit(settings.broker_url).password:
        yield Finding(
            "redis password",
            Level.WARN,
            "none, on a non-loopback address",
            "set one, and use rediss:// across networks",
        )


def _check_prefix(redis: Redis, settings: Settings) -> Iterator[Finding]:
    registry = WorkerRegistry(redis, settings.key_prefix)
    if not registry.workers() and (others := registry.strange_prefixes()):
        yield Finding(
            "redis prefix",
            Level.WARN,
            f"workers with DG_KEY_PREFIX={' and '.join(others)} are on this queue, with {settings.key_prefix} none",
            "they take each other's messages: give all the same, or each service a database of its own",
        )


def _check_writing(redis: Redis, settings: Settings) -> Iterator[Finding]:
    """Write a key that is gone after a second: a replica, a full Redis and one that cannot save refuse it."""
    try:
        with redis_errors(redis):
            redis.set(redis_key(settings.key_prefix, "check"), "", ex=1)
    except BrokerError as error:
        found, _, remedy = str(error).partition(": ")
        yield Finding("redis writes", Level.FAIL, found, remedy)


def check_output(settings: Settings) -> Iterator[Finding]:
    storage = Storage(settings)
    try:
        storage.check_output(f"{settings.output_uri}/check.png")
    finally:
        storage.close()
    yield Finding("output", Level.OK, f"{settings.output_uri} can be written")


def check_inputs(settings: Settings) -> Iterator[Finding]:
    allowed = [
        *(f"file://{root}" for root in settings.file_roots),
        *(f"s3://{bucket}" for bucket in settings.buckets),
        *settings.private_hosts,
    ]
    yield Finding("inputs", Level.OK, ", ".join([*allowed, "https:// and http:// to public addresses", "data:"]))
    refused = {
        "file:// (DG_FILE_ROOTS names no folder)": not settings.file_roots,
        "s3:// (DG_BUCKETS names no bucket)": not settings.buckets,
        "private addresses (DG_PRIVATE_HOSTS names none)": not settings.private_hosts,
    }
    if any(refused.values()):
        yield Finding(
            "inputs refused", Level.OK, ", ".join(words for words, is_refused in refused.items() if is_refused)
        )
    if settings.proxy is not None:
        yield Finding("proxy", Level.OK, f"public web addresses are called through {hide_in_url(settings.proxy)}")
    missing = [str(root) for root in settings.file_roots if not Path(root).is_dir()]
    if missing:
        yield Finding("inputs", Level.WARN, f"no such folder: {', '.join(missing)}", "correct DG_FILE_ROOTS")


def check_profiles(settings: Settings) -> Iterator[Finding]:
    from storage.s3 import Buckets  # loads boto3

    for profile in settings.store_profiles:
        subject = f"profile {profile.name}"
        whose = f", for tenants {', '.join(profile.tenants)}" if profile.tenants else ""
        try:
            buckets = Buckets(settings, profile)
        except Error as error:
            yield Finding(subject, Level.FAIL, str(error))
            continue
        yield Finding(subject, Level.OK, f"{', '.join(f's3://{place}' for place in profile.places)}{whose}")
        for bucket in dict.fromkeys(place.partition("/")[0] for place in profile.places):
            try:
                buckets.look(bucket)
            except Error as error:
                # Who may read and write objects need not be allowed to ask for the bucket.
                is_missing = isinstance(error, EditFailure) and error.code is ErrorCode.INPUT_NOT_FOUND
                yield Finding(subject, Level.FAIL if is_missing else Level.WARN, str(error))
        buckets.close()


def check_callbacks(settings: Settings) -> Iterator[Finding]:
    signing = settings.signing
    count = len(signing.default)
    if signing.by_host:
        yield Finding("callbacks", Level.OK, f"own secrets for {', '.join(sorted(signing.by_host))}")
    if count:
        yield Finding("callbacks", Level.OK, f"signed with {count} secret{'s' * (count > 1)}")
    else:
        yield Finding(
            "callbacks",
            Level.WARN,
            "unsigned: DG_CALLBACK_SECRET is not set",
            "make one with: echo whsec_$(openssl rand -base64 24)",
        )


def check_variables(settings: Settings) -> Iterator[Finding]:
    for found in unknown_variables(type(settings)):
        yield Finding("variables", Level.WARN, found)


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "variables": check_variables,
    "device": check_device,
    "model": check_model,
    "prepared": check_prepared,
    "redis": check_redis,
    "output": check_output,
    "inputs": check_inputs,
    "profiles": check_profiles,
    "callbacks": check_callbacks,
}


def _is_remote(broker_url: str) -> bool:
    host = urlsplit(broker_url).hostname
    if host is None or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True
