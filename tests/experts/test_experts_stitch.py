"""Section-to-module distillation through a linear stitch."""

import copy
import math
from typing import Any

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from experts.architectures.adapter import AdapterArchitecture
from experts.architectures.base import Architecture
from experts.architectures.conv import ConvArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters
from experts.data.dataset import class_columns
from experts.data.named import load_named
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.distillation.stitch import StitchConfig, StitchData, StitchRun, least_squares_stitch
from experts.errors import (
    CorruptState,
    MalformedDataset,
    NothingToLearnFrom,
    SettingOutOfRange,
    ShapeMismatch,
    TrainingDiverged,
)
from experts.generators import torch_generator
from experts.networks.head import Head
from experts.teachers.cnn import TeacherConfig, train_teacher
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.sections import section
from experts.trunk.images import prepare_images


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mlp(features: int = 6, hidden: int = 4) -> nn.Module:
    return MlpArchitecture(feature_dim=features, hidden=hidden, num_classes=3).build("uid")


def hidden_of(expert: nn.Module) -> nn.Module:
    return nn.Sequential(Head(expert, "hidden"), nn.ReLU())


def run_of(module: nn.Module | None = None, seed: int = 0, **settings: Any) -> StitchRun:
    data = StitchData.from_section(noise(50, 6), noise(50, 5, seed=1) * 3 + 1)
    config = StitchConfig(**{"steps": 40, "batch_size": 8} | settings)
    return StitchRun(hidden_of(mlp()) if module is None else module, data, config, torch_generator(seed, "stitch"))


@settings(deadline=None, max_examples=25)  # a shared machine is slow at times
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 999))
def test_the_loss_is_the_equation_in_plain_loops(items: int, width: int, outputs: int, seed: int) -> None:
    inputs, section_ND = noise(items, width, seed=seed), 3 * noise(items, outputs, seed=seed + 1) - 1
    module = nn.Identity()
    data = StitchData.from_section(inputs, section_ND)
    run = StitchRun(module, data, StitchConfig(), torch_generator(seed, "stitch"))
    assert isinstance(run.stitch, nn.Linear)
    loss = functional.mse_loss(run.stitch(run.outputs()), run.targets)
    expected = equations.stitch_loss(
        inputs.tolist(), section_ND.tolist(), run.stitch.weight.tolist(), run.stitch.bias.tolist()
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_step_s_loss_is_that_of_its_batch() -> None:
    run = run_of()
    rows = torch.randint(50, (8,), generator=_after_the_stitch())
    stitched = run.stitch(run.outputs()[rows])
    assert run.step() == pytest.approx(functional.mse_loss(stitched, run.targets[rows]).item(), rel=1e-5)


def _after_the_stitch() -> torch.Generator:
    """The run's generator once it has drawn A and a."""
    generator = torch_generator(0, "stitch")
    for shape in ((5, 4), (5,)):
        nn.init.uniform_(torch.empty(shape), generator=generator)
    return generator


@pytest.mark.parametrize("is_map", [False, True])
def test_gradients_of_module_and_stitch_are_those_of_the_loss(is_map: bool) -> None:
    """By finite differences in float64, through pooling and stitch."""
    inputs = noise(4, 2, 4, 4) if is_map else noise(4, 3)
    targets = noise(4, 3, 2, 2, seed=1) if is_map else noise(4, 5, seed=1)
    module = nn.Conv2d(2, 2, 3, padding=1) if is_map else nn.Linear(3, 2)
    run = StitchRun(module, StitchData.from_section(inputs, targets), StitchConfig(), torch_generator(0, "stitch"))
    run.module.double()
    run.stitch.double()
    run._inputs_ND, run._targets_ND = run._inputs_ND.double(), run._targets_ND.double()
    state = run._generator.get_state()

    def loss(*values: Tensor) -> Tensor:
        run._generator.set_state(state)
        return torch.func.functional_call(_LossOf(run), dict(zip(names, values, strict=True)))  # type: ignore[no-any-return]

    names = [name for name, _ in _LossOf(run).named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in _LossOf(run).parameters())
    assert len(names) == 4
    assert torch.autograd.gradcheck(loss, values)


class _LossOf(nn.Module):
    def __init__(self, run: StitchRun) -> None:
        super().__init__()
        self.both = run._module
        self.run = [run]

    def forward(self) -> Tensor:
        return self.run[0]._loss()


def test_a_known_linear_map_is_recovered() -> None:
    inputs, weight = noise(200, 4), noise(3, 4, seed=1)
    data = StitchData.from_section(inputs, inputs @ weight.T + 2)
    run = StitchRun(nn.Identity(), data, StitchConfig(steps=1500), torch_generator(0, "stitch"))
    losses = list(run)
    assert losses[0] > 0.1
    assert losses[-1] < 1e-7
    # The targets are normalised, so the map is recovered up to each output's own mean and deviation.
    raw = inputs @ weight.T + 2
    scale = raw.std(dim=0, correction=0) + 0.01 * raw.std(correction=0)
    torch.testing.assert_close(run.stitch.weight.detach(), weight / scale[:, None], atol=1e-3, rtol=1e-3)


def test_a_module_in_between_learns_what_its_width_allows() -> None:
    """A linear module of 2 units to 4 outputs of rank 3: what remains is the least principal component."""
    inputs = noise(300, 6)
    data = StitchData.from_section(inputs, inputs[:, :3] @ noise(3, 4, seed=1))
    module = nn.Linear(6, 2, bias=False)
    nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(0))
    run = StitchRun(module, data, StitchConfig(steps=1500, batch_size=64), torch_generator(0, "stitch"))
    list(run)
    left = functional.mse_loss(run.stitch(run.outputs()), run.targets).item()
    singular = torch.linalg.svdvals(run.targets - run.targets.mean(dim=0))
    assert left == pytest.approx(float(singular[2:].square().sum()) / run.targets.numel(), rel=0.08)


