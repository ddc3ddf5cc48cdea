"""Kinds that installed packages declare: found late, one at a time, and never in place of a built-in one."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from architecture_forms import SMALL

from experts.architectures import registry
from experts.architectures.base import MAX_PARAMETERS
from experts.architectures.registry import ENTRY_POINT_GROUP, architecture_from_config
from experts.checkpoint import flat_parameters
from experts.errors import UnknownArchitecture

Install = Callable[[str, dict[str, str], str], None]

SQUARES = '''
from experts.architectures.base import Architecture
from experts.architectures.linear import LinearArchitecture
from experts.errors import UnknownArchitecture


class Squares(Architecture):
    """Linear, in a package of its own."""

    kind = "squares"

    def __init__(self, size):
        self.size = size

    @property
    def num_parameters(self):
        return self.size**2 + self.size

    @property
    def flops_per_sample(self):
        return 2 * self.size**2

    def to_config(self):
        return {"kind": self.kind, "size": self.size}

    @classmethod
    def from_config(cls, config):
        if config.keys() != {"kind", "size"} or type(config["size"]) is not int or config["size"] < 1:
            raise UnknownArchitecture(cls.kind, reason="size")
        return cls(config["size"])

    def build(self, seed):
        return LinearArchitecture(feature_dim=self.size, num_classes=self.size).build(seed)


class Other(Squares):
    kind = "other"


class Unfinished(Architecture):
    kind = "unfinished"


def function(config):
    raise AssertionError("code that a peer named ran")
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module, named mesh_*, for the length of a test: as pip does, by its metadata."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._declared.cache_clear()

    def install_package(package: str, declares: dict[str, str], source: str) -> None:
        (tmp_path / f"{package}.py").write_text(source)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{kind} = {package}:{attribute}" for kind, attribute in declares.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines, ""]))

    yield install_package
    registry._declared.cache_clear()
    for name in [name for name in sys.modules if name.startswith("mesh_")]:
        del sys.modules[name]


def test_a_declared_kind_is_built_like_any_other(install: Install) -> None:
    install("mesh_squares", {"squares": "Squares"}, SQUARES)
    architecture = architecture_from_config({"kind": "squares", "size": 3})
    assert architecture.to_config() == {"kind": "squares", "size": 3}
    assert flat_parameters(architecture.build("uid")).numel() == architecture.num_parameters
    assert len(architecture.digest()) == 64


@pytest.mark.parametrize("config", [{}, {"size": None}, {"size": "3"}, {"size": 0}])
def test_an_installed_kind_that_stumbles_over_a_config_refuses_it(install: Install, config: dict[str, object]) -> None:
    careless = SQUARES.replace("if config.keys()", "if False and config.keys()").replace(
        "self.size**2 +", "1 // self.size +"
    )
    install("mesh_squares", {"squares": "Squares"}, careless)
    assert architecture_from_config({"kind": "squares", "size": 3}).num_parameters == 3
    with pytest.raises(UnknownArchitecture, match="squares"):
        architecture_from_config({"kind": "squares", **config})


def test_a_built_in_kind_looks_at_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(**_: str) -> None:
        raise AssertionError("packages were looked at")

    registry._declared.cache_clear()
    monkeypatch.setattr(importlib.metadata, "entry_points", forbidden)
    for architecture in SMALL.values():
        assert architecture_from_config(architecture.to_config()) == architecture
    with pytest.raises(AssertionError):
        architecture_from_config({"kind": "unheard-of"})


def test_only_the_package_that_declares_the_kind_is_imported(install: Install) -> None:
    install("mesh_squares", {"squares": "Squares"}, SQUARES)
    install("mesh_broken", {"broken": "Broken"}, "raise AssertionError('imported')")
    architecture_from_config({"kind": "squares", "size": 2})
    assert "mesh_squares" in sys.modules
    assert "mesh_broken" not in sys.modules


def test_packages_are_looked_at_once_however_many_unknown_kinds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        looked.append(group)
        return []

    registry._declared.cache_clear()
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    for number in range(5):
        with pytest.raises(UnknownArchitecture):
            architecture_from_config({"kind": f"kind-{number}"})
    registry._declared.cache_clear()
    assert looked == [ENTRY_POINT_GROUP]


def test_an_unknown_kind_is_refused_with_those_that_are_known(install: Install) -> None:
    install("mesh_squares", {"squares": "Squares"}, SQUARES)
    with pytest.raises(UnknownArchitecture) as caught:
        architecture_from_config({"kind": "cubes"})
    assert caught.value.kind == "cubes"
    assert caught.value.reason == "known kinds: adapter, conv, deep, linear, mlp, squares"


def test_a_kind_that_shadows_a_built_in_one_is_refused_with_its_package(install: Install) -> None:
    install("mesh_shadow", {"mlp": "Squares", "squares": "Squares"}, SQUARES)
    mlp = SMALL["mlp"]
    assert architecture_from_config(mlp.to_config()) == mlp
    with pytest.raises(UnknownArchitecture, match="package mesh_shadow would shadow a built-in kind") as caught:
        architecture_from_config({"kind": "squares", "size": 3})
    assert caught.value.kind == "mlp"
    assert "mesh_shadow" not in sys.modules


def test_a_kind_that_two_packages_declare_is_refused_with_both(install: Install) -> None:
    install("mesh_one", {"squares": "Squares"}, SQUARES)
    install("mesh_two", {"squares": "Squares"}, SQUARES)
    with pytest.raises(UnknownArchitecture, match="package mesh_one, mesh_two declare it more than once"):
        architecture_from_config({"kind": "squares", "size": 3})


@pytest.mark.parametrize(
    ("kind", "attribute", "reason"),
    [
        ("squares", "Missing", "package mesh_squares cannot be imported"),
        ("squares", "function", "mesh_squares:function of package mesh_squares is no architecture"),
        ("unfinished", "Unfinished", "is no architecture"),
        ("squares", "Other", "mesh_squares:Other of package mesh_squares is not of this kind"),
        ("squares", "LinearArchitecture", "is not of this kind"),
    ],
)
def test_a_declaration_of_something_else_is_refused(install: Install, kind: str, attribute: str, reason: str) -> None:
    install("mesh_squares", {kind: attribute}, SQUARES)
    with pytest.raises(UnknownArchitecture, match=reason) as caught:
        architecture_from_config({"kind": kind, "size": 3})
    assert caught.value.kind == kind


def test_a_package_that_lacks_something_is_refused_with_what_it_lacks(install: Install) -> None:
    install("mesh_lacking", {"squares": "Squares"}, "import surely_not_installed")
    with pytest.raises(UnknownArchitecture, match="No module named 'surely_not_installed'"):
        architecture_from_config({"kind": "squares", "size": 3})


def test_a_declared_kind_is_held_to_its_own_config_and_to_the_limit(install: Install) -> None:
    install("mesh_squares", {"squares": "Squares"}, SQUARES)
    with pytest.raises(UnknownArchitecture, match="size"):
        architecture_from_config({"kind": "squares", "size": -1})
    assert architecture_from_config({"kind": "squares", "size": 3999}).num_parameters <= MAX_PARAMETERS
    with pytest.raises(UnknownArchitecture, match=f"more than {MAX_PARAMETERS} parameters"):
        architecture_from_config({"kind": "squares", "size": 4000})


@pytest.mark.parametrize("kind", ["os.system", "mesh_squares:function", "../squares", "", "\x00", "[x]"])
def test_a_config_names_a_kind_and_never_code(install: Install, kind: str) -> None:
    install("mesh_squares", {"squares": "Squares"}, SQUARES)
    with pytest.raises(UnknownArchitecture):
        architecture_from_config({"kind": kind})
    assert "mesh_squares" not in sys.modules
