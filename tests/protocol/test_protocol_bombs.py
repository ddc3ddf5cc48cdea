"""MessagePack that is made to hurt its reader is refused, or passed over, without a crash and without memory for it.

Depth: a reader that recurses overflows its stack. Extension types: nested ones crash a plain hivemind node. Lengths: a
reader that believes four bytes sets aside gigabytes.
"""

import resource
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from functools import partial

import msgpack
import pytest
from msgspec import inspect

from protocol.codec import decode_as
from protocol.errors import MalformedMessage
from protocol.framing import Announced
from protocol.messages import Ack, Message
from protocol.records import PeerRecord, RouterContribution
from protocol.records.contributions import _INDEX
from protocol.signing import Signed

ERROR = b"\x84\xa4type\xa5error\xa4code\xa0\xa7message\xa0\xa4data"
FRAME = b"\x82\xa7message\x81\xa4type\xa3ack\xa7tensors"

PLACES = {
    "alone": b"",
    "tag": b"\x81\xa4type",
    "a key": b"\x82\xa4type\xa3ack",
    "an unknown key's value": b"\x82\xa4type\xa3ack\xa7novelty",
    "data": ERROR,
    "a key of data": ERROR + b"\x81",
    "a value of data": ERROR + b"\x81\xa1x",
    "an item of a list of data": ERROR + b"\x81\xa1x\x91",
    "text": b"\x82\xa4type\xa5hello\xa7mesh_id",
    "list": b"\x82\xa4type\xa7forward\xa7experts",
    "an item of a list": b"\x82\xa4type\xa7forward\xa7experts\x91",
    "a list of unions": b"\x82\xa4type\xadforward_reply\xa7answers",
    "struct as an array": b"\x82\xa4type\xb3round_outcome_query\xa5round",
    "number": b"\x82\xa4type\xa8blob_get\xa6offset",
}
"""What stands before the harm, as far as that is still a message."""

FRAME_PLACES = {
    "message": FRAME[:9],
    "tensors": FRAME,
    "a header": FRAME + b"\x91",
    "name": FRAME + b"\x91\x93",
    "dtype": FRAME + b"\x91\x93\xa1x",
    "shape": FRAME + b"\x91\x93\xa1x\xa5uint8",
    "a dimension": FRAME + b"\x91\x93\xa1x\xa5uint8\x91",
}

ANYWHERE = [(before, Message) for before in PLACES.values()] + [(before, Announced) for before in FRAME_PLACES.values()]
NAMES = [*PLACES, *FRAME_PLACES]

CLAIMS = {
    "array": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "string": b"\xdb\xff\xff\xff\xff",
    "binary": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
}
"""Each says that 2^32 - 1 items or bytes follow."""

EXTENSIONS = {
    "empty": msgpack.packb(msgpack.ExtType(1, b"")),
    "one byte": msgpack.packb(msgpack.ExtType(1, b"x")),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "timestamp of 96 bits": msgpack.packb(msgpack.Timestamp(2**40, 1)),
}

# Whatever the limit of a message is, the decoder itself has to bear these.
decode = partial(decode_as, max_bytes=10**6)


def nested_extensions(num_bytes: int) -> bytes:
    bomb = b"\x00"
    while len(bomb) < num_bytes:
        bomb = msgpack.packb(msgpack.ExtType(0x50, bomb))
    return bomb