@pytest.mark.parametrize("is_map", [False, True])
def test_descent_on_the_stitch_alone_ends_in_least_squares(is_map: bool) -> None:
    inputs = noise(60, 3, 2, 2) if is_map else noise(60, 3)
    weight = noise(4, 3, seed=1)
    wanted = torch.einsum("dc,nc...->nd...", weight, inputs)
    data = StitchData.from_section(inputs, wanted + 0.5 * noise(*wanted.shape, seed=2))
    config = StitchConfig(steps=1000, batch_size=60, lr=0.005)
    run = StitchRun(nn.Identity(), data, config, torch_generator(0, "stitch"))
    list(run)
    best_weight, best_bias = least_squares_stitch(run.outputs(), run.targets)
    torch.testing.assert_close(run.stitch.weight.detach().flatten(1).double(), best_weight, atol=0.05, rtol=0)
    reached = functional.mse_loss(run.stitch(run.outputs()), run.targets).item()
    rows = run.outputs().double().movedim(1, -1).reshape(-1, 3) @ best_weight.T + best_bias
    least = functional.mse_loss(rows, run.targets.double().movedim(1, -1).reshape(-1, 4)).item()
    assert least <= reached * (1 + 1e-9)
    assert reached == pytest.approx(least, rel=0.01)


def test_the_least_squares_are_those_of_the_normal_equations() -> None:
    outputs, targets = noise(40, 3), noise(40, 2, seed=1)
    weight, bias = least_squares_stitch(outputs, targets)
    design = torch.cat([outputs, torch.ones(40, 1)], dim=1).double()
    solution = torch.linalg.solve(design.T @ design, design.T @ targets.double())
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], dim=1), solution.T)


