"""``meshnode bench``: the mesh under a load."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session
from meshnode.errors import ResourceAbsent
from meshnode.settings.units import parse_duration_s

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["bench"]

LONGEST_S = 3600.0

bench = typer.Typer(help="The mesh under a load.")


@bench.callback()
def _group() -> None:
    """The mesh under a load."""


@bench.command("serve")
def serve(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    *,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="A peer's multiaddress; those of this home's daemon if none is given."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=10_000,
            metavar="N",
            help="Requests a second, due at random moments (a Poisson process); 50 if neither this nor --concurrency "
            "is given.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            metavar="N",
            help="With a rate: most requests outstanding (256 if not given); what is due beyond is counted as not "
            "sent. Without one: so many workers, each of which asks again as soon as it is answered.",
        ),
    ] = None,
    duration: Annotated[str, typer.Option(metavar="SPAN", help="How long is measured: 10s, 5m, 1h at most.")] = "10s",
    warm_up: Annotated[
        str, typer.Option(metavar="SPAN", help="What is due before, is sent and not counted; 0s for none.")
    ] = "2s",
    batch: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Images a request.")] = 1,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE|-",
            help="Images to ask about, in the forms that `infer` takes; the test part of scikit-learn's digits if not "
            "given. Images decide which experts are asked: give such as the mesh was made for.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Experts asked per image; the mesh's own setting if not given."),
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="SPAN", help="Longest wait for an answer.")] = "5s",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the arrivals and of the images' order.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where serve.json and serve.png go.")
    ] = Path("bench-out"),
) -> None:
    """Ask the mesh at a chosen rate, and say how it answered.

    A client that is no node joins and asks, so every answer crosses the network. Requests go out when they are due,
    whether or not earlier ones were answered, and latency counts from when a request was due: a mesh that stalls
    cannot hide it. Ctrl+C ends early, with the results so far.
    """
    session = Session.of(context)
    spans_s = {
        "duration_s": _span_s("--duration", duration, least_s=0.1),
        "warm_up_s": _span_s("--warm-up", warm_up, least_s=0.0),
        "timeout_s": _span_s("--timeout", timeout, least_s=0.01),
    }
    addresses = join or session.client().get("id")["addresses"]
    if not addresses:
        raise ResourceAbsent("the daemon is reached at no address", hint="Give that of a peer with --join.")

    # Torch and matplotlib are for this command only.
    from experts.errors import MalformedDataset  # noqa: PLC0415
    from meshnode.bench import Load, bench_serve  # noqa: PLC0415
    from meshnode.bench.load import DEFAULT_OUTSTANDING, DEFAULT_RATE_PER_S  # noqa: PLC0415

    is_closed = rate is None and concurrency is not None
    load = Load(
        rate_per_s=None if is_closed else rate or DEFAULT_RATE_PER_S,
        concurrency=concurrency or DEFAULT_OUTSTANDING,
        batch=batch,
        top_k=top_k,
        seed=seed,
        **spans_s,
    )
    try:
        report = bench_serve(addresses, load, _images(source), out=out, is_quiet=session.output.verbosity < 0)
    except MalformedDataset as exc:
        raise typer.BadParameter(str(exc), param_hint="--input") from exc
    document = report.to_dict()
    session.output.result(document, _shown(document))
    if report.is_interrupted:
        session.output.note("Interrupted: these are the results so far.")
    session.output.note(f"picture: {out / 'serve.png'}   figures: {out / 'serve.json'}")
    raise typer.Exit(report.exit_code)


def _span_s(option: str, text: str, *, least_s: float) -> float:
    try:
        span_s = parse_duration_s(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from exc
    if not least_s <= span_s <= LONGEST_S:
        raise typer.BadParameter(f"{text} is not within {least_s:g} s to {LONGEST_S:g} s", param_hint=option)
    return span_s


def _images(source: str | None) -> "tuple[NDArray[np.uint8], str]":
    """What to ask about, and what that is in words."""
    if source is None:
        from meshnode.bench.images import digits_test_images  # noqa: PLC0415  # with scikit-learn

        images, words = digits_test_images(), "the test part of scikit-learn's digits"
    else:
        from meshnode.cli.pictures import read_images  # noqa: PLC0415  # with numpy and Pillow

        images, words = read_images(source), "stdin" if source == "-" else source
    return images, f"{len(images)} from {words}"


def _shown(document: Mapping[str, Any]) -> RenderableType:
    from meshnode.bench.table import facts_of, latency_of, peers_of  # noqa: PLC0415  # its package loads torch

    parts: list[RenderableType] = [facts(facts_of(document))]
    for table in (latency_of(document), peers_of(document)):
        parts += [Text(), Text(table.heading), listing(table.columns, table.rows)]
    return Group(*parts)
