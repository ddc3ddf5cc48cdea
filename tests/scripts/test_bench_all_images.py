"""The benchmark of the router alone on all images: what it is held against."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_all_images import AT_LEAST, all_images_targets


def test_each_trunk_has_its_own_bound() -> None:
    figures = {name: {"accuracy": least + 0.05} for name, least in AT_LEAST.items()}
    assert all(target["met"] for target in all_images_targets(figures).values())
    for name in AT_LEAST:
        lower = {**figures, name: {"accuracy": AT_LEAST[name] - 0.05}}
        assert [of for of, target in all_images_targets(lower).items() if not target["met"]] == [name]
