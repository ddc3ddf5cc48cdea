"""The demo's table."""

from rich.console import Console
from rich.table import Table

from meshnode.demo.result import DemoResult

__all__ = ["print_table"]


def print_table(result: DemoResult) -> None:
    """Print what was measured to stdout."""
    table = Table(title=f"{result.dataset}: {len(result.tasks)} tasks of two classes", title_justify="left")
    table.add_column("method")
    for heading in ("accuracy %", "forgetting", "moved", "query p50"):
        table.add_column(heading, justify="right")
    for method in result.methods:
        table.add_row(
            method.name,
            f"{100 * method.accuracy:.1f}",
            f"{100 * method.matrix.forgetting():.1f}" if method.matrix else "-",
            _bytes(method.moved_bytes),
            f"{method.query_p50_ms:.1f} ms" if method.query_p50_ms is not None else "-",
        )
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(
        "accuracy: class-incremental, over the test images of all classes after the last task. forgetting: points lost "
        "from the best ever on the earlier tasks. moved: bytes the nodes sent (for the router: statistics and trunk), "
        "or training images brought to one machine. p50: one image, from pixels to class, over the network."
    )
    accident = result.accident
    console.print(
        f"{accident.node} was killed: {accident.answered} of {accident.asked} queries answered, "
        f"{accident.failed_over} by another replica; it was back with its state after {accident.away_s:.1f} s. "
        f"The whole demo took {result.seconds:.0f} s."
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
