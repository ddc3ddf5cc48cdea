"""Where networks can be cut, found by running them, and their heads up to a cut."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from experts.errors import MalformedTeacher, UnknownCut
from experts.networks.cuts import CutPoint, find_cuts
from experts.networks.head import Head, cut_name, split_cut

FIRST = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SECOND = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)


class Net(nn.Module):
    """Layers by name, and a forward that a test gives; weights are seeded."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int = 3, outputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def cuts_of(net: nn.Module) -> dict[str, CutPoint]:
    return {point.cut: point for point in find_cuts(net, FIRST, SECOND)}


def valid_cuts(net: nn.Module) -> set[str]:
    return {name for name, point in cuts_of(net).items() if point.valid}


def test_cuts_come_in_order_of_execution_and_not_of_definition() -> None:
    net = Net(lambda net, x: net.end(net.a(net.b(x))), a=conv(), b=nn.Conv2d(3, 3, 1), end=classifier())
    assert list(cuts_of(net)) == ["b", "a", "end.0", "end.1", "end"]
    assert valid_cuts(net) == set(cuts_of(net))


def test_shapes_parameters_and_flops_are_those_up_to_the_cut() -> None:
    net = Net(lambda net, x: net.end(net.a(net.b(x))), a=conv(), b=nn.Conv2d(3, 3, 1), end=classifier())
    points = cuts_of(net)
    assert [point.output_shape for point in points.values()] == [(3, 8, 8), (3, 8, 8), (3, 1, 1), (3,), (4,)]
    b, a, linear = 3 * 3 + 3, 3 * 3 * 9 + 3, 3 * 4 + 4
    assert [point.num_parameters for point in points.values()] == [b, b + a, b + a, b + a, b + a + linear]
    b_flops, a_flops = 2 * 64 * 9, 2 * 64 * 81
    wanted = [b_flops, *[b_flops + a_flops] * 3, b_flops + a_flops + 2 * 12]
    assert [point.flops for point in points.values()] == wanted
    assert points["b"].state == {"b.weight", "b.bias"}


def skip(net: Any, x: Tensor) -> Tensor:
    start = net.a(x)
    return net.end(net.c(net.b(start) + start))


def test_a_cut_that_a_skip_connection_crosses_is_not_valid() -> None:
    net = Net(skip, a=conv(), b=nn.Sequential(conv(), nn.ReLU()), c=nn.ReLU(), end=classifier())
    points = cuts_of(net)
    assert not points["b.0"].valid
    assert not points["b"].valid
    assert points["a"].valid
    assert points["c"].valid


