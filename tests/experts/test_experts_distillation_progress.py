"""Reports of a run: when they come, what their mean is over, and how the time left is estimated."""

import pytest

from experts.distillation import DistillationProgress, ProgressMeter
from experts.errors import SettingOutOfRange


def reports(meter: ProgressMeter, losses: list[float], times_s: list[float]) -> list[DistillationProgress]:
    steps = zip(losses, times_s, strict=True)
    return [report for loss, now_s in steps if (report := meter.after_step(loss, now_s=now_s)) is not None]


def test_reports_come_at_the_interval_and_at_the_end_each_over_its_own_steps() -> None:
    meter = ProgressMeter(total=5, every_steps=2, now_s=10.0)
    got = reports(meter, [4.0, 2.0, 1.0, 3.0, 7.0], [11.0, 12.0, 13.0, 14.0, 15.0])
    assert [(report.step, report.total, report.mean_loss) for report in got] == [(2, 5, 3.0), (4, 5, 2.0), (5, 5, 7.0)]
    assert [report.step_s for report in got] == [1.0, 1.0, 1.0]
    assert [report.left_s for report in got] == [3.0, 1.0, 0.0]


def test_one_slow_step_does_not_change_the_estimate() -> None:
    meter = ProgressMeter(total=100, every_steps=5, now_s=0.0)
    (report,) = reports(meter, [1.0] * 5, [0.5, 1.0, 61.0, 61.5, 62.0])
    assert report.step_s == pytest.approx(0.5)
    assert report.left_s == pytest.approx(47.5)


def test_the_estimate_follows_a_machine_that_gets_slower() -> None:
    meter = ProgressMeter(total=1000, every_steps=200, now_s=0.0)
    times_s = [0.1 * step for step in range(1, 201)]
    times_s += [times_s[-1] + 1.0 * step for step in range(1, 201)]
    before, after = reports(meter, [1.0] * 400, times_s)
    assert before.step_s == pytest.approx(0.1)
    assert after.step_s == pytest.approx(1.0)
    assert after.left_s == pytest.approx(600.0)


def test_a_resumed_run_is_counted_from_where_it_was() -> None:
    meter = ProgressMeter(total=10, every_steps=4, now_s=0.0, done=7)
    got = reports(meter, [1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert [(report.step, report.mean_loss, report.left_s) for report in got] == [(8, 1.0, 4.0), (10, 2.5, 0.0)]


@pytest.mark.parametrize(("name", "value"), [("total", 0), ("every_steps", 0), ("done", -1)])
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    numbers = {"total": 5, "every_steps": 1, "done": 0} | {name: value}
    with pytest.raises(SettingOutOfRange) as caught:
        ProgressMeter(now_s=0.0, **numbers)
    assert caught.value.name == name
