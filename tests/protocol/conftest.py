"""Keys and records that the protocol's tests share; a key takes a tenth of a second to make."""

import pytest

from protocol.identifiers import MeshId, digest_of
from protocol.signing import SigningKey

MESH = MeshId(digest_of(b"a mesh"))


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def other_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="session")
def mesh_id() -> MeshId:
    return MESH
