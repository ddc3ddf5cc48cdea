"""The node's secrets: made once, never half, never replaced, never shared."""

import os
import stat
from pathlib import Path

import pytest

from meshnode.errors import IdentityUnusable
from meshnode.home import Home
from meshnode.identity import api_key, load_or_create_identity
from protocol.signing import SigningKey


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def test_an_identity_is_made_once_and_kept(home: Home) -> None:
    made = load_or_create_identity(home)
    assert load_or_create_identity(home).peer_id == made.peer_id
    assert home.identity_key.read_bytes() == made.to_libp2p()
    assert stat.S_IMODE(home.identity_key.stat().st_mode) == 0o600


@pytest.mark.parametrize("kept", [0, 1, 600, -1])
def test_a_truncated_identity_is_refused_and_left_for_its_owner(home: Home, kept: int) -> None:
    load_or_create_identity(home)
    truncated = home.identity_key.read_bytes()[:kept]
    home.identity_key.write_bytes(truncated)
    with pytest.raises(IdentityUnusable) as caught:
        load_or_create_identity(home)
    assert str(home.identity_key) in caught.value.message
    assert caught.value.hint is not None
    assert home.identity_key.read_bytes() == truncated


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
@pytest.mark.parametrize("secret", ["identity_key", "api_key"])
def test_a_secret_that_others_can_reach_is_refused_with_the_cure(home: Home, secret: str, mode: int) -> None:
    load_or_create_identity(home)
    api_key(home)
    path = getattr(home, secret)
    path.chmod(mode)
    with pytest.raises(IdentityUnusable) as caught:
        load_or_create_identity(home) if secret == "identity_key" else api_key(home)
    assert f"{mode:04o}" in caught.value.message
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_folder_in_place_of_the_key_is_refused_by_name(home: Home) -> None:
    home.identity_key.mkdir()
    with pytest.raises(IdentityUnusable):
        load_or_create_identity(home)


def test_a_kill_while_the_identity_is_made_leaves_none_rather_than_half(home: Home) -> None:
    """The child dies at its k-th step that touches the disk, for every k."""
    made = 0
    for step in range(1, 20):
        child = os.fork()
        if child == 0:
            _die_at_step(step, home)
        _, status = os.waitpid(child, 0)
        if home.identity_key.exists():
            load_or_create_identity(home)  # whole, or this raises
            home.identity_key.unlink()
            made += 1
        if os.waitstatus_to_exitcode(status) == 0:
            break
    else:
        pytest.fail("the child never came to its end")
    assert step > 3
    assert made >= 1


def test_the_api_key_is_made_once_and_can_stand_in_a_header(home: Home) -> None:
    key = api_key(home)
    assert api_key(home) == key
    assert len(key) >= 40
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key
    assert stat.S_IMODE(home.api_key.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"a" * 20 + b"\0" + b"a" * 20, b"two words and more words"])
def test_a_garbled_api_key_is_refused(home: Home, content: bytes) -> None:
    api_key(home)
    home.api_key.write_bytes(content)
    with pytest.raises(IdentityUnusable):
        api_key(home)


def test_an_api_key_of_the_users_own_is_taken(home: Home) -> None:
    home.api_key.write_text("correct-horse-battery-staple\n")
    home.api_key.chmod(0o600)
    assert api_key(home) == "correct-horse-battery-staple"


def test_homes_have_different_secrets(tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    for home in homes:
        home.create()
    assert len({load_or_create_identity(home).peer_id for home in homes}) == 2
    assert len({api_key(home) for home in homes}) == 2


_KEY = SigningKey.generate()


def _die_at_step(step: int, home: Home) -> None:
    """In a forked child: make an identity, but die (no clean-up, no flush) at the given system call."""
    calls = 0

    def deadly(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step:
                os._exit(137)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in ("open", "fdopen", "fchmod", "posix_fallocate", "fsync", "link", "close"):
        deadly(name)
    SigningKey.generate = classmethod(lambda cls: _KEY)  # type: ignore[method-assign, assignment]
    load_or_create_identity(home)
    os._exit(0)
