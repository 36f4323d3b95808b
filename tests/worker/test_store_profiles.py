"""Store profiles against a real S3 server that judges signatures: whose keys reach what."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from jobs.errors import EditFailure, ErrorCode, SettingsError
from jobs.ledger import Ledger
from jobs.schema import EditJob, JobState, Lora
from jobs.settings import load_settings
from storage import Storage
from storage.profiles import StoreProfile
from storage.settings import StorageSettings
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from worker.check import Level, check_profiles
from worker.edit_worker import EditWorker
from worker.loras import LoraStore
from worker.settings import Settings

WRONG = "not-the-secret-at-all"


@pytest.fixture
def configured(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS files with the profiles `shop`, right, `liar`, with a wrong secret, and `poor`, without keys.

    The worker's own variables name a store that is not there and keys that are wrong.
    """
    place = f"endpoint_url = {s3_server.endpoint_url}\nregion = {s3_server.region}\n"
    keys = f"aws_access_key_id = {s3_server.access_key}\naws_secret_access_key = "
    (tmp_path / "aws").write_text(
        f"[profile shop]\n{place}{keys}{s3_server.secret_key}\n"
        f"[profile liar]\n{place}{keys}{WRONG}\n"
        f"[profile poor]\n{place}"
    )
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "nowhere-1",
        "AWS_ACCESS_KEY_ID": "workers-own",
        "AWS_SECRET_ACCESS_KEY": WRONG,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


def storage_with(profiles: str) -> Storage:
    return Storage(load_settings(StorageSettings, store_profiles=profiles, output_uri="s3://workers-own"))


def refusal(action: Callable[[], Any]) -> EditFailure:
    with pytest.raises(EditFailure) as error:
        action()
    assert "\n" not in error.value.message
    assert WRONG not in error.value.message
    return error.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop=pics", (StoreProfile("shop", ("pics",)),)),
        (
            "shop:a,b=s3://pics/in/,out  other=x",
            (StoreProfile("shop", ("pics/in", "out"), ("a", "b")), StoreProfile("other", ("x",))),
        ),
        ("", ()),
    ],
)
def test_profiles_are_read(text: str, expected: tuple[StoreProfile, ...]) -> None:
    assert load_settings(StorageSettings, store_profiles=text).store_profiles == expected


