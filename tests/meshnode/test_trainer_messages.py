"""Messages between daemon and trainer arrive as they were sent, one after the other."""

import io

import pytest

from meshnode.trainer.messages import (
    LENGTH,
    AddDelta,
    Checkpoint,
    ExpertJob,
    FromTrainer,
    Learn,
    Learned,
    LearningFailed,
    Progress,
    Scan,
    Settings,
    Setup,
    Statistics,
    TaskFile,
    Tasks,
    TeacherChoice,
    ToTrainer,
    TrainerReady,
    pack,
    read_message,
    unpack_from_trainer,
)

SETTINGS = Settings(
    teacher_epochs=1,
    steps=2,
    batch_size=3,
    learning_rate=0.1,
    alpha=0.5,
    temperature=2.0,
    gamma=1.0,
    replay="reservoir",
    replay_samples=4,
    replay_mib=1,
    round_steps=5,
    checkpoint_s=0.5,
    logit_cache_mib=1,
    own_teacher=False,
    teachers=(TeacherChoice(name="file:/x.safetensors", weight=2.0, mapping="/m.toml"),),
    seed=6,
)
JOB = ExpertJob(
    uid="u",
    classes=("0", "1"),
    architecture={"kind": "mlp", "hidden": 4},
    weights=b"\0\xff",
    updating=True,
    run="r",
    steps=7,
)
ORDERS: list[ToTrainer] = [
    Setup(
        trunk=b"trunk",
        device="cpu",
        data_dir=None,
        state_dir="/tmp",
        settings=SETTINGS,
        log_level="info",
        log_format="json",
    ),
    Scan(),
    Learn(run=3, task="t", experts=(JOB,)),
    AddDelta(run=3, uid="u", delta=bytes(8)),
]
REPORTS: list[FromTrainer] = [
    TrainerReady(replay_samples=7),
    Tasks(
        tasks=(TaskFile(name="t", digest="d", classes={"0": 5}),),
        unreadable={"bad": "why"},
        unusable_teachers={"t": "why"},
    ),
    Statistics(data=bytes(range(256))),
    Progress(stage="distil", done=1, total=2, loss=0.5, left_s=3.5),
    Checkpoint(uid="u", vector=bytes(12), deltas_applied=1, run="r", steps=9, tasks=("a",), new_steps=4),
    Learned(teacher_accuracy=0.9, seconds=1.5, replay_samples=7),
    LearningFailed(reason="why"),
]


def test_orders_come_out_of_the_pipe_as_they_went_in_and_then_the_end() -> None:
    pipe = io.BytesIO(b"".join(pack(order) for order in ORDERS))
    assert [read_message(pipe) for _ in ORDERS] == ORDERS
    assert read_message(pipe) is None


@pytest.mark.parametrize("length", range(LENGTH.size))
def test_a_pipe_that_closes_within_a_length_is_closed(length: int) -> None:
    assert read_message(io.BytesIO(pack(Scan())[:length])) is None


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_reports_are_told_apart_and_whole(report: FromTrainer) -> None:
    data = pack(report)
    (length,) = LENGTH.unpack(data[: LENGTH.size])
    assert length == len(data) - LENGTH.size
    assert unpack_from_trainer(data[LENGTH.size :]) == report
