"""What the API says: one document a call, the node's failures as statuses, and nothing of its bugs."""

import io
import math
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from api_fake_node import EXPERT, HTTP, PEER_ID, FakeNode, Served, served

from meshnode.errors import ExpertFileRefused, NodeError, NoSuchPeerOrExpert, Refused, ResourceAbsent, Timeout
from protocol.errors import (
    Busy,
    CallTimeout,
    Draining,
    MalformedTensor,
    MeshMismatch,
    ModuleMeshError,
    NoRoute,
    NotReady,
    PeerUnreachable,
    RowsUnanswered,
    UnknownExpert,
)
from protocol.identifiers import ExpertUid, PeerId


@pytest.fixture
def api() -> Iterator[Served]:
    with served(FakeNode()) as running:
        yield running


def _get(api: Served, path: str) -> httpx.Response:
    return HTTP.get(f"{api.url}/api/v1/{path}", headers=api.headers)


def _post(api: Served, path: str, **request: object) -> httpx.Response:
    return HTTP.post(f"{api.url}/api/v1/{path}", headers=api.headers, **request)  # type: ignore[arg-type]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _post_npy(api: Served, body: bytes, query: str = "") -> httpx.Response:
    headers = {**api.headers, "content-type": "application/x-npy"}
    return HTTP.post(f"{api.url}/api/v1/infer{query}", content=body, headers=headers)


@pytest.mark.parametrize("name", ["status", "id", "peers", "experts", "averaging", "train", "config"])
def test_every_document_names_its_schema(api: Served, name: str) -> None:
    response = _get(api, name)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["schema"] == f"meshnode.{name}/1"


def test_metrics_are_text_for_who_has_the_key(api: Served) -> None:
    response = HTTP.get(f"{api.url}/metrics", headers=api.headers)
    assert (response.status_code, response.content) == (200, b"modulemesh_peers 2.0\n")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert HTTP.get(f"{api.url}/metrics").status_code == 401


def test_documents_carry_what_the_node_says(api: Served) -> None:
    assert _get(api, "status").json()["bootstrap"][0]["error"] == "connection refused"
    assert _get(api, "id").json()["peer_id"] == PEER_ID
    assert [peer["self"] for peer in _get(api, "peers").json()["peers"]] == [True, False]


def test_experts_are_the_meshs_unless_the_local_ones_are_asked_for(api: Served) -> None:
    assert len(_get(api, "experts").json()["experts"]) == 2
    assert len(_get(api, "experts?scope=mesh").json()["experts"]) == 2
    local = _get(api, "experts?scope=local").json()
    assert (local["scope"], [expert["uid"] for expert in local["experts"]]) == ("local", [EXPERT])
    refused = _get(api, "experts?scope=galaxy")
    assert refused.status_code == 400
    assert "scope" in refused.json()["error"]["message"]


def test_a_diverged_loss_does_not_take_the_status_down(api: Served) -> None:
    api.node.last_loss = math.nan
    response = _get(api, "status")
    assert response.status_code == 200
    assert response.json()["training"]["loss"] is None


def test_readiness_is_a_status_code_for_probes(api: Served) -> None:
    assert HTTP.get(f"{api.url}/readyz").status_code == 200
    api.node.is_ready = False
    assert HTTP.get(f"{api.url}/readyz").status_code == 503
    assert HTTP.get(f"{api.url}/healthz").json()["ok"] is True


def test_shutdown_is_accepted_and_passed_on_once(api: Served) -> None:
    response = _post(api, "shutdown")
    assert (response.status_code, response.json()["draining"]) == (202, True)
    assert api.node.shutdowns == 1


def test_training_can_be_asked_for_at_once(api: Served) -> None:
    response = _post(api, "train/now")
    assert (response.status_code, response.json()) == (
        202,
        {"schema": "meshnode.train-now/1", "queued": True},
    )


def test_a_replica_is_ordered_and_looked_after(api: Served) -> None:
    api.node.pull_steps = [{"state": "waiting"}, {"state": "hosted"}]
    ordered = _post(api, f"experts/{EXPERT}/pull?peer={PEER_ID}")
    assert (ordered.status_code, ordered.json()["schema"]) == (202, "meshnode.expert-pull/1")
    assert ordered.json()["state"] == "waiting"
    assert api.node.pulled == [(EXPERT, PEER_ID)]
    looked = _get(api, f"experts/{EXPERT}/pull")
    assert (looked.status_code, looked.json()["state"]) == (200, "hosted")


def test_an_expert_leaves_as_a_file_and_comes_as_one(api: Served) -> None:
    api.node.files[EXPERT] = b"weights"
    left = _get(api, f"experts/{EXPERT}/file")
    assert (left.status_code, left.content) == (200, b"weights")
    assert left.headers["content-type"] == "application/octet-stream"
    for query, replace in (("", False), ("?replace=true", True)):
        came = _post(api, f"experts/import{query}", content=b"weights")
        assert (came.status_code, came.json()["schema"]) == (200, "meshnode.expert-import/1")
        assert api.node.imported[-1] == (b"weights", replace)
    assert _post(api, "experts/import?replace=perhaps", content=b"weights").status_code == 400


