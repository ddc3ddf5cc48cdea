"""What the API takes and says of experts that change their form."""

from collections.abc import Iterator

import httpx
import pytest
from api_fake_node import EXPERT, HTTP, FakeNode, Served, served

from meshnode.errors import NoAncestorHere, NoSuchPeerOrExpert, Refused
from protocol.errors import MalformedLineage
from protocol.identifiers import ExpertUid


@pytest.fixture
def api() -> Iterator[Served]:
    with served(FakeNode(migration_steps=[{"state": "waiting"}])) as running:
        yield running


def post(api: Served, path: str, **request: object) -> httpx.Response:
    return HTTP.post(f"{api.url}/api/v1/experts/{EXPERT}/{path}", headers=api.headers, **request)  # type: ignore[arg-type]


def get(api: Served, path: str) -> httpx.Response:
    return HTTP.get(f"{api.url}/api/v1/experts/{EXPERT}/{path}", headers=api.headers)


def test_a_migration_is_begun_and_looked_at(api: Served) -> None:
    api.node.migration_steps = [{"state": "waiting"}, {"state": "done"}]
    body = {"to": {"kind": "mlp", "settings": {"hidden": 16}}, "margin": 0.02, "steps": 10, "score": "magnitude"}
    ordered = post(api, "migrate", json=body)
    assert (ordered.status_code, ordered.json()["schema"]) == (202, "meshnode.expert-migration/1")
    assert ordered.json()["state"] == "waiting"
    ((uid, request),) = api.node.migrated
    assert (uid, request.to.kind, request.to.settings) == (EXPERT, "mlp", {"hidden": 16})
    assert (request.margin, request.steps, request.refit) == (0.02, 10, None)
    assert (request.config().score, request.config().beta) == ("magnitude", 1.0)
    looked = get(api, "migrate")
    assert (looked.status_code, looked.json()["state"]) == (200, "done")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"to": "mlp"},
        {"to": {"kind": "mlp"}, "stpes": 3},
        {"to": {"kind": "mlp", "settings": {"hidden": [1]}}},
        {"to": {"kind": "mlp", "settings": {str(number): number for number in range(17)}}},
        {"to": {"kind": "mlp"}, "steps": -1},
        {"to": {"kind": "mlp"}, "steps": 1_000_000},
        {"to": {"kind": "mlp"}, "margin": 1.5},
        {"to": {"kind": "mlp"}, "score": "luck"},
        {"to": {"kind": "mlp"}, "refit": "yes"},
    ],
)
def test_what_cannot_be_meant_is_refused_and_orders_nothing(api: Served, body: dict[str, object]) -> None:
    refused = post(api, "migrate", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "malformed_message")
    assert api.node.migrated == []


def test_a_body_longer_than_any_request_is_not_read(api: Served) -> None:
    assert post(api, "migrate", content=b"[" * 100_000).status_code == 413


def test_an_expert_is_rolled_back_and_its_line_told(api: Served) -> None:
    rolled = post(api, "rollback")
    assert (rolled.status_code, rolled.json()["schema"]) == (200, "meshnode.expert-rollback/1")
    assert api.node.rolled_back == [EXPERT]
    line = get(api, "lineage")
    assert (line.status_code, line.json()["schema"]) == (200, "meshnode.expert-lineage/1")


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (NoSuchPeerOrExpert("it"), 404),
        (NoAncestorHere(ExpertUid(EXPERT)), 409),
        (Refused("it is in training"), 409),
        (MalformedLineage("no"), 400),
    ],
)
def test_failures_have_their_status(api: Served, failure: Exception, status: int) -> None:
    api.node.failure = failure
    for response in (post(api, "migrate", json={"to": {"kind": "mlp"}}), post(api, "rollback"), get(api, "lineage")):
        assert response.status_code == status
        assert response.json()["error"]["code"] == failure.code
