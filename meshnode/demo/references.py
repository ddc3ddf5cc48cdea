"""What the mesh is compared with: one model fed the tasks one after the other, and one trained on everything."""

from collections.abc import Callable

from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.sequential import SequentialBaseline
from experts.evaluation.inputs import PixelInputs
from experts.evaluation.metrics import AccuracyMatrix, accuracy
from experts.evaluation.networks import reference_cnn
from experts.evaluation.training import TrainingConfig
from meshnode.demo.data import NUM_TASKS, DemoData
from meshnode.demo.result import MethodResult

__all__ = ["measure_references"]

PIXELS = 32
JOINT_EPOCHS = {"digits": 12, "fashion-mnist": 3}
"""Fewer where there is more data: the demo's joint model is a yardstick, not a record."""
SEQUENTIAL = TrainingConfig(epochs=5, batch_size=32, lr=0.05)
"""Five passes learn two classes of the digits, 150 images each, to 97%."""


def measure_references(data: DemoData, *, seed: int, say: Callable[[str], None]) -> list[MethodResult]:
    """Train and test both reference models after every task. Slow: run it in a thread.

    Args:
        data: The same tasks, training and test images the mesh had, here all in one place.
        seed: Of initial weights and batches.
        say: Told of each finished model.
    """
    setup = NetworkSetup(
        inputs=PixelInputs(channels=data.train.channels, pixels=PIXELS), form=reference_cnn, classes=data.train.classes
    )
    joint_config = TrainingConfig(epochs=JOINT_EPOCHS[data.name], batch_size=32, lr=2e-3, optimizer="adam")
    baselines: list[tuple[str, Baseline]] = [
        ("one model, task after task", SequentialBaseline(setup, SEQUENTIAL, seed=seed)),
        ("joint training", JointBaseline(setup, joint_config, seed=seed)),
    ]
    results = []
    for name, baseline in baselines:
        matrix = AccuracyMatrix(NUM_TASKS)
        for task in range(NUM_TASKS):
            baseline.learn(data.task_train(task))
            for on_task in range(task + 1):
                test = data.task_test(on_task)
                matrix.record(task, on_task, accuracy(baseline.predict(test.images), test.labels))
        predicted = baseline.predict(data.test.images)
        result = MethodResult(
            name=name,
            matrix=matrix,
            accuracy=accuracy(predicted, data.test.labels),
            moved_bytes=data.train.images.nbytes,
            query_p50_ms=None,
        )
        say(f"{name}: {100 * result.accuracy:.1f} % on all classes, forgetting {100 * matrix.forgetting():.1f}")
        results.append(result)
    return results
