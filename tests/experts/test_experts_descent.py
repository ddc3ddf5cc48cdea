"""Descent: steps that follow the optimizer's equation, and runs that are saved and continued to the bit."""

from itertools import islice

import equations
import pytest
import torch
from torch import Tensor, nn

from experts.descent import DescentRun
from experts.errors import CorruptState, TrainingDiverged
from experts.optimizers import Adam, Sgd


class Towards(DescentRun):
    """Descends |theta - target|^2 for targets it draws, and remembers them."""

    def __init__(
        self,
        optimizer: type[Adam] | type[Sgd] = Adam,
        *,
        seed: int = 0,
        lr: float = 0.1,
        steps: int = 20,
        size: int = 3,
    ) -> None:
        self.net = nn.Linear(size, 1, bias=False)
        with torch.no_grad():
            self.net.weight.zero_()
        self.lr = lr
        self.targets: list[float] = []
        ours = optimizer(dict(self.net.named_parameters()))
        super().__init__(self.net, ours, torch.Generator().manual_seed(seed), steps=steps, lr=lr)

    def _loss(self) -> Tensor:
        target = torch.randn((), generator=self._generator)
        self.targets.append(float(target))
        return (self.net.weight - target).square().sum()

    def _terms(self) -> dict[str, object]:
        return {"lr": self.lr}


def test_steps_of_sgd_follow_the_equation() -> None:
    run, parameter = Towards(Sgd, size=1), 0.0
    for _ in range(20):
        run.step()
        parameter -= 0.1 * 2 * (parameter - run.targets[-1])
        assert run.net.weight.item() == pytest.approx(parameter, abs=1e-5)


def test_steps_of_adam_follow_the_equation() -> None:
    run = Towards(size=1)
    gradients, parameter = [], 0.0
    for _ in range(20):
        run.step()
        gradients.append(2 * (parameter - run.targets[-1]))
        parameter = equations.adam(0.0, gradients, lr=0.1)
        assert run.net.weight.item() == pytest.approx(parameter, abs=1e-5)


def test_a_run_ends_after_its_steps_and_yields_their_losses() -> None:
    run = Towards(steps=4)
    losses = list(run)
    assert len(losses) == run.steps_done == 4
    assert run.done
    assert losses[0] == pytest.approx(3 * run.targets[0] ** 2)


@pytest.mark.parametrize("optimizer", [Adam, Sgd])
def test_a_continued_run_takes_the_steps_it_would_have_taken(optimizer: type[Adam] | type[Sgd]) -> None:
    whole, first, second = Towards(optimizer), Towards(optimizer), Towards(optimizer, seed=99)
    assert len(list(whole)) == 20
    assert len(list(islice(first, 7))) == 7
    saved = first.to_bytes()
    second.load_bytes(saved)
    assert second.steps_done == 7
    assert second.to_bytes() == saved
    assert len(list(second)) == 13
    assert torch.equal(whole.net.weight, second.net.weight)
    # Its state is its own: continuing the first one moves nothing in the second.
    ended = second.to_bytes()
    first.step()
    assert second.to_bytes() == ended


@pytest.mark.parametrize("other", [Towards(lr=0.2), Towards(size=4), Towards(Sgd)])
def test_a_state_of_another_run_is_refused_and_changes_nothing(other: Towards) -> None:
    run = Towards()
    run.step()
    before = run.to_bytes()
    with pytest.raises(CorruptState):
        run.load_bytes(other.to_bytes())
    with pytest.raises(CorruptState):
        run.load_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert run.to_bytes() == before


def test_a_run_set_back_takes_the_steps_again() -> None:
    run = Towards(Sgd)
    list(run)
    run.steps_done = 15
    assert not run.done
    assert len(list(run)) == 5


def test_a_state_is_a_copy() -> None:
    run = Towards()
    run.step()
    state = run.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    run.step()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert before.keys() > {"first_moment.weight", "second_moment.weight", "module.weight"}


def test_a_loss_that_is_not_finite_takes_no_step() -> None:
    run = Towards()
    with torch.no_grad():
        run.net.weight.fill_(1e30)
    with pytest.raises(TrainingDiverged):
        run.step()
    assert run.steps_done == 0
    assert run.net.weight.eq(1e30).all()
