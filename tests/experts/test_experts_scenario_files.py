"""Scenarios of a user's own, out of TOML files, the examples of the documentation among them."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from data_layouts import write_image

from experts.data.csv_table import load_csv
from experts.data.dataset import ImageDataset
from experts.data.homes import HOMES
from experts.data.image_files import ReadingConfig, ReadingProgress
from experts.data.npz import save_task
from experts.errors import MalformedDataset, MalformedScenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.file import scenario_from_file
from experts.evaluation.scenarios.registry import SCENARIO_NAMES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scenarios.md").read_text()
DOMAINS, SPLIT = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)

BIRDS = ("robin", "tit", "wren")


def write_data(folder: Path) -> None:
    """What the documented files speak of: image files of several sizes, grey arrays, and a table of paths."""
    for part, count in (("train", 4), ("test", 2)):
        for label, bird in enumerate(BIRDS):
            for number in range(count):
                size = (40 + number, 36)
                write_image(folder / "spring" / part / bird / f"{number}.png", 10 * label + number, size=size)
    images = np.repeat(np.arange(12, dtype=np.uint8) + 50, 28 * 28).reshape(12, 28, 28)
    save_task(folder / "autumn.npz", ImageDataset(images, BIRDS * 4))
    with (folder / "winter.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "path", "seen on"])
        for row in range(12):
            write_image(folder / "snow" / f"{row}.jpg", 100 + row)
            table.writerow([BIRDS[row % 3], f"snow/{row}.jpg", "Sunday, early"])


def made(folder: Path, text: str, order: int = 0) -> Scenario:
    (folder / "scenario.toml").write_text(text)
    return scenario_from_file(folder / "scenario.toml", order=order)


def test_the_documented_domains(tmp_path: Path) -> None:
    write_data(tmp_path)
    scenario = made(tmp_path, DOMAINS)
    assert (scenario.name, scenario.kind) == ("garden birds", "domain-incremental")
    assert [task.name for task in scenario.tasks] == ["spring", "autumn", "winter"]
    assert [(len(task.train), len(task.test)) for task in scenario.tasks] == [(12, 6), (9, 3), (9, 3)]
    assert {task.classes for task in scenario.tasks} == {BIRDS}
    assert {task.train.images.shape[1:] for task in scenario.tasks} == {(32, 32, 3)}
    autumn = scenario.tasks[1]
    both = np.concatenate([autumn.train.images, autumn.test.images])
    assert sorted(both[:, 0, 0, 2].tolist()) == list(range(50, 62))
    assert scenario.digest() == made(tmp_path, DOMAINS).digest()
    turned = made(tmp_path, DOMAINS, order=1)
    assert sorted(task.name for task in turned.tasks) == ["autumn", "spring", "winter"]


def test_the_documented_split(tmp_path: Path) -> None:
    write_data(tmp_path)
    scenario = made(tmp_path, SPLIT)
    assert [task.classes for task in scenario.tasks] == [("robin", "tit"), ("wren",)]
    assert [(len(task.train), len(task.test)) for task in scenario.tasks] == [(6, 2), (3, 1)]
    assert {task.train.images.shape[1:] for task in scenario.tasks} == {(64, 64, 3)}
    orders = {tuple(task.classes for task in made(tmp_path, SPLIT, order).tasks) for order in range(6)}
    assert len(orders) > 2


def test_a_class_too_small_to_be_tested_is_named(tmp_path: Path) -> None:
    labels = ("robin",) * 8 + ("tit",) * 8 + ("wren",)
    save_task(tmp_path / "few.npz", ImageDataset(np.zeros((17, 8, 8), np.uint8), labels))
    text = 'name = "few"\nkind = "class-incremental"\n[split]\nclasses_per_task = 1\ntrain = { npz = "few.npz" }\n'
    with pytest.raises(MalformedScenario, match="'wren' has no image to test on"):
        made(tmp_path, text)


def test_who_reads_a_file_may_want_fewer_images_than_it_says(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "scenario.toml").write_text(DOMAINS)
    fewer = scenario_from_file(tmp_path / "scenario.toml", images_per_class=3)
    assert len(fewer.tasks[0].train) == 9


def test_the_page_names_every_scenario_and_where_every_set_is_had() -> None:
    for name in SCENARIO_NAMES:
        assert f"`{name}`" in PAGE
    for name, home in HOMES.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | ") and home.url in line)
        assert home.size in row


def test_a_test_part_is_never_learned(tmp_path: Path) -> None:
    write_data(tmp_path)
    for scenario in (made(tmp_path, DOMAINS), made(tmp_path, SPLIT)):
        for task in scenario.tasks[1:]:
            learned = {image.tobytes() for image in task.train.images}
            assert not learned & {image.tobytes() for image in task.test.images}


TWO_TASKS = """
name = "x"
kind = "task-incremental"
[[task]]
name = "spring"
train = { folder = "spring/train" }
[[task]]
name = "winter"
train = { csv = "winter.csv" }
"""


def test_tasks_mean_their_own_by_a_name(tmp_path: Path) -> None:
    write_data(tmp_path)
    scenario = made(tmp_path, TWO_TASKS)
    assert [task.classes for task in scenario.tasks] == [
        tuple(f"{task}/{bird}" for bird in BIRDS) for task in ("spring", "winter")
    ]
    assert made(tmp_path, TWO_TASKS.replace("task-inc", "domain-inc")).classes == BIRDS


def test_image_files_are_read_once_into_a_cache_and_progress_is_told(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "scenario.toml").write_text(TWO_TASKS)
    reports: list[ReadingProgress] = []
    for _ in range(2):
        scenario = scenario_from_file(tmp_path / "scenario.toml", cache=tmp_path / "cache", on_progress=reports.append)
    assert [(report.source, report.total) for report in reports] == [("spring/train", 12), ("winter.csv", 12)]
    assert isinstance(scenario.tasks[0].train.images, np.memmap)
    plain = scenario_from_file(tmp_path / "scenario.toml")
    assert plain.digest() == scenario.digest()


def test_only_so_many_images_of_each_class_are_read(tmp_path: Path) -> None:
    write_data(tmp_path)
    scenario = made(tmp_path, f"images_per_class = 3\n{DOMAINS}")
    assert [(len(task.train), len(task.test)) for task in scenario.tasks] == [(9, 6), (9, 3), (6, 3)]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("pixels = 32", "pixel = 32", "pixel: no such entry; did you mean pixels"),
        ('name = "winter"', 'nme = "winter"', "task.3.nme: no such entry; did you mean name"),
        ("{ csv =", "{ cvs =", "task.3.train.cvs: no such entry; did you mean csv"),
        ("[[task]]", "[[tasks]]", "tasks: no such entry; did you mean task"),
        ("domain-incremental", "domains", "kind: "),
        ('kind = "domain-incremental"', "", "kind: "),
        ("pixels = 32", "pixels = 0", "pixels: "),
        ("pixels = 32", 'pixels = "32"', "pixels: "),
        ("held_out = 0.25", "held_out = 1.0", "held_out: "),
        ('{ csv = "winter.csv" }', "{}", "task.3.train: one of folder, npz and csv is wanted"),
        ('{ csv = "winter.csv" }', '{ csv = "winter.csv", npz = "autumn.npz" }', "task.3.train: one of folder"),
        ('name = "winter"', 'name = "spring"', "two tasks are named 'spring'"),
        ('name = "winter"', 'name = ""', "task.3.name: "),
        ("pixels = 32", "pixels = ", "cannot be read"),
        ("[[task]]", "[split]\nclasses_per_task = 2\n[[task]]", "split.train: "),
    ],
)
def test_what_a_file_may_not_say_is_refused(tmp_path: Path, old: str, new: str, match: str) -> None:
    write_data(tmp_path)
    assert old in DOMAINS
    count = 1 if "split" in new else -1
    with pytest.raises(MalformedScenario, match=re.escape(match)) as caught:
        made(tmp_path, DOMAINS.replace(old, new, count))
    assert caught.value.source == str(tmp_path / "scenario.toml")


def test_a_split_is_wrong_in_ways_of_its_own(tmp_path: Path) -> None:
    write_data(tmp_path)
    for old, new, match in (
        ("classes_per_task = 2", "classes_per_task = 0", "split.classes_per_task: "),
        ("classes_per_task", "class_per_task", "did you mean classes_per_task"),
        ("[split]", "[splits]", "did you mean split"),
    ):
        with pytest.raises(MalformedScenario, match=re.escape(match)):
            made(tmp_path, SPLIT.replace(old, new))
    with pytest.raises(MalformedScenario, match="either"):
        made(tmp_path, 'name = "x"\nkind = "class-incremental"')
    with pytest.raises(MalformedDataset, match="domains differ"):
        made(tmp_path, SPLIT.replace("class-inc", "domain-inc"))
    with pytest.raises(MalformedScenario, match="cannot be read"):
        scenario_from_file(tmp_path / "none.toml")


def test_images_of_several_sizes_ask_for_one(tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(MalformedScenario, match="say pixels"):
        made(tmp_path, DOMAINS.replace("pixels = 32", ""))


@pytest.mark.parametrize("missing", ["spring/train", "autumn.npz", "winter.csv"])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    write_data(tmp_path)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(MalformedDataset) as caught:
        made(tmp_path, DOMAINS)
    assert caught.value.source == str(tmp_path / missing)


@pytest.mark.parametrize(
    ("row", "shape", "first"),
    [
        ([0, 1, 2, 255], (2, 2), [[0, 1], [2, 255]]),
        (list(range(12)), (2, 2, 3), [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]),
    ],
)
def test_a_table_of_pixels_is_square_images(
    tmp_path: Path, row: list[int], shape: tuple[int, ...], first: list[object]
) -> None:
    header = [f"pixel{number}" for number in range(len(row))]
    lines = [[*header[:2], "label", *header[2:]], [*row[:2], "ankle boot", *row[2:]]]
    (tmp_path / "t.csv").write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n\n")
    images = load_csv(tmp_path / "t.csv", ReadingConfig())
    assert images.images.shape == (1, *shape)
    assert images.images[0].tolist() == first
    assert images.labels == ("ankle boot",)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "nothing, does not name"),
        ("a,b\n1,2\n", "a, b, does not name"),
        ("label,label,p\n1,2,3\n", "does not name"),
        ("label,p1\n", "no row"),
        ("label,p1\nx\n", "row 2 has 1 entries, where 2"),
        ("label,p1\n,3\n", "row 2 has no label"),
        ("label,p1\nx,3\ny,z\n", "row 3: "),
        ("label,p1\nx,256\n", "row 2: '256' in column 'p1'"),
        ("label,file\nx,a.png\n", "'a.png' in column 'file' is no pixel.* column path"),
        ("label,p1\nx,-1\n", "row 2: '-1'"),
        ("label,p1\nx,99999999999999999999999\n", "row 2"),
        ("label,p1\nx,1.5\n", "row 2: "),
        ("label,p1,p2\nx,1,2\n", "2 columns of pixels are no square"),
        ("label\nx\n", "0 columns of pixels"),
        ("label,path\nx,none.png\n", "none.png"),
        ("label,p1\nx,\0\n", "t.csv"),
        ("label,path\nx,\udcff\n", "cannot be read as a table"),
    ],
)
def test_a_damaged_table_is_refused_by_its_row(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(MalformedDataset, match=match):
        load_csv(tmp_path / "t.csv", ReadingConfig())
