"""The OpenAPI document is one, and says what the routes say."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from openapi_spec_validator import OpenAPIV31SpecValidator

from producer.http.faults import FaultBody
from producer.http.openapi import document
from tests.producer.http.conftest import RunningDoor

PAGE = (Path(__file__).parent.parent.parent.parent / "docs" / "http.md").read_text()


def test_the_document_is_valid(http: httpx2.Client) -> None:
    served = http.get("/openapi.json").json()

    assert served == document()
    assert list(OpenAPIV31SpecValidator(served).iter_errors()) == []


def test_it_has_every_route_and_no_other(door: RunningDoor) -> None:
    documented = {(path, method.upper()) for path, item in document()["paths"].items() for method in item}
    routes = {(route.path, method) for route in door.app.routes for method in route.methods - {"HEAD"}}

    assert documented == {(path, method) for path, method in routes if path.startswith("/v1/")}


def test_every_fault_has_the_same_form() -> None:
    for item in document()["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]["$ref"]
                    assert schema.endswith(FaultBody.__name__)


def test_the_page_of_the_documentation_lists_the_same_routes() -> None:
    rows = re.findall(r"^\| `(GET|POST|DELETE) (/v1/[^`?]*)", PAGE, re.MULTILINE)

    documented = {(path, method.upper()) for path, item in document()["paths"].items() for method in item}
    assert {(path, method) for method, path in rows} == documented