@pytest.mark.parametrize(
    "text", ["shop", "shop=", "=pics", "shop=*", "shop:=pics", "shop=a shop=b", "shop=a,,b", "a b=c"]
)
def test_what_is_no_profile_is_refused_by_the_name_of_the_variable(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^DG_STORE_PROFILES="):
        load_settings(StorageSettings, store_profiles=text)


@pytest.mark.usefixtures("configured")
def test_a_profile_reaches_its_own_places_by_its_own_keys_and_endpoint(s3_bucket: str) -> None:
    storage = storage_with(f"shop={s3_bucket}/in,{s3_bucket}/out").of_profile("shop", None)

    storage.check_output(f"s3://{s3_bucket}/out/cat.png")
    storage.publish(f"s3://{s3_bucket}/out/cat.png", b"image", "image/png")

    assert storage.read(f"s3://{s3_bucket}/out/cat.png") == b"image"
    assert storage.read("data:text/plain,other") == b"other"
    # What lies beside its places is reached as without a profile: here not at all.
    beside = refusal(lambda: storage.read(f"s3://{s3_bucket}/private/cat.png"))
    assert (beside.code, "DG_BUCKETS" in beside.message) == (ErrorCode.INPUT_FORBIDDEN, True)
    refusal(lambda: storage.publish(f"s3://{s3_bucket}/in/../private.png", b"image", "image/png"))
    storage.close()


@pytest.mark.usefixtures("configured")
def test_a_job_without_the_profile_has_nothing_of_it(s3_bucket: str) -> None:
    storage = storage_with(f"shop={s3_bucket}")
    storage.of_profile("shop", None).publish(f"s3://{s3_bucket}/cat.png", b"image", "image/png")

    assert storage.of_profile(None, None) is storage
    assert refusal(lambda: storage.read(f"s3://{s3_bucket}/cat.png")).code is ErrorCode.INPUT_FORBIDDEN


def test_unknown_and_forbidden_profiles_have_one_answer() -> None:
    storage = storage_with("shop:shop=pics")

    unknown, forbidden = (refusal(lambda name=name: storage.of_profile(name, "lab")) for name in ("none", "shop"))
    alone = refusal(lambda: storage.of_profile("shop", None))

    assert unknown.message.replace("none:", "shop:") == forbidden.message
    assert (unknown.code, unknown.retryable) == (ErrorCode.INPUT_FORBIDDEN, False)
    assert "jobs without a tenant" in alone.message
    assert storage.of_profile("shop", "shop") is storage.of_profile("shop", "shop")


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("name", ["liar", "poor", "nobody"])
def test_a_profile_that_cannot_work_fails_the_job_in_one_line_and_the_check_with_the_reason(
    name: str, s3_bucket: str
) -> None:
    profiles = f"{name}={s3_bucket}"
    storage = storage_with(profiles).of_profile(name, None)

    assert refusal(lambda: storage.read(f"s3://{s3_bucket}/cat.png")).code is ErrorCode.INPUT_FORBIDDEN

    findings = list(check_profiles(load_settings(Settings, store_profiles=profiles)))
    assert findings[-1].level in (Level.WARN, Level.FAIL)
    assert all(name in finding.subject and WRONG not in str(finding) for finding in findings)


@pytest.mark.usefixtures("configured")
def test_the_check_names_places_and_tenants_and_asks_for_the_buckets(s3_bucket: str) -> None:
    settings = load_settings(Settings, store_profiles=f"shop:a,b={s3_bucket}/in,no-such-bucket-here")

    opened, missing = check_profiles(settings)

    assert (opened.level, opened.found) == (
        Level.OK,
        f"s3://{s3_bucket}/in, s3://no-such-bucket-here, for tenants a, b",
    )
    assert (missing.level, "no-such-bucket-here" in missing.found) == (Level.FAIL, True)


@pytest.mark.usefixtures("configured")
def test_a_lora_that_one_profile_has_fetched_is_not_given_to_jobs_without_it(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/snow.safetensors"
    settings = load_settings(Settings, store_profiles=f"shop={s3_bucket}", lora_cache_dir=tmp_path / "loras")
    shop, store = Storage(settings).of_profile("shop", None), LoraStore(settings)
    shop.publish(uri, save({"x": np.zeros(4, np.float32)}), "application/octet-stream")

    held = store.fetch(Lora(uri=uri), lambda: None, "shop")

    assert len(held.applied.sha256) == 64
    assert refusal(lambda: store.fetch(Lora(uri=uri), lambda: None)).code is ErrorCode.INPUT_FORBIDDEN
    store.close()
    shop.close()


@pytest.mark.usefixtures("configured")
def test_a_worker_fetches_and_publishes_by_the_profile_that_a_job_names(
    s3_server: S3Server, s3_bucket: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = load_settings(
        Settings,
        broker_url=redis_server.url,
        flux_kontext_engine="standin",
        output_uri=(tmp_path / "out").as_uri(),
        runtime_dir=tmp_path / "run",
        store_profiles=f"shop:shop={s3_bucket}",
    )
    image = io.BytesIO()
    Image.new("RGB", (64, 48), "orange").save(image, "PNG")
    shop = Storage(settings).of_profile("shop", "shop")
    shop.publish(f"s3://{s3_bucket}/in.png", image.getvalue(), "image/png")
    worker, ledger = EditWorker(settings, ()), Ledger.from_settings(settings)
    worker.pool.load()

    for name, tenant, profile in (("good", "shop", "shop"), ("of-another", "lab", "shop"), ("without", "shop", None)):
        job = EditJob(
            id=name,
            image=(f"s3://{s3_bucket}/in.png",),
            prompt="make it snow",
            output=f"s3://{s3_bucket}/{name}.png",
            tenant=tenant,
            store_profile=profile,
        )
        list(ledger.submit([job], settings.output_uri))
        worker.runner.run_message(name, "task")
    worker.stop()

    ended = {name: ledger.get(name) for name in ("good", "of-another", "without")}
    assert [record.state for record in ended.values()] == [JobState.SUCCEEDED, JobState.FAILED, JobState.FAILED]
    codes = [record.result.error.code for record in ended.values() if record.result.error]
    assert codes == [ErrorCode.INPUT_FORBIDDEN, ErrorCode.OUTPUT_FORBIDDEN]
    assert Image.open(io.BytesIO(shop.read(f"s3://{s3_bucket}/good.png"))).size == (64, 48)
    ledger.redis.close()
    shop.close()