def peak_bytes_of_refusing(data: bytes, wanted: type) -> int:
    with pytest.raises(MalformedMessage):
        decode(b"", wanted)  # the first refusal in a process makes what is kept for all that follow
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(data, wanted)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("levels", [3, 100, 2_000, 60_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\x92\x00"], ids=["arrays", "maps", "pairs"])
@pytest.mark.parametrize(("before", "wanted"), ANYWHERE, ids=NAMES)
def test_deep_nesting_is_refused_wherever_it_stands_and_ignored_at_most_where_nobody_looks(
    before, wanted, opening, levels
):
    bomb = before + opening * levels + b"\x00"
    if before == PLACES["an unknown key's value"] and levels <= 100:
        assert decode(bomb, wanted) == Ack()
    else:
        with pytest.raises(MalformedMessage):
            decode(bomb, wanted)


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize(("before", "wanted"), ANYWHERE, ids=NAMES)
def test_no_extension_type_gets_in_even_where_any_value_may_stand(before, wanted, extension):
    if before == PLACES["an unknown key's value"]:
        assert decode(before + extension, wanted) == Ack()
    else:
        with pytest.raises(MalformedMessage):
            decode(before + extension, wanted)


@pytest.mark.parametrize(("before", "wanted"), ANYWHERE, ids=NAMES)
def test_the_extension_bomb_that_crashes_a_plain_node_is_never_opened(before, wanted):
    bomb = before + nested_extensions(60_000)
    if before == PLACES["an unknown key's value"]:
        assert decode(bomb, wanted) == Ack()
    else:
        assert peak_bytes_of_refusing(bomb, wanted) < 16 * 1024


@pytest.mark.parametrize("following", [b"", b"\x00" * 1000], ids=["nothing", "zeros"])
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize(("before", "wanted"), ANYWHERE, ids=NAMES)
def test_a_length_beyond_the_data_is_refused_without_memory_for_it(before, wanted, claim, following):
    assert peak_bytes_of_refusing(before + claim + following, wanted) < 16 * 1024


def children(of: inspect.Type) -> list[inspect.Type]:
    """The types of what stands in a value of this type; fails where that may be anything, or any number of things."""
    assert not isinstance(of, inspect.AnyType | inspect.RawType | inspect.ExtType | inspect.CustomType)
    match of:
        case inspect.StructType(fields=fields):
            return [field.type for field in fields]
        case inspect.UnionType(types=types):
            return list(types)
        case inspect.Metadata(type=inner):
            return [inner]
        case inspect.DictType(key_type=key, value_type=value, max_length=max_length):
            assert max_length is not None
            return [key, value]
        case inspect.CollectionType(item_type=item, max_length=max_length):
            assert max_length is not None
            return [item]
    return []


@pytest.mark.parametrize(
    "wanted", [Announced, Message, PeerRecord, RouterContribution, Signed, _INDEX], ids=lambda wanted: str(wanted)[:40]
)
def test_no_type_that_is_decoded_takes_any_value_or_any_number_of_them(wanted):
    waiting = [inspect.type_info(wanted)]
    for known in waiting:
        waiting += [child for child in children(known) if child not in waiting]
    assert len(waiting) > 1


def bombs() -> list[tuple[bytes, type]]:
    harm = [*CLAIMS.values(), *(claim + bytes(1000) for claim in CLAIMS.values()), nested_extensions(60_000)]
    harm += [opening * 300_000 + b"\x00" for opening in (b"\x91", b"\x81\xa1a", b"\x92\x00", b"\x81\xc4\x00")]
    return [(before + each, wanted) for before, wanted in ANYWHERE for each in harm]


def test_a_process_with_little_memory_and_a_small_stack_survives_them_all():
    survived = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=60, check=False)
    assert survived.returncode == 0, survived.stderr
    assert survived.stdout.split() == [str(len(bombs()))] * 2


def main() -> None:
    """Refuse every bomb, or ignore it, within 64 MiB more than there are and a stack of 1 MiB."""
    examples = bombs()
    with open("/proc/self/statm") as statm:
        used_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2**26, used_bytes + 2**26))
    resource.setrlimit(resource.RLIMIT_STACK, (2**20, 2**20))
    survived = 0
    for data, wanted in examples:
        with suppress(MalformedMessage):
            decode(data, wanted)
        survived += 1
    print(len(examples), survived)


if __name__ == "__main__":
    main()
