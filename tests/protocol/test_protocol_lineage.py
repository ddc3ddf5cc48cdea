"""A lineage has one byte form, tells a chain, and believes no byte that says otherwise."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import MalformedLineage
from protocol.identifiers import digest_of, peer_id_of
from protocol.lineage import (
    Accuracy,
    LayerTransfer,
    Lineage,
    Source,
    Succession,
    TransferMethod,
    decode_lineage,
    encode_lineage,
    lineage_of,
)
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm

OLD, NEW, NEWEST, WEIGHTS = (digest_of(name) for name in (b"old", b"new", b"newest", b"weights"))
MLP = ExpertForm("mlp", {"feature_dim": 640, "hidden": 8, "input_scale": 0.3})
LINEAR = ExpertForm("linear", {"feature_dim": 640, "input_scale": 0.3})
LAYER = LayerTransfer(
    name="hidden",
    source="hidden",
    old_units=8,
    new_units=16,
    mapped=8,
    duplicated=8,
    merged=0,
    dropped=0,
    importance_kept=1.0,
)
STEP = Succession(
    parent=OLD,
    parent_form=LINEAR,
    parent_weights=WEIGHTS,
    uid=NEW,
    form=MLP,
    classes=("cat", "dog"),
    weights=WEIGHTS,
    method=TransferMethod(similarity="role", score="empirical", beta=0.5, refit=True, distillation_steps=10),
    layers=(LAYER,),
    accuracy=Accuracy(old=0.75, new=1.0, samples=40),
    made_at=1_700_000_000.5,
    peer_id=peer_id_of(b"key"),
)
LINEAGE = Lineage((STEP,))
NEXT = msgspec.structs.replace(STEP, parent=NEW, parent_form=MLP, uid=NEWEST, form=LINEAR, accuracy=None)
ADVERT = ExpertAdvert(
    uid=NEW,
    form=MLP,
    classes=("cat", "dog"),
    since=5.0,
    round=2,
    generation=3,
    weights=WEIGHTS,
    ancestors=(OLD,),
    lineage=digest_of(encode_lineage(LINEAGE)),
)

shares, counters = st.floats(0, 1), st.integers(0, limits.MAX_COUNTER)
words, layer_names = st.text(min_size=1, max_size=32), st.text(min_size=1, max_size=64)
layers = st.builds(
    LayerTransfer,
    name=layer_names,
    source=st.none() | layer_names,
    old_units=counters,
    new_units=counters,
    mapped=counters,
    duplicated=counters,
    merged=counters,
    dropped=counters,
    importance_kept=shares,
)
steps = st.builds(
    Succession,
    parent=st.just(OLD),
    parent_form=st.just(LINEAR),
    parent_weights=st.binary(max_size=4).map(digest_of),
    uid=st.binary(max_size=4).map(digest_of),
    form=st.just(MLP),
    classes=st.lists(words, min_size=1, max_size=4, unique=True).map(lambda names: tuple(sorted(names))),
    weights=st.just(WEIGHTS),
    method=st.builds(
        TransferMethod,
        similarity=words,
        score=words,
        beta=shares,
        refit=st.booleans(),
        distillation_steps=counters,
    ),
    layers=st.lists(layers, max_size=3).map(tuple),
    accuracy=st.none() | st.builds(Accuracy, old=shares, new=shares, samples=st.integers(1, limits.MAX_COUNTER)),
    made_at=st.floats(0, limits.MAX_MOMENT_S),
    peer_id=st.just(STEP.peer_id),
)


@given(steps)
def test_a_lineage_survives_and_has_one_byte_form(step):
    data = encode_lineage(Lineage((step,)))
    assert decode_lineage(data) == Lineage((step,))
    assert encode_lineage(decode_lineage(data)) == data


def test_the_bytes_are_those_of_the_first_version():
    assert encode_lineage(LINEAGE) == (
        b'{"schema":"modulemesh.lineage/1","steps":[{"accuracy":{"new":1.0,"old":0.75,"samples":40},'
        b'"classes":["cat","dog"],'
        b'"form":{"config":{"feature_dim":640,"hidden":8,"input_scale":0.3},"kind":"mlp"},'
        b'"layers":[{"dropped":0,"duplicated":8,"importance_kept":1.0,"mapped":8,"merged":0,"name":"hidden",'
        b'"new_units":16,"old_units":8,"source":"hidden"}],"made_at":1700000000.5,'
        b'"method":{"beta":0.5,"distillation_steps":10,"refit":true,"score":"empirical","similarity":"role"},'
        b'"parent":"' + OLD.encode() + b'",'
        b'"parent_form":{"config":{"feature_dim":640,"input_scale":0.3},"kind":"linear"},'
        b'"parent_weights":"' + WEIGHTS.encode() + b'",'
        b'"peer_id":"' + STEP.peer_id.encode() + b'",'
        b'"uid":"' + NEW.encode() + b'",'
        b'"weights":"' + WEIGHTS.encode() + b'"}]}'
    )


def test_a_further_step_makes_the_one_before_an_ancestor():
    longer = LINEAGE.then(NEXT)
    assert (longer.ancestors, longer.last) == ((OLD, NEW), NEXT)
    assert decode_lineage(encode_lineage(longer)) == longer
    with pytest.raises(ValueError, match="each step's parent"):
        LINEAGE.then(STEP)


def test_a_whole_number_is_written_as_the_fraction_that_is_meant():
    whole = msgspec.structs.replace(STEP, made_at=1, accuracy=Accuracy(old=0, new=1, samples=1))
    data = encode_lineage(Lineage((whole,)))
    assert b'"made_at":1.0' in data
    assert decode_lineage(data) == Lineage((whole,))


def test_the_longest_lineage_of_a_usual_expert_fits():
    classes = tuple(sorted(f"a class of this length {number:02}" for number in range(20)))
    uids = [digest_of(bytes([number])) for number in range(limits.MAX_LINEAGE + 1)]
    chain = tuple(
        msgspec.structs.replace(
            STEP, parent=before, parent_form=MLP, uid=after, form=MLP, classes=classes, layers=(LAYER,) * 2
        )
        for before, after in itertools.pairwise(uids)
    )
    data = encode_lineage(Lineage(chain))
    assert decode_lineage(data).ancestors == tuple(uids[:-1])
    with pytest.raises(MalformedLineage):
        encode_lineage(Lineage(chain).then(msgspec.structs.replace(chain[0], parent=uids[-1], uid=NEWEST)))


def test_a_lineage_beyond_the_limit_is_neither_written_nor_read():
    wide = msgspec.structs.replace(STEP, classes=tuple(sorted(f"{number:03}" + "é" * 61 for number in range(256))))
    chain = [msgspec.structs.replace(wide, parent_form=MLP)]
    while len(chain) < 8:
        uid = digest_of(bytes([len(chain)]))
        chain.append(msgspec.structs.replace(chain[0], parent=chain[-1].uid, uid=uid))
    with pytest.raises(MalformedLineage, match="bytes, at most"):
        encode_lineage(Lineage(tuple(chain)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], "modulemesh.lineage/2"),
        (["schema"], 1),
        (["steps"], []),
        (["steps", 0, "parent"], "abc"),
        (["steps", 0, "uid"], NEW.upper()),
        (["steps", 0, "weights"], None),
        (["steps", 0, "peer_id"], "12D3Koo"),
        (["steps", 0, "classes"], []),
        (["steps", 0, "classes"], ["dog", "cat"]),
        (["steps", 0, "classes"], ["cat", "cat"]),
        (["steps", 0, "form", "kind"], ""),
        (["steps", 0, "form", "config"], {"a": [1]}),
        (["steps", 0, "parent_form", "config"], {"num_classes": 2}),
        (["steps", 0, "method", "beta"], 1.5),
        (["steps", 0, "method", "beta"], -0.5),
        (["steps", 0, "method", "refit"], 1),
        (["steps", 0, "method", "similarity"], ""),
        (["steps", 0, "method", "score"], "x" * 33),
        (["steps", 0, "method", "distillation_steps"], -1),
        (["steps", 0, "method", "rounds"], 1),
        (["steps", 0, "layers", 0, "importance_kept"], 1.01),
        (["steps", 0, "layers", 0, "mapped"], 2**53),
        (["steps", 0, "layers", 0, "name"], "x" * 65),
        (["steps", 0, "layers"], [json.loads(msgspec.json.encode(LAYER))] * (limits.MAX_LAYERS_PER_SUCCESSION + 1)),
        (["steps", 0, "accuracy", "old"], 2.0),
        (["steps", 0, "accuracy", "samples"], 0),
        (["steps", 0, "made_at"], -1.0),
        (["steps", 0, "made_at"], 1e12),
        (["steps", 0, "note"], "hello"),
        (["note"], "hello"),
    ],
)
def test_what_is_out_of_its_range_or_unknown_is_refused(path, value):
    document = json.loads(encode_lineage(LINEAGE))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(MalformedLineage):
        decode_lineage(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "change",
    [{"parent": OLD}, {"parent_form": LINEAR}, {"classes": ("cat", "cow")}],
    ids=["another parent", "a parent of another form", "other classes"],
)
def test_steps_that_do_not_follow_on_one_another_are_refused(change):
    document = json.loads(encode_lineage(LINEAGE))
    after = json.loads(msgspec.json.encode(msgspec.structs.replace(NEXT, **change)))
    document["steps"].append(after)
    with pytest.raises(MalformedLineage, match="each step's parent"):
        decode_lineage(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_one_that_is_written_in_another_way_is_refused():
    data = encode_lineage(LINEAGE)
    for other in (data + b" ", json.dumps(json.loads(data)).encode(), data.replace(b"0.75", b"7.5e-1")):
        with pytest.raises(MalformedLineage, match="canonical"):
            decode_lineage(other)


@given(st.one_of(st.binary(max_size=100), st.integers(0, 3000).map(lambda depth: b"[" * depth)))
def test_garbage_is_refused(data):
    with pytest.raises(MalformedLineage):
        decode_lineage(data)


@given(st.integers(0, len(encode_lineage(LINEAGE)) - 1), st.integers(0, 255))
def test_damaged_bytes_are_refused_or_are_another_lineage(place, byte):
    data = bytearray(encode_lineage(LINEAGE))
    data[place] = byte
    try:
        lineage = decode_lineage(bytes(data))
    except MalformedLineage:
        return
    assert encode_lineage(lineage) == data


@pytest.mark.parametrize(
    "change",
    [
        {"uid": OLD},
        {"form": LINEAR},
        {"classes": ("cat", "cow")},
        {"ancestors": (NEWEST,)},
        {"ancestors": (NEWEST, OLD)},
        {"lineage": WEIGHTS},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_lineage_of_another_expert_is_refused(change):
    data = encode_lineage(LINEAGE)
    assert lineage_of(ADVERT, data) == LINEAGE
    with pytest.raises(MalformedLineage):
        lineage_of(msgspec.structs.replace(ADVERT, **change), data)


SOURCE = Source(uid=NEWEST, form=LINEAR, classes=("ant", "cat"), weights=WEIGHTS)
BEGUN = msgspec.structs.replace(STEP, parent_form=MLP, source=SOURCE)


def test_an_expert_that_began_as_another_one_names_it_and_has_it_for_no_ancestor():
    lineage = Lineage((BEGUN,))
    data = encode_lineage(lineage)
    assert decode_lineage(data) == lineage
    assert lineage.ancestors == (OLD,)
    assert json.loads(data)["steps"][0]["source"] == {
        "classes": ["ant", "cat"],
        "form": {"config": {"feature_dim": 640, "input_scale": 0.3}, "kind": "linear"},
        "uid": NEWEST,
        "weights": WEIGHTS,
    }
    further = lineage.then(NEXT)
    assert decode_lineage(encode_lineage(further)) == further


PLAIN_SOURCE = msgspec.to_builtins(SOURCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"parent_form": msgspec.to_builtins(LINEAR)},
        {"source": PLAIN_SOURCE | {"uid": OLD}},
        {"source": PLAIN_SOURCE | {"uid": NEW}},
        {"source": PLAIN_SOURCE | {"classes": ["cat", "ant"]}},
        {"source": PLAIN_SOURCE | {"accuracy": 1.0}},
        {"source": None},
    ],
)
def test_a_beginning_that_is_none_is_refused(changes):
    document = json.loads(encode_lineage(Lineage((BEGUN,))))
    document["steps"][0] |= changes
    with pytest.raises(MalformedLineage):
        decode_lineage(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_what_has_learned_already_cannot_begin_as_another_one():
    back = msgspec.structs.replace(NEXT, form=MLP, source=msgspec.structs.replace(SOURCE, uid=WEIGHTS))
    with pytest.raises(ValueError, match="only the first step"):
        Lineage((STEP, back))