def test_a_skip_connection_counts_even_where_it_happens_to_carry_nothing() -> None:
    """Behind a ReLU that is off for both images no number tells of it."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.end(net.a(x) + torch.relu(x - 100))

    net = Net(forward, a=conv(), end=classifier())
    assert torch.equal(net(FIRST), net.end(net.a(FIRST)))
    assert not cuts_of(net)["a"].valid


@pytest.mark.parametrize(
    "hidden",
    [
        lambda x: x.detach(),
        lambda x: x.argmax(dim=3, keepdim=True).float(),
        lambda x: x.flatten()[0].item(),
        lambda x: 5.0 if x[..., 0].mean().item() > 0.2 else 0.0,
    ],
    ids=["detached", "positions", "a Python number", "a decision"],
)
def test_what_leaves_no_trace_in_the_graph_is_found_by_replaying(hidden: Any) -> None:
    net = Net(lambda net, x: net.end(net.a(x) + hidden(x)), a=conv(), end=classifier())
    points = cuts_of(net)
    assert not points["a"].valid
    assert points["end"].valid


def test_concatenated_branches_are_valid_together_only() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.end(net.join(torch.cat([net.a(x), net.b(x)], dim=1)))

    net = Net(forward, a=conv(), b=conv(), join=nn.Conv2d(6, 3, 1), end=classifier())
    assert {"a", "b"}.isdisjoint(valid_cuts(net))
    assert {"join", "end"} <= valid_cuts(net)


def test_one_of_several_results_of_an_operation_does_not_stand_for_all() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.rest = x.chunk(2, dim=1)
            return self.rest[0]

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.end(net.part(net.a(x)) + net.part.rest[1])

    net = Net(forward, a=conv(3, 6), part=Half(), end=classifier())
    points = cuts_of(net)
    assert points["a"].valid
    assert not points["part"].valid


def test_a_module_called_twice_has_two_cuts() -> None:
    net = Net(
        lambda net, x: net.end(net.act(net.b(net.act(net.a(x))))), a=conv(), b=conv(), act=nn.ReLU(), end=classifier()
    )
    points = cuts_of(net)
    assert list(points)[:4] == ["a", "act", "b", "act#2"]
    assert points["act"].num_parameters < points["act#2"].num_parameters
    for cut in ("act", "act#2"):
        expected = torch.relu(net.a(FIRST)) if cut == "act" else torch.relu(net.b(torch.relu(net.a(FIRST))))
        assert torch.equal(Head(net, cut)(FIRST), expected)


def test_work_in_place_changes_neither_validity_nor_the_head() -> None:
    inplace = Net(lambda net, x: net.end(net.act(net.a(x))), a=conv(), act=nn.ReLU(inplace=True), end=classifier())
    assert valid_cuts(inplace) == set(cuts_of(inplace)) >= {"a", "act"}
    assert float(Head(inplace, "a")(FIRST).min()) < 0
    on_the_image = Net(lambda net, x: net.end(net.a(x.sub_(0.5))), a=conv(), end=classifier())
    before = FIRST.clone()
    assert "a" in valid_cuts(on_the_image)
    assert torch.equal(before, FIRST)


def test_an_output_passed_on_has_the_outermost_name_and_dropout_none_of_its_own() -> None:
    net = Net(
        lambda net, x: net.end(net.drop(net.block(x))),
        block=nn.Sequential(nn.Sequential(conv())),
        drop=nn.Dropout(),
        end=classifier(),
    )
    assert list(cuts_of(net)) == ["block", "end.0", "end.1", "end"]


def test_parameters_used_without_calling_their_module_count_and_unused_ones_do_not() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.end(net.a(nn.functional.conv2d(x, net.b.weight)))

    net = Net(forward, a=conv(), b=nn.Conv2d(3, 3, 1), c=conv(), end=classifier())
    assert cuts_of(net)["a"].state == {"b.weight", "a.weight", "a.bias"}


def test_tied_parameters_count_once_and_buffers_are_kept() -> None:
    first, second = conv(), conv()
    second.weight = first.weight
    net = Net(
        lambda net, x: net.end(net.norm(net.b(net.a(x)))), a=first, b=second, norm=nn.BatchNorm2d(3), end=classifier()
    )
    point = cuts_of(net)["norm"]
    assert point.num_parameters == 81 + 3 + 3 + 6
    assert {"a.weight", "b.weight", "norm.running_mean", "norm.running_var"} <= point.state
    assert "norm.num_batches_tracked" not in point.state


def test_what_does_not_depend_on_the_image_is_no_cut() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.end(net.a(x)) + net.constant(torch.ones(1, 4))

    net = Net(forward, a=conv(), constant=nn.Linear(4, 4), end=classifier())
    assert "constant" not in cuts_of(net)


@pytest.mark.parametrize("answer", [lambda net, x: {"logits": net.a(x)}, lambda net, _x: net.a(torch.ones(1, 3, 8, 8))])
def test_a_network_without_an_answer_to_the_image_is_refused(answer: Any) -> None:
    with pytest.raises(MalformedTeacher):
        find_cuts(Net(answer, a=conv()), FIRST, SECOND)


def test_the_network_is_left_as_it_was() -> None:
    net = Net(skip, a=conv(), b=nn.Sequential(conv(), nn.ReLU()), c=nn.ReLU(), end=classifier())
    before = net(FIRST)
    find_cuts(net, FIRST, SECOND)
    assert torch.equal(net(FIRST), before)
    assert all(not module._forward_hooks for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


@settings(deadline=None, max_examples=40)  # a shared machine is slow at times
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=6))
def test_validity_is_whether_without_the_tensor_nothing_gets_through(wiring: list[list[int]]) -> None:
    """Random graphs: layer i reads the sum of some earlier tensors (0 is the image); checked by searching."""
    reads = [sorted({source % (i + 1) for source in sources}) for i, sources in enumerate(wiring)]

    def forward(net: Any, x: Tensor) -> Tensor:
        values = [x]
        for i, sources in enumerate(reads):
            values.append(getattr(net, f"n{i + 1}")(sum(values[source] for source in sources)))
        return net.end(values[-1])

    net = Net(forward, **{f"n{i + 1}": nn.Conv2d(3, 3, 1) for i in range(len(reads))}, end=classifier())
    last = len(reads)

    def reaches(vertex: int, without: int) -> bool:
        return vertex != without and (vertex == 0 or any(reaches(source, without) for source in reads[vertex - 1]))

    points = cuts_of(net)
    for vertex in range(1, last + 1):
        # One that the answer does not depend on is no cut at all, or not a valid one.
        assert points[f"n{vertex}"].valid == (not reaches(last, vertex)), (reads, vertex)


@pytest.mark.parametrize("cut", ["", "a#0", "a#", "a#2#3", "b", "a.b", "a#3"])
def test_a_cut_that_there_is_not_is_refused_by_name(cut: str) -> None:
    net = Net(lambda net, x: net.a(net.a(x)), a=conv())
    with pytest.raises(UnknownCut) as caught:
        Head(net, cut)(FIRST)
    assert caught.value.cut == cut


def test_an_output_of_several_tensors_is_no_place_to_stop() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    net = Net(lambda net, x: net.end(net.two(x)[0]), two=Two(), end=classifier())
    with pytest.raises(UnknownCut):
        Head(net, "two")(FIRST)


@given(st.text(st.characters(codec="ascii", exclude_characters="#"), min_size=1), st.integers(1, 999))
def test_a_cut_s_name_says_module_and_call(path: str, call: int) -> None:
    assert split_cut(cut_name(path, call)) == (path, call)


def test_a_head_stops_there_and_gradients_reach_the_network_it_shares() -> None:
    reached: list[str] = []

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        reached.append("after a")
        return net.end(y)

    net = Net(forward, a=conv(), end=classifier()).requires_grad_()
    Head(net, "a")(FIRST).sum().backward()
    assert reached == []
    assert net.a.weight.grad is not None
    assert net.end[2].weight.grad is None
    assert not net.a._forward_hooks