def test_both_forms_of_images_reach_the_node_alike(api: Served) -> None:
    grey_BHW = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    colour_BHWC = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    for images in (grey_BHW, colour_BHWC):
        asked = {"images": images.tolist(), "top_k": 2, "task": "task-1", "timeout_s": 1.5}
        from_json = _post(api, "infer", json=asked)
        from_npy = _post_npy(api, _npy(images), "?top_k=2&task=task-1&timeout_s=1.5")
        assert from_json.status_code == from_npy.status_code == 200
        assert from_json.json() == from_npy.json()
        assert from_json.json()["schema"] == "meshnode.infer/1"
        for seen, *options in api.node.asked:
            np.testing.assert_array_equal(seen, images)
            assert (str(seen.dtype), options) == ("uint8", [2, "task-1", 1.5])
        api.node.asked.clear()


def test_options_left_out_stay_the_nodes_own(api: Served) -> None:
    _post(api, "infer", json={"images": [[[1]]]})
    _post_npy(api, _npy(np.zeros((1, 2, 2), np.uint8)))
    assert [asked[1:] for asked in api.node.asked] == [(None, None, None), (None, None, None)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"images": []}',
        b'{"images": [[]]}',
        b'{"images": [[1, 2]]}',
        b'{"images": [[[1, 2], [3]]]}',
        b'{"images": [[[1, [2]]]]}',
        b'{"images": [[[256]]]}',
        b'{"images": [[[-1]]]}',
        b'{"images": [[[0.5]]]}',
        b'{"images": [[[true]]]}',
        b'{"images": [[["1"]]]}',
        b'{"images": [[[[[1]]]]]}',
        b'{"images": [[[1]]], "top_k": 0}',
        b'{"images": [[[1]]], "timeout_s": 0}',
        b'{"images": [[[1]]], "timeout_s": 1e999}',
        b'{"images": [[[1]]], "topk": 1}',
        b'{"images": "\xff"}',
    ],
)
def test_malformed_json_is_refused_and_never_asked_of_the_node(api: Served, body: bytes) -> None:
    headers = {**api.headers, "content-type": "application/json"}
    response = HTTP.post(f"{api.url}/api/v1/infer", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] in ("malformed_message", "malformed_tensor")
    assert api.node.asked == []


def test_options_out_of_range_are_refused_by_name(api: Served) -> None:
    body = _npy(np.zeros((1, 2, 2), np.uint8))
    for query, name in (
        ("?top_k=0", "top_k"),
        ("?timeout_s=-1", "timeout_s"),
        ("?timeout_s=nan", "timeout_s"),
    ):
        response = _post_npy(api, body, query)
        assert response.status_code == 400
        assert name in response.json()["error"]["message"]
    assert api.node.asked == []


def test_other_media_types_are_refused(api: Served) -> None:
    form = _post(api, "infer", data={"images": "1"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert _post(api, "infer").status_code == 415


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("infer", "application/json"),
        ("infer", "application/x-npy"),
        ("experts/import", "application/octet-stream"),
    ],
)
def test_a_body_over_the_limit_is_refused_before_all_of_it_is_read(api: Served, path: str, media_type: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200 * 1024 * 1024:
            sent += 1024 * 1024
            yield b" " * (1024 * 1024)

    headers = {**api.headers, "content-type": media_type}
    try:
        response = HTTP.post(f"{api.url}/api/v1/{path}", content=endless(), headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "frame_too_large"
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server hung up on a sender that did not stop, which is the point
    assert sent < 100 * 1024 * 1024


FAILURES: list[tuple[ModuleMeshError | NodeError, int]] = [
    (MalformedTensor("images", "wrong channels"), 400),
    (NoRoute(classes=("bag",)), 404),
    (UnknownExpert(ExpertUid(EXPERT)), 404),
    (NoSuchPeerOrExpert("owl"), 404),
    (MeshMismatch(None, None), 409),
    (Refused("training is off"), 409),
    (ExpertFileRefused("of another mesh"), 400),
    (ResourceAbsent("no GPU"), 500),
    (PeerUnreachable(PeerId(PEER_ID)), 502),
    (RowsUnanswered((0,), (ExpertUid(EXPERT),)), 502),
    (Busy(1.2), 503),
    (NotReady("no trunk yet"), 503),
    (Draining(), 503),
    (CallTimeout(PeerId(PEER_ID), "forward", 5.0), 504),
    (Timeout("the answer", 5.0), 504),
]


@pytest.mark.parametrize(("failure", "status"), FAILURES, ids=lambda value: getattr(value, "code", value))
def test_named_failures_keep_their_code_message_and_hint(
    api: Served, failure: ModuleMeshError | NodeError, status: int
) -> None:
    api.node.failure = failure
    response = _post(api, "infer", json={"images": [[[1]]]})
    assert response.status_code == status
    told = {"code": str(failure.code), "message": failure.message, "hint": failure.hint}
    assert response.json() == {"error": told}
    assert response.headers.get("retry-after") == ("2" if isinstance(failure, Busy) else None)


def test_a_bug_is_answered_without_its_details_and_the_next_call_works(api: Served) -> None:
    api.node.failure = ZeroDivisionError("secret detail")
    response = _get(api, "status")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in response.text
    api.node.failure = None
    assert _get(api, "status").status_code == 200


def test_unknown_routes_and_verbs_are_json_errors(api: Served) -> None:
    missing = _get(api, "nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong_verb = _get(api, "shutdown")
    assert (wrong_verb.status_code, wrong_verb.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong_verb.headers["allow"] == "POST"
    assert api.node.shutdowns == 0


def test_no_page_that_loads_scripts_from_elsewhere_is_served(api: Served) -> None:
    for path in ("/docs", "/redoc"):
        assert HTTP.get(api.url + path, headers=api.headers).status_code == 404
    assert "/api/v1/infer" in _get(api, "openapi.json").json()["paths"]
