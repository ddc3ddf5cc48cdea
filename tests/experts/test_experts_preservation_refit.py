"""Fitting an output to answers: nearer in what counts, by steps of no given length, and nothing else is touched."""

import copy

import pytest
import torch
from torch import Tensor

from experts.generators import torch_generator
from experts.preservation import refit as refit_module
from experts.preservation.chain import Chain, Stage, linear_layer
from experts.preservation.refit import refit, refit_answers

ROWS_C = torch.tensor([0, 1, 3])
"""Of four outputs, those that have something to be fitted to."""


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(0, name))


def narrow() -> Chain:
    hidden = linear_layer(draw("hidden", 5, 8), draw("bias", 5))
    return Chain(
        [Stage("hidden", hidden, activation="relu"), Stage("output", linear_layer(draw("output", 4, 5), None))]
    )


FEATURES_ND = draw("features", 200, 8)
LOGITS_NC = 4 * torch.tanh(FEATURES_ND @ draw("wanted", 8, 3))


def divergence(chain: Chain) -> float:
    """tau^2 KL, mean over the items."""
    with torch.no_grad():
        log_p_NC = torch.log_softmax(LOGITS_NC.double() / 2, dim=1)
        log_q_NC = torch.log_softmax(chain(FEATURES_ND)[:, ROWS_C].double() / 2, dim=1)
    return 4 * float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(dim=1).mean())


def fitted(ridge: float = 1e-3) -> Chain:
    chain = narrow()
    refit(chain, 1, FEATURES_ND, LOGITS_NC, rows_U=ROWS_C, ridge=ridge)
    return chain


def answering(chain: Chain, ridge: float = 1e-3) -> Chain:
    other = copy.deepcopy(chain)
    refit_answers(other, FEATURES_ND, LOGITS_NC, rows_C=ROWS_C, ridge=ridge)
    return other


def test_each_step_lowers_the_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = []
    for steps in (0, 1, 2, 5, 20):
        monkeypatch.setattr(refit_module, "_STEPS", steps)
        # A ridge of next to nothing, as it is part of what is lowered.
        by_steps.append(divergence(answering(fitted(), ridge=1e-9)))
    assert by_steps == sorted(by_steps, reverse=True)
    assert by_steps[-1] < by_steps[0] - 1e-3


def test_it_comes_to_where_the_gradient_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "_STEPS", 20_000)
    ridge, start = 1e-2, fitted()
    chain = answering(start, ridge=ridge)
    output = chain.output.weights
    inputs_NI = chain.inputs_of(1, FEATURES_ND).double().detach()
    centred_NI = inputs_NI - inputs_NI.mean(dim=0)
    scale = ridge * centred_NI.square().sum() / centred_NI.shape[1]
    weight = output.weight.detach()[ROWS_C].double().requires_grad_()
    bias = output.bias.detach()[ROWS_C].double().requires_grad_()
    logits_NC = inputs_NI @ weight.T + bias
    p_NC = torch.softmax(LOGITS_NC.double() / 2, dim=1)
    loss = -4 * (p_NC * torch.log_softmax(logits_NC / 2, dim=1)).sum()
    change = weight - start.output.weights.weight.detach()[ROWS_C].double()
    total = loss + scale / 4 * change.square().sum()
    gradients = torch.autograd.grad(total, [weight, bias])
    # The bias is where the mean input is, so that its penalty is none.
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3


def test_other_outputs_and_other_layers_stay() -> None:
    before = fitted()
    after = answering(before)
    assert torch.equal(after.stages[0].weights.weight, before.stages[0].weights.weight)
    assert torch.equal(after.output.weights.weight[2], before.output.weights.weight[2])
    assert not torch.equal(after.output.weights.weight[0], before.output.weights.weight[0])
    # Softmax leaves the level of the fitted ones open; it stays, beside others that it is compared with.
    levels = [float(chain(FEATURES_ND)[:, ROWS_C].mean().detach()) for chain in (before, after)]
    assert levels[0] == pytest.approx(levels[1], abs=1e-4)


def test_what_answers_as_wanted_stays() -> None:
    chain = narrow()
    with torch.no_grad():
        wanted_NC = chain(FEATURES_ND)[:, ROWS_C]
    other = copy.deepcopy(chain)
    refit_answers(other, FEATURES_ND, wanted_NC, rows_C=ROWS_C, ridge=1e-3)
    torch.testing.assert_close(other.output.weights.weight, chain.output.weights.weight, atol=1e-5, rtol=0)
