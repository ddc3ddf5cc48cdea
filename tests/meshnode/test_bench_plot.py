"""The picture and the words of a run."""

import struct
from dataclasses import replace

import pytest

from meshnode.bench.load import Load
from meshnode.bench.plot import serve_png
from meshnode.bench.report import MeshSeen, Report, TrafficUsed
from meshnode.bench.runner import Asked, Request
from meshnode.bench.statistics import measure
from meshnode.bench.table import facts_of, latency_of, peers_of
from meshnode.errors import ExitCode

LOAD = Load(rate_per_s=20, duration_s=10, warm_up_s=2)
SEEN = MeshSeen(mesh_id="cd" * 32, name="digits", experts=3, replicas=5, peers=2)
TRAFFIC = TrafficUsed(sent={"inference": 1_234_567, "control": 433}, received={"inference": 89_000})


def requests_to(*names: str, latency_s: float = 0.004) -> list[Request]:
    """Twenty a second; one in a hundred failed, one not sent, one answered in part."""
    requests = []
    for number in range(240):
        request = Request(due_s=number / 20)
        if number % 100 != 60:
            request.sent_s = request.due_s + 0.0005
            request.ended_s = request.due_s + latency_s * (1 + number % 7)
            request.error = "busy" if number % 100 == 70 else None
            request.is_partial = number % 100 == 80
        if request.latency_ms is not None:
            name = names[number % len(names)]
            request.calls = (Asked("e", f"Qm-{number % len(names)}", name, 1, 3.0, answered=number % 50 != 49),)
        requests.append(request)
    return requests


def report_of(requests: list[Request], load: Load = LOAD, *, is_interrupted: bool = False) -> Report:
    return Report(
        mesh=SEEN,
        load=load,
        images="359 from somewhere",
        measured=measure(requests, load, ended_s=12),
        traffic=TRAFFIC,
        is_interrupted=is_interrupted,
    )


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_the_picture_is_a_png_that_equal_runs_make_alike_and_others_do_not() -> None:
    requests = requests_to("ada", "ben")
    png = serve_png(report_of(requests), requests)
    width, height = png_size(png)
    assert 1000 < width < 2000
    assert 600 < height < 1200
    assert serve_png(report_of(requests), requests) == png
    slower = requests_to("ada", "ben", latency_s=0.005)
    assert serve_png(report_of(slower), slower) != png


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [Request(due_s=1.0, sent_s=1.0, ended_s=1.1)],
        [Request(due_s=3.0)],
        [Request(due_s=3.0, sent_s=3.0)],
        [Request(due_s=3.0, sent_s=3.0, ended_s=3.2, error="no_route")],
        [Request(due_s=3.0, sent_s=3.0, ended_s=3.2)],
    ],
    ids=["nothing", "warm-up only", "not sent", "cut off", "failed", "one answer"],
)
def test_a_run_with_hardly_anything_in_it_can_be_drawn_and_told(requests: list[Request]) -> None:
    report = report_of(requests, is_interrupted=True)
    assert png_size(serve_png(report, requests))[0] > 1000
    document = report.to_dict()
    assert facts_of(document)
    assert latency_of(document).rows[0][1] == sum(
        request.latency_ms is not None and request.due_s >= 2 for request in requests
    )
    assert peers_of(document).rows == []


def test_names_that_peers_chose_are_drawn_as_they_are() -> None:
    requests = requests_to("$x", "$\\frac{", "\x1b]0;evil\x07", "ü" * 64, *(f"peer {number}" for number in range(20)))
    assert png_size(serve_png(report_of(requests), requests))[0] < 2000
    # A long one is cut, for the bars would have no room left beside it.
    long, cut = requests_to("ü" * 64), requests_to(f"{'ü' * 17}…")
    assert serve_png(report_of(long), long) == serve_png(report_of(cut), cut)


def test_a_closed_loop_is_drawn_and_told_without_an_offered_rate() -> None:
    closed = replace(LOAD, rate_per_s=None, concurrency=4)
    requests = requests_to("ada")
    report = report_of(requests, closed)
    assert serve_png(report, requests) != serve_png(report_of(requests), requests)
    document = report.to_dict()
    assert (document["load"]["loop"], document["offered_per_s"], document["late_ms"]) == ("closed", None, None)
    told = dict(facts_of(document))
    assert told["load"] == "closed loop of 4 workers for 10 s, batch 1"
    assert "offered" not in told["rate"]
    assert "4 at a time" in latency_of(document).heading


def test_the_words_are_those_of_the_document() -> None:
    document = report_of(requests_to("ada", "ben")).to_dict()
    told = dict(facts_of(document))
    assert told["mesh"] == "digits cdcdcdcdcdcd: experts 3, replicas 5, peers 2"
    assert told["load"] == "open loop at 20/s for 10 s, batch 1, at most 256 outstanding"
    assert told["images"] == "359 from somewhere"
    assert told["warm-up"] == "2 s, 40 requests, not counted below"
    # Of 200: numbers 60 and 160 not sent, 70 and 170 failed, 80 and 180 in part.
    assert told["requests"] == "200: 196 answered (98%), 2 of them in part, 2 failed, 2 not sent"
    assert told["failures"] == "2 busy"
    assert told["rate"] == "20.0/s offered, 19.6/s answered, 19.6 rows/s"
    assert told["traffic"] == "1,235 kB sent, 89 kB received"
    heading, columns, (to_the_answer, asking, until_sent) = latency_of(document)
    assert heading == "ms from when a request was due, batch 1, 20.0/s offered:"
    assert tuple(columns) == ("", "N", "P50", "P90", "P99", "P99.9", "MAX")
    assert tuple(to_the_answer[1:]) == (196, "16.0", "28.0", "28.0", "28.0", "28.0")
    assert tuple(asking[1:3]) == (196, "3.0")
    assert tuple(until_sent[1:3]) == (198, "0.5")
    assert [tuple(row) for row in peers_of(document).rows] == [
        ("ada", 96, "50.0%", 96, 0, "3.0"),
        ("ben", 96, "50.0%", 100, 4, "3.0"),
    ]


def test_what_is_not_all_does_not_read_as_all() -> None:
    document = report_of(requests_to("ada")).to_dict()
    document["answered_ratio"] = 0.99999
    assert "(99.99%)" in dict(facts_of(document))["requests"]
    document["answered_ratio"] = 1.0
    assert "(100%)" in dict(facts_of(document))["requests"]


@pytest.mark.parametrize(
    ("errors", "is_interrupted", "code"),
    [
        ([None, "no_route", "no_route"], False, ExitCode.OK),
        (["no_route", "no_route", "busy"], False, ExitCode.NO_SUCH_PEER_OR_EXPERT),
        (["rows_unanswered"], False, ExitCode.TIMEOUT),
        (["timeout"], False, ExitCode.TIMEOUT),
        (["busy"], True, ExitCode.INTERRUPTED),
        ([], False, ExitCode.OK),
    ],
)
def test_a_mesh_that_answers_nothing_ends_the_command_as_its_commonest_failure(
    errors: list[str | None], is_interrupted: bool, code: ExitCode
) -> None:
    requests = [Request(due_s=3.0, sent_s=3.0, ended_s=3.1, error=error) for error in errors]
    assert report_of(requests, is_interrupted=is_interrupted).exit_code is code
