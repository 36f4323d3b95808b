"""Keys: who may call, what each caller sees, and what other web pages may do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest

from jobs.errors import SettingsError
from jobs.settings import DOORS_OWN, load_settings
from producer import Client
from producer.http.keys import ApiKeys, Caller, new_key
from producer.http.settings import HttpSettings
from storage.settings import StorageSettings
from tests.producer.conftest import Command, finish
from tests.producer.http.conftest import DATA, OpenDoor, error_of, png

ANN, ANNS = new_key("ann")
BOB, BOBS = new_key("bob:3")
KEYS = f"{ANNS} {BOBS}"


def submit(http: httpx2.Client, headers: dict[str, str] | None = None, **job: Any) -> httpx2.Response:
    return http.post("/v1/edits", json={"image": DATA, "prompt": "snow", **job}, headers=headers or {})


def test_settings_hold_hashes_and_their_callers(producer: Command) -> None:
    keys = ApiKeys.parse(f"{ANNS}, {BOBS}")

    assert (keys.caller(ANN), keys.caller(BOB)) == (Caller("ann"), Caller("bob", 3))
    assert keys.caller("dg_wrong") is None
    assert ANN not in ANNS
    key, entry = producer("serve", "--new-key", "shop:60").stdout.splitlines()
    assert ApiKeys.parse(entry).caller(key) == Caller("shop", 60)
    assert producer("serve", "--new-key", "a b").returncode == 2


@pytest.mark.parametrize(
    "value",
    ["ann", "ann:abc", f"{ANNS}:0", f"a:b:{ANNS}", f"{ANNS};{BOBS}", ANN],
    ids=["tenant", "short", "no rate", "two names", "semicolon", "key itself"],  # the keys differ from run to run
)
def test_entries_of_another_form_are_refused_without_being_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="DG_API_KEYS: expected tenant:sha256") as caught:
        load_settings(HttpSettings, api_keys=value)

    assert value not in str(caught.value)


def test_the_doors_own_settings_are_known_to_all_processes() -> None:
    assert HttpSettings.model_fields.keys() - StorageSettings.model_fields.keys() == DOORS_OWN


def test_a_door_that_others_reach_needs_keys(producer: Command) -> None:
    ended = producer("serve", "--host", "0.0.0.0")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "DG_API_KEYS" in ended.stderr
    for host in ("127.0.0.1", "localhost", "::1"):
        load_settings(HttpSettings, http_host=host).check_open()
    load_settings(HttpSettings, http_host="0.0.0.0", api_keys=KEYS).check_open()


def test_without_a_known_key_nothing_of_a_job_is_had(open_door: OpenDoor, client: Client) -> None:
    door = open_door(api_keys=KEYS)
    paths = ["/v1/edits/x", "/v1/edits/x/events", "/v1/edits/x/image", "/v1/batches/x"]
    for key in (None, "wrong", ANNS):
        with door.http(key) as http:
            answers = [*map(http.get, paths), http.delete(paths[0]), http.post(f"{paths[0]}/retry"), submit(http)]
            answers.append(http.post("/v1/images/edits", files={"image": ("cat.png", png())}, data={"prompt": "snow"}))

            assert {answer.status_code for answer in answers} == {401}
            assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert client.ledger.waiting() == 0


def test_each_caller_sees_its_own_jobs_alone(open_door: OpenDoor, client: Client) -> None:
    door = open_door(api_keys=KEYS)
    with door.http(ANN) as ann, door.http(BOB) as bob:
        anns, bobs = (submit(http, {"Idempotency-Key": "order-5"}, batch="spring").json()["id"] for http in (ann, bob))
        strangers = submit(ann).json()["id"]

        assert (anns, bobs) == ("ann:order-5", "bob:order-5")
        assert client.get(anns).job.tenant == "ann"
        assert ann.get("/v1/edits/order-5").json()["id"] == ann.get(f"/v1/edits/{anns}").json()["id"] == anns
        assert ann.get("/v1/batches/spring").json()["total"] == 1
        for path in (f"/v1/edits/{anns}", f"/v1/edits/{strangers}"):
            refused = [bob.get(path), bob.get(f"{path}/events"), bob.get(f"{path}/image"), bob.delete(path)]
            refused.append(bob.post(f"{path}/retry"))
            assert {answer.status_code for answer in refused} == {404}
        assert bob.get("/v1/batches/ann:spring").status_code == 404
        assert error_of(bob.get(f"/v1/edits/{anns}")) == error_of(bob.get("/v1/edits/ann:order-5"))


def test_a_caller_takes_no_other_tenant_and_no_head_start(open_door: OpenDoor) -> None:
    with open_door(api_keys=KEYS).http(ANN) as ann:
        for field, value in (("tenant", "bob"), ("priority", "high"), ("store_profile", "shop")):
            assert error_of(submit(ann, **{field: value}))["param"] == field
        assert submit(ann, tenant="ann", priority="low").status_code == 202


def test_a_minutes_images_are_counted_by_all_doors(open_door: OpenDoor) -> None:
    doors = [open_door(api_keys=KEYS) for _ in range(2)]
    with mock.patch("time.time", return_value=1_800_000_010.0), doors[0].http(BOB) as one, doors[1].http(BOB) as other:
        statuses = [submit(http).status_code for http in (one, other, one)]
        refused = submit(other)

    assert statuses == [202, 202, 202]
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert error_of(refused)["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "50"


def test_a_link_works_without_a_key_for_its_image_alone(open_door: OpenDoor, client: Client, tmp_path: Path) -> None:
    door, other_door = open_door(api_keys=KEYS), open_door(api_keys=KEYS)
    with door.http(ANN) as ann, other_door.http() as nobody:
        jobs = [submit(ann).json()["id"] for _ in range(2)]
        for job_id in jobs:
            output = tmp_path / "out" / f"{job_id}.png"
            output.write_bytes(png())
            finish(client, job_id)
        one, other = (ann.get(f"/v1/edits/{job_id}").json()["image_url"] for job_id in jobs)

        path = httpx2.URL(one).raw_path.decode()
        assert nobody.get(path).content == png()
        assert nobody.get(path.replace(jobs[0], jobs[1])).status_code == 401
        assert nobody.get(path.replace("expires=", "expires=9")).status_code == 401
        assert nobody.get(path[:-1]).status_code == 401
        assert nobody.get(path.partition("?")[0]).status_code == 401
        assert one != other
        with mock.patch("time.time", return_value=4_000_000_000.0):
            assert nobody.get(path).status_code == 401


def test_other_web_pages_may_not_call_unless_they_are_named(open_door: OpenDoor) -> None:
    with open_door(http_origins=("https://a.example",)).http() as http:
        own = str(http.base_url)
        for origin, status in ((own, 202), ("https://a.example", 202), ("https://b.example", 403), ("null", 403)):
            answer = submit(http, {"Origin": origin})
            assert answer.status_code == status, origin
            assert (answer.headers.get("access-control-allow-origin") == origin) == (origin == "https://a.example")
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert http.options("/v1/edits", headers={"Origin": "https://a.example", **asked}).status_code == 200
        assert http.options("/v1/edits", headers={"Origin": "https://b.example", **asked}).status_code == 400


def test_without_keys_only_this_machines_names_lead_to_the_door(open_door: OpenDoor) -> None:
    door, with_keys = open_door(), open_door(api_keys=KEYS)
    for host, status in (
        ("localhost", 404),
        ("127.0.0.1:8000", 404),
        ("[::1]", 404),
        ("evil.example", 403),
        ("", 403),
        ("[", 403),
    ):
        with door.http() as http:
            assert http.get("/v1/edits/x", headers={"Host": host}).status_code == status, host
    with with_keys.http(ANN) as http:
        assert http.get("/v1/edits/x", headers={"Host": "edits.example"}).status_code == 404


def test_receivers_are_judged_by_their_addresses(open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    led = {"good.example": ["93.184.215.14"], "inside.example": ["93.184.215.14", "10.0.0.5"]}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **named: Any) -> Any:
        if host.endswith(".example"):
            if host not in led:
                raise socket.gaierror("no such name")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in led[host]]
        return real(host, port, *rest, **named)

    with open_door(api_keys=KEYS, private_hosts=("inside.example",)).http(ANN) as ann:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        urls = ("https://good.example/hook", "https://inside.example/hook", "https://nowhere.example/hook")
        answers = [submit(ann, callback={"url": url}) for url in (*urls, "https://good.example:8443/hook")]

    assert [answer.status_code for answer in answers] == [202, 400, 400, 400]
    assert "private address" in error_of(answers[1])["message"]
    assert json.dumps([error_of(answer) for answer in answers[1:]]).count("DG_") == 0


def test_receivers_behind_a_proxy_are_judged_as_they_are_written(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def no_dns(host: str, *rest: Any, **named: Any) -> Any:
        assert not host.endswith(".example"), "only the proxy can resolve names"
        return real(host, *rest, **named)

    hosts = {
        "hooks.example": 202,
        "metadata.google.internal": 400,
        "redis": 400,
        "0x7f000001": 400,
        "1.2.3.4.5": 400,
        "hooks.example:8443": 400,
    }
    with open_door(api_keys=KEYS, proxy="http://proxy.example:3128").http(ANN) as ann:
        monkeypatch.setattr(socket, "getaddrinfo", no_dns)
        answers = {host: submit(ann, callback={"url": f"https://{host}/hook"}) for host in hosts}

    assert {host: answer.status_code for host, answer in answers.items()} == hosts
    for host, answer in answers.items():
        if hosts[host] == 400:
            assert error_of(answer)["param"] == "callback.url", answer.text
            assert "DG_" not in answer.text


def test_names_that_no_worker_would_take_are_refused_while_the_caller_can_mend_them(open_door: OpenDoor) -> None:
    with open_door(api_keys=KEYS).http(ANN) as ann:
        answers = [
            submit(ann, batch="b" * 128),  # with the tenant before it, longer than a name may be
            submit(ann, callback={"url": f"https://{'x' * 64}.example/hook"}),
            ann.get("/v1/edits/x", headers={"Origin": "http://["}),
            ann.post("/v1/images/edits", files={"image": ("c.png", png())}, data={"prompt": "snow", "n": "1" * 400}),
        ]

    assert [answer.status_code for answer in answers] == [400, 400, 403, 400]


def test_places_of_buckets_are_named_by_the_operator(open_door: OpenDoor, client: Client) -> None:
    with open_door(http_buckets=("pictures/shop",)).http() as http:
        taken = submit(http, image="s3://pictures/shop/cat.png", output="s3://pictures/shop/out.png")
        refused = [
            submit(http, image=uri)
            for uri in ("s3://pictures/cat.png", "s3://pictures/shop/../cat.png", "s3://pictures/shopping/cat.png")
        ]

    assert taken.status_code == 202
    assert client.get(taken.json()["id"]).job.image == ("s3://pictures/shop/cat.png",)
    assert [answer.status_code for answer in refused] == [400, 400, 400]
