"""The picture of who works for which class."""

import struct

import pytest
import torch
from cli_process import python

from experts.errors import ShapeMismatch
from experts.evaluation.specialization_plot import specialization_png
from experts.router.gating import Gates
from experts.router.specialization import Specialization, measure_specialization, merge_specializations


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def large(num_classes: int, num_experts: int) -> Specialization:
    mass = torch.rand(num_classes, num_experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    return Specialization(
        classes=tuple(f"class {c:03}" for c in range(num_classes)),
        uids=tuple(f"{e:064x}" for e in range(num_experts)),
        mass_CE=mass,
        num_samples_C=mass.sum(dim=1).ceil().long(),
    )


def of_split(expert_of: list[int]) -> Specialization:
    """One sample a class, each sent to one of three experts."""
    gates = torch.eye(3, dtype=torch.float64)[expert_of]
    return measure_specialization(Gates(("p", "q", "r"), gates), [str(label) for label in range(len(expert_of))])


@pytest.mark.parametrize("measured", [large(10, 20), of_split([0])])
def test_the_picture_is_a_png_that_equal_measures_make_alike(measured: Specialization) -> None:
    png = specialization_png(measured)
    width, height = png_size(png)
    assert 400 < width < 2400 > height > 300
    assert specialization_png(merge_specializations([measured])) == png
    assert b"Software" not in png


def test_the_picture_grows_no_further_than_a_screen_can_show() -> None:
    width, height = png_size(specialization_png(large(200, 1)))
    assert width < 2500
    assert height < 600


def test_the_picture_shows_what_was_measured() -> None:
    assert specialization_png(of_split([0, 0, 1])) != specialization_png(of_split([0, 1, 1]))


def test_without_mass_the_picture_still_says_so() -> None:
    idle = measure_specialization(Gates(("p", "q"), torch.zeros(2, 2)), ["a", "b"], "abc")
    assert png_size(specialization_png(idle))[0] > 400
    with pytest.raises(ShapeMismatch):
        specialization_png(merge_specializations([]))


def test_names_are_drawn_as_they_are_and_not_as_formulas() -> None:
    gates = Gates(("$\\frac{$",), torch.ones(2, 1))
    assert png_size(specialization_png(measure_specialization(gates, ["$x^$", "cat"])))[0] > 400


def test_matplotlib_is_loaded_by_those_who_draw_only() -> None:
    program = "import sys, experts.evaluation.specialization_plot; assert 'matplotlib' not in sys.modules"
    ended = python(program)
    assert ended.code == 0, ended.err
