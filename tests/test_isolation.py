"""Tests pass or fail for the code's sake, whoever's machine they run on."""

from __future__ import annotations

import os

import httpx2
import pytest

from tests.isolation import isolate_environment
from tests.requirements import require
from tests.waiting import eventually


@pytest.mark.parametrize("url", ["http://example.com/", "http://192.0.2.1/"])
def test_the_network_looks_unplugged(url: str) -> None:
    with pytest.raises(httpx2.ConnectError, match="tests use no network"):
        httpx2.get(url)


def test_the_person_s_accounts_and_settings_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "DG_BROKER_URL", "HF_TOKEN", "https_proxy"):
        monkeypatch.setenv(name, "the person's own")

    isolate_environment()

    assert "the person's own" not in os.environ.values()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_missing_part_skips_on_a_laptop_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        require(None, "run apt-get install it")

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"):
        require(None, "run apt-get install it")


def test_waiting_returns_the_first_true_answer_and_says_what_never_came() -> None:
    answers = iter([None, 0, "done"])

    assert eventually(lambda: next(answers)) == "done"
    with pytest.raises(AssertionError, match="the job ends"):
        eventually(lambda: False, 0.02, what="the job ends")
