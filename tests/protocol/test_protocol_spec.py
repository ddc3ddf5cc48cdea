"""A spec has one byte form, and its digest is the mesh."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import MalformedSpec
from protocol.identifiers import digest_of
from protocol.spec import (
    ExpertForm,
    ImageInput,
    MeshSpec,
    RouterSettings,
    decode_spec,
    encode_spec,
    mesh_id_of,
)

SPEC = MeshSpec(
    name="digits",
    input=ImageInput(1, 32),
    trunk=digest_of(b"trunk"),
    feature_dim=640,
    expert=ExpertForm("mlp", {"feature_dim": 640, "hidden": 8, "input_scale": 0.3}),
    calibration="task 1, 400 images",
)

numbers = st.integers(-limits.MAX_COUNTER, limits.MAX_COUNTER) | st.floats(-1e9, 1e9)
configs = st.dictionaries(
    st.text(max_size=32).filter(lambda name: name not in ("kind", "num_classes")),
    st.booleans() | numbers | st.text(max_size=32),
    max_size=16,
)
forms = st.builds(
    ExpertForm, st.text(min_size=1, max_size=32), configs.map(lambda config: dict(sorted(config.items())))
)
specs = st.builds(
    MeshSpec,
    name=st.text(min_size=1, max_size=64),
    input=st.builds(ImageInput, st.integers(1, 16), st.integers(1, 1024)),
    trunk=st.binary(max_size=4).map(digest_of),
    feature_dim=st.integers(1, 65_536),
    router=st.builds(
        RouterSettings,
        kappa=st.floats(1e-6, 1e6),
        tau=st.floats(1e-6, 1e6),
        top_k=st.integers(1, 64),
        ridge=st.floats(1e-9, 1),
        prior=st.sampled_from(["uniform", "empirical"]),
        renormalise=st.booleans(),
    ),
    expert=forms,
    expert_budget=st.just(msgspec.UNSET) | st.integers(1, limits.MAX_COUNTER),
    moe_width=st.integers(1, limits.MAX_CLASSES_PER_EXPERT),
    calibration=st.text(max_size=200),
)


@given(specs)
def test_a_spec_survives_and_has_one_byte_form(spec):
    data = encode_spec(spec)
    assert decode_spec(data) == spec
    assert encode_spec(decode_spec(data)) == data


def test_the_defaults_are_those_of_the_method():
    assert SPEC.router == RouterSettings(kappa=10.0, tau=1.0, top_k=1, ridge=1e-4, prior="uniform", renormalise=False)
    assert (SPEC.input.kind, SPEC.router.kind) == ("image", "ridge")
    assert SPEC.moe_width == 32


def test_the_bytes_are_canonical_json_and_the_mesh_is_their_digest():
    data = encode_spec(SPEC)
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(data)["input"] == {"kind": "image", "channels": 1, "pixels": 32}
    assert mesh_id_of(data) == digest_of(data)
    renamed = msgspec.structs.replace(SPEC, calibration="another set")
    assert mesh_id_of(encode_spec(renamed)) != mesh_id_of(data)


def test_a_norm_for_noised_statistics_is_part_of_a_spec_only_where_there_is_one():
    assert b"statistics_norm" not in encode_spec(SPEC)
    assert mesh_id_of(encode_spec(SPEC)) == "baa64e458e02efc1e824772ed702dd28e57cd6ab17a8c430e03b3e4cbc5b413d"
    noised = msgspec.structs.replace(SPEC, statistics_norm=8.0)
    assert json.loads(encode_spec(noised))["statistics_norm"] == 8.0
    assert decode_spec(encode_spec(noised)) == noised
    assert mesh_id_of(encode_spec(noised)) != mesh_id_of(encode_spec(SPEC))


def test_a_budget_for_experts_is_part_of_a_spec_only_where_there_is_one():
    assert b"expert_budget" not in encode_spec(SPEC)
    within = msgspec.structs.replace(SPEC, expert_budget=12_483)
    data = encode_spec(within)
    assert decode_spec(data) == within
    assert data == encode_spec(SPEC).replace(
        b',"feature_dim":640,"input"', b',"expert_budget":12483,"feature_dim":640,"input"'
    )
    assert mesh_id_of(data) == "798d60add84a3c9c7b7fffef049933a99be5ab1512aa6761218c5b1bbdd27244"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["expert_budget"], 0),
        (["expert_budget"], None),
        (["expert_budget"], 1.5),
        (["expert_budget"], 2**53),
        (["statistics_norm"], 0),
        (["statistics_norm"], None),
        (["schema"], "modulemesh.spec/2"),
        (["schema"], 2),
        (["name"], ""),
        (["trunk"], "abc"),
        (["feature_dim"], 0),
        (["feature_dim"], 1.5),
        (["input", "kind"], "tokens"),
        (["input", "channels"], 0),
        (["input", "pixels"], 5000),
        (["router", "kind"], "mlp"),
        (["router", "tau"], 0),
        (["router", "kappa"], -1),
        (["router", "top_k"], 0),
        (["router", "ridge"], 1e300),
        (["router", "prior"], "flat"),
        (["expert", "kind"], ""),
        (["expert", "hidden"], 8),
        (["expert", "config"], {"a": float("inf")}),
        (["expert", "config"], {"a": [1]}),
        (["expert", "config"], {"a": None}),
        (["expert", "config"], {"a": 2**53}),
        (["expert", "config"], {"a": "x" * 33}),
        (["expert", "config"], {"x" * 33: 1}),
        (["expert", "config"], {"b": 1, "a": 1}),
        (["expert", "config"], {"num_classes": 2}),
        (["expert", "config"], {f"{number:02}": number for number in range(17)}),
        (["moe_width"], 0),
        (["moe_width"], limits.MAX_CLASSES_PER_EXPERT + 1),
        (["moe_width"], 8.5),
        (["novelty"], 1),
        (["router", "novelty"], 1),
        (["calibration"], "x" * 3000),
    ],
)
def test_a_setting_out_of_its_range_or_unknown_is_refused(path, value):
    document = json.loads(encode_spec(SPEC))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(MalformedSpec):
        decode_spec(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change", [{"feature_dim": -1}, {"router": RouterSettings(tau=0.0)}, {"calibration": "x" * 20_000}]
)
def test_a_spec_that_nobody_could_read_is_not_written(change):
    with pytest.raises(MalformedSpec):
        encode_spec(msgspec.structs.replace(SPEC, **change))


@given(st.one_of(st.binary(max_size=100), st.integers(0, 3000).map(lambda depth: b"[" * depth)))
def test_garbage_is_refused(data):
    with pytest.raises(MalformedSpec):
        decode_spec(data)


def test_a_setting_missing_is_refused():
    document = json.loads(encode_spec(SPEC))
    del document["trunk"]
    with pytest.raises(MalformedSpec):
        decode_spec(json.dumps(document).encode())
    with pytest.raises(MalformedSpec):
        decode_spec(b" " * (limits.MAX_SPEC_BYTES + 1))


def test_a_spec_of_an_earlier_version_is_named_as_such():
    document = json.loads(encode_spec(SPEC)) | {"schema": "modulemesh.spec/2", "moe_width": "wide"}
    with pytest.raises(MalformedSpec, match=r"'modulemesh\.spec/2', this version reads 'modulemesh\.spec/3'"):
        decode_spec(json.dumps(document).encode())


def test_whole_numbers_and_others_stay_apart_in_a_form():
    """1 and 1.0 are two configs, of which an architecture takes one."""
    spec = msgspec.structs.replace(SPEC, expert=ExpertForm("k", {"a": 1, "b": 1.0, "c": True}))
    config = decode_spec(encode_spec(spec)).expert.config
    assert [type(config[name]) for name in "abc"] == [int, float, bool]
