"""Cells of hivemind's grid: one a replica, the same wherever it is worked out."""

from collections import Counter

import pytest

from protocol.errors import MalformedIdentifier
from protocol.grid import GRID, MAX_CELL_ATTEMPTS, cell_of, grid_name, parse_any_peer_id, parse_cell
from protocol.identifiers import MeshId, PeerId, digest_of, peer_id_of

MESH = MeshId(digest_of(b"a mesh"))
EXPERT, OTHER = digest_of(b"an expert"), digest_of(b"another")
PEER, NEIGHBOUR = peer_id_of(b"a key"), peer_id_of(b"another key")
ED25519 = "12D3KooWLhHHPJbXxE2XSTMMhCYMfU1VnPb914j2vRuSj1hZFhga"
"""As hivemind makes one: of the key a19ff76a...cf9c7."""


def cell(expert: str = EXPERT, peer_id: PeerId = PEER, attempt: int = 0) -> str:
    return cell_of(MESH, expert, peer_id, attempt)


def test_a_cell_is_the_same_for_ever() -> None:
    """Peers of every version must find it where it was."""
    assert [cell(attempt=attempt) for attempt in range(3)] == [
        "mm_ea6d019cdf03.8.31.255",
        "mm_ea6d019cdf03.8.200.199",
        "mm_ea6d019cdf03.10.190.242",
    ]


def test_a_cell_names_its_mesh_and_lies_in_the_grid() -> None:
    assert grid_name(MESH) == f"mm_{MESH[:12]}"
    for attempt in range(MAX_CELL_ATTEMPTS):
        name, coordinates = parse_cell(cell(attempt=attempt))
        assert name == grid_name(MESH)
        assert len(coordinates) == len(GRID)
        assert all(0 <= coordinate < size for coordinate, size in zip(coordinates, GRID, strict=True))


def test_replicas_attempts_and_experts_have_cells_of_their_own() -> None:
    cells = [cell(expert, peer, n) for expert in (EXPERT, OTHER) for peer in (PEER, NEIGHBOUR) for n in range(16)]
    assert len(set(cells)) == len(cells)


def test_cells_are_spread_over_the_whole_grid() -> None:
    coordinates = [parse_cell(cell(digest_of(str(number).encode())))[1] for number in range(4096)]
    for axis, size in enumerate(GRID):
        counts = Counter(coordinate[axis] for coordinate in coordinates)
        assert len(counts) == size
        # The mean plus five deviations of a Poisson count.
        assert max(counts.values()) < 4096 / size + 5 * (4096 / size) ** 0.5


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("ffn.0", ("ffn", (0,))),
        ("ffn_expert.98.76.54.32.10", ("ffn_expert", (98, 76, 54, 32, 10))),
        ("mm_0123456789ab.15.255.255", ("mm_0123456789ab", (15, 255, 255))),
        ("é è.1", ("é è", (1,))),
    ],
)
def test_hiveminds_uids_are_read(text: str, parsed: tuple[str, tuple[int, ...]]) -> None:
    assert parse_cell(text) == parsed


NO_CELLS = [
    *("", "ffn", "ffn.", ".1", "ffn.1.", "ffn..1", "ffn.01", "ffn.-1", "ffn.x", "ffn.1.x", "ffn.٣"),
    *("a\n.1", "ffn.1\n", "\0.1", "ffn.1234567890", "f" * 65 + ".1", "ffn" + ".1" * 9),
]


@pytest.mark.parametrize("text", NO_CELLS)
def test_anything_else_is_no_cell(text: str) -> None:
    with pytest.raises(MalformedIdentifier):
        parse_cell(text)


@pytest.mark.parametrize("text", [PEER, ED25519])
def test_ids_of_rsa_and_of_ed25519_keys_are_peer_ids(text: str) -> None:
    assert parse_any_peer_id(text) == text


NO_PEER_IDS = [
    *("", "Qm", PEER[:-1], PEER + "1", "0" + PEER[1:], "1" * 52, "z" * 52, ED25519[:-1], ED25519 + "\n"),
    *(f"2{ED25519[1:]}", ED25519[:7] + "z" * 45, ED25519[:-1] + "0", ED25519[:-1] + "l", "12D3KooV" + ED25519[8:]),
]


@pytest.mark.parametrize("text", NO_PEER_IDS)
def test_anything_else_is_no_peer_id(text: str) -> None:
    with pytest.raises(MalformedIdentifier):
        parse_any_peer_id(text)
