"""The blob store: whole or absent, and never other bytes than were put."""

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.state.blobs import BlobStore
from protocol.errors import BlobCorrupt, MalformedIdentifier, UnknownBlob
from protocol.identifiers import Digest, digest_of

DATA = bytes(range(256)) * 16
ABSENT = digest_of(b"absent")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.binary(max_size=2000))
def test_what_was_put_comes_back_under_its_digest(store: BlobStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == digest_of(data)
    assert store.put(data) == digest
    assert store.get(digest) == data
    assert store.has(digest)
    assert store.size(digest) == len(data)
    assert digest in store.digests()


def test_every_bit_flip_and_truncation_is_noticed(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    rng = random.Random(20)
    for _ in range(1000):
        damaged = bytearray(DATA)
        if rng.random() < 0.8:
            damaged[rng.randrange(len(DATA))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(DATA)) :]
        (tmp_path / digest).write_bytes(damaged)
        with pytest.raises(BlobCorrupt) as caught:
            store.get(digest)
        assert caught.value.digest == digest
        assert not store.is_whole(digest)
    assert (tmp_path / digest).exists()


def test_putting_the_right_bytes_again_repairs_a_corrupt_blob(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    (tmp_path / digest).write_bytes(b"rotten")
    store.put(DATA)
    assert store.get(digest) == DATA


def test_a_blob_that_is_there_is_synced_again_by_name(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first writer may have been killed after the rename and before the folder was synced."""
    store.put(DATA)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    store.put(DATA)
    assert len(synced) == 1


def test_several_are_put_with_one_sync_of_their_names(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced_folders = os.fsync, []

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced_folders.append(store.digests())

    monkeypatch.setattr(os, "fsync", fsync)
    blobs = [b"one", b"two", b"one", b""]
    digests = store.put_all(blobs)
    assert digests == tuple(map(digest_of, blobs))
    assert [store.get(digest) for digest in digests] == blobs
    assert synced_folders == [tuple(sorted(set(digests)))]


def test_an_absent_blob_is_unknown_to_every_question(store: BlobStore) -> None:
    assert not store.has(ABSENT)
    assert not store.is_whole(ABSENT)
    for ask in (store.get, store.size, lambda digest: store.read_range(digest, 0, 1)):
        with pytest.raises(UnknownBlob) as caught:
            ask(ABSENT)
        assert caught.value.digest == ABSENT
    store.delete(ABSENT)


@pytest.mark.parametrize("name", ["", "..", "../secret", "/etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_no_other_path_can_be_reached(name: str, store: BlobStore, tmp_path: Path) -> None:
    (tmp_path.parent / "secret").write_bytes(b"secret")
    for ask in (
        store.get,
        store.has,
        store.size,
        store.delete,
        lambda digest: store.read_range(digest, 0, 1),
    ):
        with pytest.raises(MalformedIdentifier):
            ask(Digest(name))


def test_ranges_end_with_the_blob(store: BlobStore) -> None:
    digest = store.put(b"0123456789")
    assert store.read_range(digest, 0, 4) == b"0123"
    assert store.read_range(digest, 8, 4) == b"89"
    assert store.read_range(digest, 10, 4) == b""
    assert store.read_range(digest, 99, 4) == b""
    assert store.read_range(digest, 3, 0) == b""


def test_a_deleted_blob_is_gone(store: BlobStore) -> None:
    digest = store.put(DATA)
    store.delete(digest)
    assert not store.has(digest)
    assert store.digests() == ()


def test_files_that_are_no_blobs_are_not_listed(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    (tmp_path / "README").write_text("mine")
    (tmp_path / f".{ABSENT}.0.tmp").write_bytes(b"half")
    assert store.digests() == (digest,)


def test_sweeping_removes_unfinished_writes_only(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    (tmp_path / f".{ABSENT}.0.tmp").write_bytes(b"half")
    store.sweep()
    assert os.listdir(tmp_path) == [digest]


def test_a_full_disk_stores_nothing_and_loses_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put(DATA)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        store.put(b"new")
    assert os.listdir(tmp_path) == [digest]
    assert store.get(digest) == DATA


def test_collecting_spares_what_is_referred_to_or_new(tmp_path: Path) -> None:
    before = BlobStore(tmp_path)
    named, orphan = before.put(b"named"), before.put(b"orphan")
    store = BlobStore(tmp_path)
    new, replaced = store.put(b"new"), store.put(b"replaced")
    assert store.collect({named}, superseded={replaced}) == tuple(sorted([orphan, replaced]))
    assert store.digests() == tuple(sorted([named, new]))


def test_collecting_spares_an_orphan_that_was_put_again(tmp_path: Path) -> None:
    digest = BlobStore(tmp_path).put(DATA)
    store = BlobStore(tmp_path)
    store.put(DATA)
    assert store.collect(set(), superseded=set()) == ()
    assert store.get(digest) == DATA


def test_a_superseded_blob_that_is_referred_to_elsewhere_stays(store: BlobStore) -> None:
    digest = store.put(DATA)
    assert store.collect({digest}, superseded={digest}) == ()
