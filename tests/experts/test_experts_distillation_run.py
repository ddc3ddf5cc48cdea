"""A run's arithmetic to the bit, its state as bytes, mixed precision, and what it leaves unimported."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters
from experts.distillation import (
    UNLABELLED,
    DistillationConfig,
    DistillationData,
    DistillationRun,
    TeacherLogits,
    align_logits,
)
from experts.errors import CorruptState
from experts.generators import torch_generator

STUDENT = MlpArchitecture(feature_dim=6, hidden=4, num_classes=3)
CLASSES = ("a", "b", "c")

PINNED = {
    "both": (1.5286951065063477, 1.476881980895996),
    "replay": (2.1047251224517822, 2.29827880859375),
    "teacher alone": (1.845227599143982, 1.8876746892929077),
    "labels alone": (1.212162733078003, 0.8189273476600647),
    "a teacher of two classes": (1.1132261753082275, 1.2694485187530518),
    "a teacher of one class": (0.6060813665390015, 0.5238194465637207),
}
"""Loss of the first and of the sixtieth step."""


def blobs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(90) % 3
    return torch.randn(90, 6, generator=generator) + 3 * functional.one_hot(labels, 6), labels


def run_of(case: str, seed: int = 0, steps: int = 60, **settings: float) -> DistillationRun:
    features, labels = blobs()
    logits = torch.randn(90, 3, generator=torch.Generator().manual_seed(5)) * 3
    shares = {"a teacher of two classes": ("c", "a"), "a teacher of one class": ("c",)}
    if case in shares:
        logits = align_logits(logits[:, : len(shares[case])], shares[case], CLASSES)
    data = DistillationData(
        features_ND=features,
        labels_N=None if case == "teacher alone" else labels,
        teacher_logits_NC=None if case == "labels alone" else logits,
    )
    if case == "mixed":
        halves = [
            TeacherLogits(logits_NK=logits[:, :2], classes=("a", "b"), weight=2.0),
            TeacherLogits(logits_NK=logits, classes=CLASSES),
        ]
        labels[::3] = UNLABELLED
        data = DistillationData.from_teachers(features, labels, halves, CLASSES)
    replay = None
    if case in {"replay", "mixed"}:
        settings = {"alpha": 0.3, "temperature": 3.0, "gamma": 2.0} | settings
        replay = DistillationData.from_old_generation(STUDENT.build("old"), blobs(2)[0])
    if case == "labels alone":
        settings = {"lr": 0.1} | settings
    config = DistillationConfig(steps=steps, batch_size=8, **settings)  # type: ignore[arg-type]
    return DistillationRun(STUDENT.build("uid"), data, config, torch_generator(seed, "batches"), replay=replay)


def in_the_plainest_way(run: DistillationRun, replay: DistillationData | None, data: DistillationData) -> list[float]:
    """The whole run by torch's own optimizer and its own mean of each term, on the run's own module."""
    config, optimizer = run.config, torch.optim.SGD(run.module.parameters(), lr=run.config.lr)
    generator = torch_generator(0, "batches")

    def loss_of(data: DistillationData) -> Tensor:
        rows = torch.randint(len(data.features_ND), (config.batch_size,), generator=generator)
        student = run.module(data.features_ND[rows])
        if data.teacher_logits_NC is None:
            assert data.labels_N is not None
            return functional.cross_entropy(student, data.labels_N[rows])
        unknown = torch.isneginf(data.teacher_logits_NC[rows])
        lowest = torch.finfo(torch.float32).min
        log_p_teacher, log_p_student = (
            (logits / config.temperature).masked_fill(unknown, lowest).log_softmax(dim=-1)
            for logits in (data.teacher_logits_NC[rows], student)
        )
        distill = config.temperature**2 * functional.kl_div(
            log_p_student, log_p_teacher, reduction="batchmean", log_target=True
        )
        if data.labels_N is None:
            return distill
        return config.alpha * functional.cross_entropy(student, data.labels_N[rows]) + (1 - config.alpha) * distill

    losses = []
    for _ in range(config.steps):
        loss = loss_of(data)
        if replay is not None:
            loss = loss + config.gamma * loss_of(replay)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", PINNED)
def test_a_run_is_that_of_torchs_own_optimizer_to_the_bit(case: str) -> None:
    run, plain = run_of(case), run_of(case)
    losses = in_the_plainest_way(plain, plain._replay, plain._data)
    assert list(run) == losses
    assert torch.equal(flat_parameters(run.module), flat_parameters(plain.module))


@pytest.mark.parametrize("case", PINNED)
def test_the_losses_of_a_seed_stay_what_they_were(case: str) -> None:
    losses = list(run_of(case))
    # Not to the bit: the last one differs between processors.
    assert (losses[0], losses[-1]) == pytest.approx(PINNED[case], rel=1e-5)


def test_a_frozen_parameter_is_left_as_it_is() -> None:
    run = run_of("both")
    frozen = next(run.module.parameters())
    frozen.requires_grad_(requires_grad=False)
    before = frozen.clone()
    list(run)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("case", ["both", "labels alone", "mixed"])
@pytest.mark.parametrize("steps_before", [0, 1, 23])
def test_a_run_stopped_and_continued_from_bytes_ends_in_the_same_bits(case: str, steps_before: int) -> None:
    whole = run_of(case)
    losses = list(whole)
    stopped = run_of(case)
    for _ in range(steps_before):
        stopped.step()
    saved = stopped.to_bytes()
    assert saved == stopped.to_bytes()

    resumed = run_of(case, seed=9)
    resumed.step()
    resumed.load_bytes(saved)
    assert resumed.steps_done == steps_before
    assert list(resumed) == losses[steps_before:]
    assert torch.equal(flat_parameters(resumed.module), flat_parameters(whole.module))
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_resumed_run_may_be_asked_for_more_steps() -> None:
    first = run_of("both", steps=20)
    list(first)
    further = run_of("both", steps=60)
    further.load_bytes(first.to_bytes())
    list(further)
    whole = run_of("both", steps=60)
    list(whole)
    assert torch.equal(flat_parameters(further.module), flat_parameters(whole.module))


def test_bytes_of_another_run_or_damaged_ones_are_refused_and_change_nothing() -> None:
    run = run_of("both")
    run.step()
    saved, before = run.to_bytes(), run.to_bytes()
    flipped = bytearray(saved)
    flipped[-3] ^= 1
    foreign = {
        "lr": run_of("both", lr=0.01).to_bytes(),
        "num_replayed": run_of("replay", alpha=0.5, temperature=2.0, gamma=1.0).to_bytes(),
        "digest": bytes(flipped),
        "sealed": saved[: len(saved) // 2],
        "header": b"\xff" * 64,
        "bytes in 0": b"",
    }
    for reason, data in foreign.items():
        with pytest.raises(CorruptState, match=reason):
            run.load_bytes(data)
        assert run.to_bytes() == before


def test_bytes_of_another_module_are_refused() -> None:
    features, labels = blobs()
    data = DistillationData(features_ND=features, labels_N=labels)
    runs = [
        DistillationRun(
            MlpArchitecture(feature_dim=6, hidden=hidden, num_classes=3).build("uid"),
            data,
            DistillationConfig(),
            torch_generator(0, "batches"),
        )
        for hidden in (4, 5)
    ]
    with pytest.raises(CorruptState, match=r"module\.hidden"):
        runs[0].load_bytes(runs[1].to_bytes())


def learns_in_mixed_precision(device: str) -> None:
    """The student computes in bfloat16, parameters and gradients stay float32, and it learns the same."""
    features, labels = blobs()
    data = DistillationData(features_ND=features.to(device), labels_N=labels.to(device))
    seen: list[Tensor] = []
    vectors = []
    for mixed in (False, True):
        module = STUDENT.build("uid").to(device)
        module.output.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
        config = DistillationConfig(steps=200, batch_size=8, mixed_precision=mixed)
        run = DistillationRun(module, data, config, torch_generator(0, "batches"))
        losses = list(run)
        first_loss = losses[0]
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
        for parameter in module.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
        vectors.append(flat_parameters(module))
    assert [logits.dtype for logits in seen] == [torch.float32] * 200 + [torch.bfloat16] * 200
    # The loss is a float32 one, of logits that were rounded.
    rows = torch.randint(90, (8,), generator=torch_generator(0, "batches"))
    wanted = functional.cross_entropy(seen[200].float(), labels.to(device)[rows])
    assert first_loss == pytest.approx(float(wanted), rel=1e-6)
    assert not torch.equal(*vectors)
    torch.testing.assert_close(vectors[1], vectors[0], rtol=0.05, atol=0.05)


def test_mixed_precision_is_off_unless_asked_for_and_changes_only_the_students_arithmetic() -> None:
    assert not DistillationConfig().mixed_precision
    learns_in_mixed_precision("cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_mixed_precision_on_a_gpu() -> None:
    learns_in_mixed_precision("cuda:0")


IN_A_NEW_PROCESS = """
import sys, torch
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.architectures.mlp import MlpArchitecture
from experts.generators import torch_generator
data = DistillationData(
    features_ND=torch.ones(4, 6), labels_N=torch.tensor([0, 1, 2, -1]), teacher_logits_NC=torch.eye(4)[:, None, :3]
)
module = MlpArchitecture(feature_dim=6, hidden=4, num_classes=3).build("uid")
for mixed in (False, True):
    run = DistillationRun(
        module, data, DistillationConfig(steps=3, mixed_precision=mixed), torch_generator(0, "b"), replay=data
    )
    run.step()
    run.load_bytes(run.to_bytes())
    assert len(list(run)) == 2
