"""SGD and Adam by hand are torch's, and the equations'."""

import math
import subprocess
import sys

import equations
import pytest
import torch
from torch import nn

from experts.generators import torch_generator
from experts.optimizers import Adam, Sgd, cosine_rate


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def test_sgd_takes_the_steps_of_torchs_own_to_the_bit() -> None:
    ours, theirs = network(), network()
    sgd = Sgd(dict(ours.named_parameters()))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1)
    generator = torch_generator(0, "data")
    for done in range(20):
        inputs, targets = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)
        for module in (ours, theirs):
            module.zero_grad()
            (module(inputs) - targets).square().mean().backward()
        assert sgd.steps_done == done
        sgd.step(0.1)
        reference.step()
        for mine, reference_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, reference_parameter)
    assert not sgd.state


@pytest.mark.parametrize(("lr", "steps"), [(2e-3, 40), (0.1, 7), (1e-6, 1)])
@pytest.mark.parametrize("falls", [True, False])
def test_adam_takes_the_steps_of_torchs_own(lr: float, steps: int, *, falls: bool) -> None:
    ours, theirs = network(), network()
    adam = Adam(dict(ours.named_parameters()))
    reference = torch.optim.Adam(theirs.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, steps)
    generator = torch_generator(0, "data")
    for done in range(steps):
        inputs, targets = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)
        for module in (ours, theirs):
            module.zero_grad()
            (module(inputs) - targets).square().mean().backward()
        adam.step(cosine_rate(lr, done=done, steps=steps) if falls else lr)
        reference.step()
        if falls:
            schedule.step()
        for mine, reference_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(mine, reference_parameter, rtol=1e-5, atol=1e-6 * lr / 2e-3)


def test_adam_is_the_equation() -> None:
    gradients = [1.0, -3.0, 0.5, 0.0, 2e-9]
    parameter = nn.Parameter(torch.tensor([0.25], dtype=torch.float64))
    adam = Adam({"theta": parameter})
    for done, gradient in enumerate(gradients):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        adam.step(cosine_rate(0.1, done=done, steps=len(gradients)))
    assert math.isclose(parameter.item(), equations.cosine_adam(0.25, gradients, lr=0.1), rel_tol=1e-12)


def test_a_parameter_without_a_gradient_stays_and_its_moments_too() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    adam = Adam({"first": first, "second": second})
    first.grad = torch.ones(2)
    adam.step(0.1)
    assert not torch.equal(first, torch.ones(2))
    assert torch.equal(second, torch.ones(2))
    assert adam.steps_done == 1
    assert not adam.second["second"].any()


def test_the_rate_begins_at_lr_and_ends_at_0() -> None:
    assert cosine_rate(0.3, done=0, steps=4) == 0.3
    assert math.isclose(cosine_rate(0.3, done=2, steps=4), 0.15)
    assert abs(cosine_rate(0.3, done=4, steps=4)) < 1e-15


TRAIN = """
import sys, torch
from experts.teachers.cnn import TeacherConfig, train_teacher
train_teacher(torch.rand(4, 1, 16, 16), ["a", "b", "a", "b"], TeacherConfig(epochs=1), torch.Generator())
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_training_a_teacher_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
