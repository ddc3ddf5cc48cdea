"""Architectures as a mesh speaks of them: the form, without the number of classes, which each expert has its own of.

A form may come from anyone. What it says is believed only as far as the registry can build an architecture of it that
reads this mesh's features and answers for the classes beside it.
"""

from collections.abc import Mapping

import msgspec

from experts.architectures.base import Architecture
from experts.architectures.registry import architecture_from_config
from experts.errors import UnknownArchitecture
from protocol.spec import ExpertForm

__all__ = ["architecture_of", "chosen_form", "form_of", "successor_form"]

_SIZES: Mapping[str, Mapping[str, object]] = {
    "adapter": {"bottleneck": 4, "input_scale": 0.3},
    "conv": {"filters": 8, "input_scale": 2.0},
    "deep": {"hidden": 8, "layers": 2, "activation": "relu", "norm": "layer", "input_scale": 0.3},
    "linear": {"input_scale": 0.3},
    "mlp": {"hidden": 8, "input_scale": 0.3},
}
"""What a form of a built-in kind is if its founder says nothing else: sizes for two classes, the kinds' own scales."""


def architecture_of(form: ExpertForm, *, num_classes: int, feature_dim: int) -> Architecture:
    """The architecture of this form for so many classes.

    Args:
        feature_dim: D, the features that the mesh's trunk gives.

    Raises:
        UnknownArchitecture: There is none such on this machine, or it reads another number of features.
    """
    architecture = architecture_from_config({**form.config, "kind": form.kind, "num_classes": num_classes})
    # Not every installed kind says it, and one that does not would fail in the middle of a training run.
    reads = getattr(architecture, "feature_dim", None)
    if reads != feature_dim:
        told = "does not say how many features it reads" if reads is None else f"reads {reads} features"
        raise UnknownArchitecture(form.kind, reason=f"it {told}, the mesh's trunk gives {feature_dim}")
    return architecture


def form_of(architecture: Architecture) -> ExpertForm:
    """What a spec or an advert says of an architecture.

    Raises:
        UnknownArchitecture: Its config cannot be said there: it names no number of classes, or is too large or nested.
    """
    config = dict(sorted(architecture.to_config().items()))
    for name in ("kind", "num_classes"):
        if config.pop(name, None) is None:
            raise UnknownArchitecture(architecture.kind, reason=f"its config names no {name}")
    try:
        return msgspec.convert({"kind": architecture.kind, "config": config}, type=ExpertForm, strict=True)
    except msgspec.ValidationError as exc:
        raise UnknownArchitecture(architecture.kind, reason=f"no peer could be told of its config: {exc}") from exc


def chosen_form(
    kind: str, settings: Mapping[str, object], *, feature_dim: int, feature_map: tuple[int, int, int] | None
) -> ExpertForm:
    """The form that a mesh's founder asks for.

    Args:
        kind: Of the registry.
        settings: Of the kind, by name; those not given have their usual values if the kind is built in.
        feature_dim: D.
        feature_map: Channels, height and width that the trunk flattened; None if its features are no map.

    Raises:
        UnknownArchitecture: There is none such, or it does not fit the trunk.
    """
    if own := sorted({"kind", "num_classes"} & settings.keys()):
        raise UnknownArchitecture(kind, reason=f"{' and '.join(own)} cannot be chosen as a setting")
    usual = _SIZES.get(kind, {})
    # People write 1 for 1.0, which is another value to a config.
    given = {
        name: float(value) if isinstance(usual.get(name), float) and type(value) is int else value
        for name, value in settings.items()
    }
    if kind == "conv":
        if feature_map is not None:
            given = dict(zip(("channels", "height", "width"), feature_map, strict=True)) | given
    else:
        given = {"feature_dim": feature_dim} | given
    form = form_of(architecture_from_config({**usual, **given, "kind": kind, "num_classes": 1}))
    architecture_of(form, num_classes=1, feature_dim=feature_dim)
    return form


def successor_form(
    old: ExpertForm,
    kind: str,
    settings: Mapping[str, object],
    *,
    feature_dim: int,
    feature_map: tuple[int, int, int] | None,
) -> ExpertForm:
    """The form that an expert is to be carried over into.

    Args:
        old: The one that it has.
        kind: Of the registry.
        settings: Of the kind, by name; those not given are the old form's where it has some of these names, else as
            in `chosen_form`.
        feature_dim, feature_map: As for `chosen_form`.

    Raises:
        UnknownArchitecture: There is none such, or it does not fit the trunk.
    """
    # Of an installed kind no names are known before it is built of them.
    shared = old.config.keys() if kind == old.kind else old.config.keys() & _SIZES.get(kind, {}).keys()
    taken = {name: old.config[name] for name in shared}
    return chosen_form(kind, taken | dict(settings), feature_dim=feature_dim, feature_map=feature_map)
