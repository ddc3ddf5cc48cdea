"""Partial blobs: what was appended is there after a kill, and no more of them are kept than there is room for."""

import os
import time
from pathlib import Path

import pytest

from meshnode.state import partials
from meshnode.state.blobs import BlobStore
from protocol.errors import MalformedIdentifier
from protocol.identifiers import Digest, digest_of

DATA = bytes(range(256)) * 300
DIGEST = digest_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def pieces(*spans: tuple[int, int]) -> list[memoryview]:
    return [memoryview(DATA)[begin:end] for begin, end in spans]


def leave(store: BlobStore, data: bytes, *, touched_at: float) -> Path:
    partial = store.partials.open(digest_of(data))
    partial.append([memoryview(data)])
    store.partials.close(partial)
    os.utime(partial.path, (touched_at, touched_at))
    return partial.path


def test_what_was_appended_is_gone_on_with_by_the_next_process(tmp_path: Path, store: BlobStore) -> None:
    partial = store.partials.open(DIGEST)
    partial.append(pieces((0, 100), (100, 1000)))
    assert not partial.is_right()
    again = BlobStore(tmp_path)  # the first one is never closed, as after a kill
    again.sweep()
    assert again.partials.num_bytes(DIGEST) == 1000
    partial = again.partials.open(DIGEST)
    assert partial.num_bytes == 1000
    partial.append(pieces((1000, len(DATA))))
    assert partial.is_right()
    again.adopt(partial)
    assert partial.read() == DATA
    again.partials.close(partial)
    assert again.get(DIGEST) == DATA
    assert again.partials.num_bytes(DIGEST) == 0
    assert (tmp_path / DIGEST).stat().st_mode & 0o077 == 0


def test_it_begins_anew_when_it_is_wrong(store: BlobStore) -> None:
    partial = store.partials.open(DIGEST)
    partial.append([memoryview(b"wrong")])
    assert partial.digests([(0, 5), (1, 2)]) == [digest_of(b"wrong"), digest_of(b"ro")]
    partial.clear()
    assert (partial.num_bytes, store.partials.num_bytes(DIGEST)) == (0, 0)
    partial.append(pieces((0, len(DATA))))
    assert partial.is_right()


def test_it_is_no_blob_before_it_is_whole(store: BlobStore) -> None:
    leave(store, DATA, touched_at=time.time())
    assert not store.has(DIGEST)
    assert store.digests() == ()
    assert store.collect((), superseded=()) == ()
    assert store.partials.num_bytes(DIGEST) == len(DATA)


def test_old_ones_and_those_beyond_the_room_are_given_up_the_oldest_first(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "MAX_KEPT_BYTES", 250)
    now = time.time()
    newest, second, third = (leave(store, bytes([n]) * 100, touched_at=now - n) for n in range(3))
    forgotten = leave(store, b"forgotten", touched_at=now - partials.KEPT_S - 1)
    store.sweep()
    assert [path.exists() for path in (newest, second, third, forgotten)] == [True, True, False, False]


def test_room_for_a_new_one_is_never_taken_from_one_that_is_being_written(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "MAX_KEPT_BYTES", 50)
    idle = leave(store, bytes(100), touched_at=time.time())
    assert idle.exists()  # just made
    written = store.partials.open(DIGEST)
    assert not idle.exists()
    written.append(pieces((0, 1000)))
    store.partials.close(store.partials.open(digest_of(b"another")))
    assert written.path.exists()


@pytest.mark.parametrize("name", ["", "..", "../secret", "/etc/passwd"])
def test_no_other_path_can_be_reached(store: BlobStore, name: str) -> None:
    for reach in (store.partials.num_bytes, store.partials.open):
        with pytest.raises(MalformedIdentifier):
            reach(Digest(name))