print(*[name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_no_step_of_a_run_imports_torchs_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_a_module_that_shares_a_parameter_updates_it_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6, bias=False)
            self.second = nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight

        def forward(self, features_BD: Tensor) -> Tensor:
            logits_BC: Tensor = self.second(self.first(features_BD))
            return logits_BC

    features, labels = blobs()
    data = DistillationData(features_ND=features, labels_N=labels)
    weights = []
    for by_hand in (True, False):
        module = Tied()
        nn.init.eye_(module.first.weight)
        run = DistillationRun(module, data, DistillationConfig(steps=5), torch_generator(0, "batches"))
        if by_hand:
            list(run)
        else:
            in_the_plainest_way(run, None, data)
        weights.append(module.first.weight.detach())
    assert torch.equal(*weights)


def test_a_rate_that_decays_ends_at_nothing_and_begins_at_lr() -> None:
    decaying, constant = run_of("both", steps=40, decay=True), run_of("both", steps=40)
    moved = []
    for run in (decaying, constant):
        before, sizes = flat_parameters(run.module).clone(), []
        for _ in run:
            after = flat_parameters(run.module)
            sizes.append(float((after - before).norm()))
            before = after.clone()
        moved.append(sizes)
    assert moved[0][0] == moved[1][0]
    assert moved[0][-1] < 0.02 * moved[1][-1]


def test_a_run_that_decays_is_continued_under_as_many_steps_only() -> None:
    whole, half = run_of("both", steps=20, decay=True), run_of("both", steps=20, decay=True)
    for _ in whole:
        pass
    for _ in range(8):
        half.step()
    resumed = run_of("both", seed=1, steps=20, decay=True)
    resumed.load_bytes(half.to_bytes())
    for _ in resumed:
        pass
    assert torch.equal(flat_parameters(resumed.module), flat_parameters(whole.module))
    with pytest.raises(CorruptState, match="steps was 20"):
        run_of("both", steps=30, decay=True).load_bytes(half.to_bytes())