def test_outputs_that_say_nothing_or_the_same_twice_still_have_a_least_square() -> None:
    outputs = torch.cat([noise(20, 1), noise(20, 1), torch.full((20, 1), 3.0)], dim=1)
    weight, bias = least_squares_stitch(outputs, 2 * outputs[:, :1] + 1)
    torch.testing.assert_close(weight, torch.tensor([[1.0, 1.0, 0.0]]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, torch.ones(1).double(), atol=1e-5, rtol=0)
    with pytest.raises(ShapeMismatch):
        least_squares_stitch(outputs, noise(19, 2))
    with pytest.raises(ShapeMismatch):
        least_squares_stitch(noise(2, 3, 4, 4), noise(2, 3, 2, 2))


def test_targets_have_mean_0_and_deviation_just_below_1_whatever_the_section_gives() -> None:
    for shape in ((80, 3), (20, 3, 2, 2)):
        outputs = noise(*shape) * torch.tensor([5.0, 1e-3, 0.0]).view(-1, *[1] * (len(shape) - 2)) + 7
        targets = StitchData.from_section(noise(shape[0], 2), outputs).targets_ND
        per_feature = targets.movedim(1, 0).flatten(start_dim=1)
        torch.testing.assert_close(per_feature.mean(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
        deviation = per_feature.std(dim=1, correction=0).tolist()
        assert 0.98 < deviation[0] < 1
        # A feature that hardly varies hardly counts.
        assert deviation[1] < 0.1
        assert deviation[2] == 0


def test_maps_are_compared_on_the_coarser_grid() -> None:
    for student, teacher in ((4, 2), (2, 4)):
        data = StitchData.from_section(noise(10, 3, student, student), noise(10, 5, teacher, teacher, seed=1))
        run = StitchRun(nn.Identity(), data, StitchConfig(), torch_generator(0, "stitch"))
        assert run.targets.shape == (10, 5, 2, 2)
        assert run.outputs().shape == (10, 3, 2, 2)
        pooled = functional.adaptive_avg_pool2d(data.targets_ND, 2)
        assert torch.equal(run.targets, pooled)
        assert math.isfinite(run.step())


@pytest.mark.parametrize(
    ("architecture", "layer", "targets"),
    [
        (MlpArchitecture(feature_dim=8, hidden=4, num_classes=2), "hidden", (30, 5)),
        (AdapterArchitecture(feature_dim=8, bottleneck=4, num_classes=2), "down", (30, 5)),
        (ConvArchitecture(channels=2, height=2, width=2, filters=4, num_classes=2), "conv", (30, 5, 3, 3)),
    ],
    ids=["mlp", "adapter", "conv"],
)
def test_a_layer_inside_any_expert_learns_and_what_follows_it_stays(
    architecture: Architecture, layer: str, targets: tuple[int, ...]
) -> None:
    expert = architecture.build("uid")
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    data = StitchData.from_section(noise(30, 8), noise(*targets, seed=1))
    losses = list(StitchRun(Head(expert, layer), data, StitchConfig(steps=150, batch_size=30), torch_generator(0, "s")))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    changed = {name for name, value in expert.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{layer}.weight", f"{layer}.bias"}


def test_a_run_stopped_and_continued_from_bytes_ends_in_the_same_bits() -> None:
    whole = run_of()
    losses = list(whole)
    stopped = run_of()
    for _ in range(17):
        stopped.step()
    saved = stopped.to_bytes()
    resumed = run_of(seed=9)
    resumed.step()
    resumed.load_bytes(saved)
    assert resumed.steps_done == 17
    assert list(resumed) == losses[17:]
    for part in ("module", "stitch"):
        assert torch.equal(flat_parameters(getattr(resumed, part)), flat_parameters(getattr(whole, part)))


def test_bytes_of_another_run_are_refused_and_change_nothing() -> None:
    run = run_of()
    run.step()
    before = run.to_bytes()
    foreign = {
        "lr": run_of(lr=0.5).to_bytes(),
        "missing or foreign|is torch": run_of(nn.Linear(6, 2)).to_bytes(),
        "digest|sealed": before[: len(before) // 2],
    }
    for reason, data in foreign.items():
        with pytest.raises(CorruptState, match=reason):
            run.load_bytes(data)
        assert run.to_bytes() == before


def test_a_run_depends_on_its_generator_and_on_nothing_else() -> None:
    before = torch.get_rng_state()
    assert list(run_of()) == list(run_of())
    assert list(run_of()) != list(run_of(seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_is_told_by_its_step() -> None:
    module = nn.Linear(6, 2)
    run = run_of(module)
    run.step()
    with torch.no_grad():
        module.weight.fill_(math.inf)
    with pytest.raises(TrainingDiverged) as caught:
        run.step()
    assert caught.value.step == 1


@pytest.mark.parametrize(
    ("inputs", "outputs", "error"),
    [
        (noise(3, 2), noise(4, 2), ShapeMismatch),
        (noise(3, 2), noise(3, 2, 2), ShapeMismatch),
        (noise(3, 2), noise(3), ShapeMismatch),
        (noise(0, 2), noise(0, 2), NothingToLearnFrom),
        (noise(3, 2), torch.full((3, 2), 0.1), MalformedDataset),
        (noise(3, 2), torch.zeros(3, 2), MalformedDataset),
    ],
)
def test_data_that_cannot_be_learned_is_refused(inputs: Tensor, outputs: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        StitchData.from_section(inputs, outputs)


def test_a_vector_does_not_become_a_map() -> None:
    for targets in (noise(5, 3, 2, 2), noise(5, 3)):
        data = StitchData.from_section(noise(5, 2), targets)
        module = nn.Identity() if targets.ndim == 4 else nn.Unflatten(1, (2, 1, 1))
        with pytest.raises(ShapeMismatch):
            StitchRun(module, data, StitchConfig(), torch_generator(0, "stitch"))


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.nan}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingOutOfRange) as caught:
        StitchConfig(**change)
    assert caught.value.name in change


def test_a_stitched_expert_learns_its_classes_in_far_fewer_steps() -> None:
    """On digits: the hidden layer first matches the teacher's, then both start from the same few steps of labels."""
    train, test = load_named("digits")
    images = prepare_images(train.images, 1, 8)
    network = train_teacher(images, train.labels, TeacherConfig(epochs=2), torch_generator(0, "teacher"))
    form = InputForm(channels=1, pixels=8, mean=(0.0,), deviation=(1.0,))
    teacher = NetworkTeacher(network, name="cnn", architecture="cnn", classes=network.classes, form=form)
    features, unseen = (
        images.flatten(start_dim=1) * 4 - 1,
        prepare_images(test.images, 1, 8).flatten(start_dim=1) * 4 - 1,
    )
    columns = class_columns(test.labels, teacher.classes)

    untrained = mlp_of_digits()
    stitched = copy.deepcopy(untrained)
    data = StitchData.from_section(features, section(teacher, "layers.9")(teacher.normalised(images)))
    list(StitchRun(hidden_of(stitched), data, StitchConfig(steps=400), torch_generator(0, "stitch")))
    accuracy = []
    for expert in (untrained, stitched):
        taught = DistillationData(features_ND=features, teacher_logits_NC=teacher.logits(images))
        list(DistillationRun(expert, taught, DistillationConfig(steps=40), torch_generator(0, "batches")))
        accuracy.append((expert(unseen).argmax(dim=1) == columns).double().mean().item())
    assert accuracy[1] > accuracy[0] + 0.15, accuracy


def mlp_of_digits() -> nn.Module:
    return MlpArchitecture(feature_dim=64, hidden=16, num_classes=10).build("uid")
