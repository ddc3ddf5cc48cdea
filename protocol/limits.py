"""Every bound the protocol holds its input to, with the reason for each number.

A decoder checks a bound before it allocates what the bound is about, so that the most a hostile peer can
make this process hold is known in advance. Raising a number here changes the protocol: peers of both
versions must agree.
"""

from typing import Final

__all__ = [
    "BLOB_CHUNK_BYTES",
    "BODY_CHUNK_BYTES",
    "MAX_ADDRESS_CHARS",
    "MAX_ATTEMPTS_PER_ROUND",
    "MAX_BLOB_BYTES",
    "MAX_BYTES_ASSEMBLED",
    "MAX_CALLS_PER_REPLY",
    "MAX_CHUNK_BYTES",
    "MAX_CLASSES_PER_EXPERT",
    "MAX_CLASSES_PER_TASK",
    "MAX_CLASS_NAME_CHARS",
    "MAX_CLOCK_SKEW_S",
    "MAX_CONFIG_FIELDS",
    "MAX_CONFIG_TEXT_CHARS",
    "MAX_CONTRIBUTIONS_PER_INDEX",
    "MAX_CONTRIBUTION_BYTES",
    "MAX_CONTRIBUTION_INDEX_BYTES",
    "MAX_COUNTER",
    "MAX_ERROR_FIELDS",
    "MAX_ERROR_ITEMS",
    "MAX_ERROR_TEXT_CHARS",
    "MAX_EXPERTS_PER_CALL",
    "MAX_EXPERTS_PER_RECORD",
    "MAX_FRAME_BYTES",
    "MAX_IMAGES_PER_CALL",
    "MAX_KIND_CHARS",
    "MAX_LAYERS_PER_SUCCESSION",
    "MAX_LINEAGE",
    "MAX_LINEAGE_BYTES",
    "MAX_MESSAGE_HEADER_BYTES",
    "MAX_MOMENT_S",
    "MAX_NAME_CHARS",
    "MAX_PEERS_PER_BOOK",
    "MAX_PUBLIC_KEY_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_RECORD_TTL_S",
    "MAX_REQUESTS_PER_STREAM",
    "MAX_ROUNDS_BEHIND",
    "MAX_ROUNDS_PER_CALL",
    "MAX_ROUND_MEMBERS",
    "MAX_SIGNATURE_BYTES",
    "MAX_SPARE_PER_RECORD",
    "MAX_SPEC_BYTES",
    "MAX_SPEC_TEXT_CHARS",
    "MAX_TENSORS_PER_MESSAGE",
    "MAX_TENSOR_DIMS",
    "MAX_TENSOR_NAME_CHARS",
    "MAX_WAIT_MS",
    "MIN_BLOB_PART_BYTES",
]

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- names ---
MAX_NAME_CHARS: Final = 64
"""Mesh and peer names: one line of a table."""
MAX_CLASS_NAME_CHARS: Final = 64
"""The longest ImageNet class names are longer, but their WordNet ids and first synonyms are not."""
MAX_CLASSES_PER_EXPERT: Final = 256
"""Experts are small modules with tens of classes; 256 names of 40 characters still fit one record."""
MAX_CLASSES_PER_TASK: Final = 1024
"""One router contribution may cover a whole ImageNet-sized task."""
MAX_LINEAGE: Final = 64
"""Ancestors an expert names; one is added with each preservation, not with each training step."""
MAX_KIND_CHARS: Final = 32
"""Registry names such as "mlp" or "linear"."""
MAX_CONFIG_FIELDS: Final = 16
"""Settings of an expert's form; the built-in forms have two to five."""
MAX_CONFIG_TEXT_CHARS: Final = 32
"""Name of such a setting, or its value if that is text: a word."""
MAX_ADDRESS_CHARS: Final = 512
"""A DNS name is at most 253 characters; the rest of a multiaddress is short. Parsing is linear in this."""
MAX_COUNTER: Final = 2**53 - 1
"""Generations, versions, rounds, sample counts: exact in a float64 and in JavaScript's numbers."""
MAX_MOMENT_S: Final = 1e11
"""Unix seconds beyond the year 5000 are garbage; also refuses infinity and NaN."""

# --- records ---
MAX_RECORD_BYTES: Final = 24 * KIB
"""A DHT replica stores this per peer and key; hivemind itself sets no bound."""
MAX_RECORD_TTL_S: Final = 300.0
"""A record leaves the DHT only by its expiry, so a dead peer is advertised no longer than this."""
MAX_CLOCK_SKEW_S: Final = 3.0
"""Beyond it leases look expired or immortal to others (measured), so such a node must not announce."""
MAX_EXPERTS_PER_RECORD: Final = 64
"""About 280 bytes an advert of two classes: not many more would fit MAX_RECORD_BYTES."""
MAX_SPARE_PER_RECORD: Final = 8
"""Experts that a peer could do without, told at a time: they go one after another, the lowest uid first."""
MAX_PEERS_PER_BOOK: Final = 4096
"""Peers a RecordBook remembers: 96 MiB if each sent the largest record."""
MAX_CONTRIBUTION_BYTES: Final = 128 * KIB
"""A contribution names up to MAX_CLASSES_PER_TASK classes; it travels in a blob, not in the DHT."""
MAX_CONTRIBUTIONS_PER_INDEX: Final = 4096
"""Contributions are one a peer and task."""
MAX_CONTRIBUTION_INDEX_BYTES: Final = 8 * MIB
"""4096 contributions of 2 KB, the size of one with tens of classes."""

# --- keys ---
MAX_PUBLIC_KEY_BYTES: Final = 1 * KIB
"""An RSA-4096 SubjectPublicKeyInfo takes 550 bytes."""
MAX_SIGNATURE_BYTES: Final = 512
"""RSA-4096."""

# --- messages and tensors ---
MAX_MESSAGE_HEADER_BYTES: Final = 64 * KIB
"""A message without its tensors: 256 class names or 1,024 rows of an error are below 32 KiB."""
MAX_TENSORS_PER_MESSAGE: Final = 32
"""Calls carry one or two; multi-input models a handful."""
MAX_TENSOR_DIMS: Final = 6
"""Batch, channels, three spatial dimensions and one to spare."""
MAX_TENSOR_NAME_CHARS: Final = 64
"""Names such as "features"."""
MAX_FRAME_BYTES: Final = 64 * MIB
"""Tensors of one frame; 26,000 rows of 640 features."""
MAX_EXPERTS_PER_CALL: Final = 16
"""Experts of one peer asked in one call; half of MAX_TENSORS_PER_MESSAGE, as each answers with a tensor."""
BLOB_CHUNK_BYTES: Final = 1 * MIB
"""Above 1 MiB copies dominate a call (measured); below it the number of calls does."""
MIN_BLOB_PART_BYTES: Final = 16 * KIB
"""A part of a blob may be shorter than asked for, but not than this: less would be mostly header."""
MAX_BLOB_BYTES: Final = 256 * MIB
"""A trunk is at most some tens of MB; this bounds the disk a digest can make a peer fill."""
MAX_ERROR_TEXT_CHARS: Final = 512
"""Longer error texts are cut when sent."""
MAX_IMAGES_PER_CALL: Final = 4096
"""That a thin client sends at once: seconds of a node's trunk, in which others have their turns."""
MAX_CALLS_PER_REPLY: Final = 256
"""Questions that a node names which it has asked for a thin client; 256 of them take some 50 KiB."""
MAX_ERROR_FIELDS: Final = 8
"""Data of an error; the classes have three at most."""
MAX_ERROR_ITEMS: Final = 1024
"""Longer lists in an error's data (rows, experts) are cut when sent."""

# --- streams ---
BODY_CHUNK_BYTES: Final = 64 * KIB
"""Most of a body that is sent at a time: what a small message waits for behind a large one. 60 ms at 1 MB/s."""
MAX_CHUNK_BYTES: Final = MAX_MESSAGE_HEADER_BYTES + BODY_CHUNK_BYTES + 8
"""The largest chunk: a whole header and the first piece of its body."""
MAX_REQUESTS_PER_STREAM: Final = 256
"""Requests under way on one stream; a caller with more waits, a callee refuses them as busy."""
MAX_BYTES_ASSEMBLED: Final = 2 * MAX_FRAME_BYTES
"""Bodies of one stream that are announced and not done with: two of the largest, or 256 of 512 KiB."""
MAX_WAIT_MS: Final = 2**32 - 1
"""Milliseconds that a caller waits: what four bytes hold, some seven weeks."""

# --- specs ---
MAX_SPEC_BYTES: Final = 16 * KIB
"""A spec is a page of settings; weights are named by digest."""
MAX_SPEC_TEXT_CHARS: Final = 2048
"""The free text that says what a spec was calibrated on."""

# --- lineages ---
MAX_LINEAGE_BYTES: Final = 128 * KIB
"""64 steps of 2 KB: two forms, a handful of layers, tens of classes; and the header of an expert's file holds it."""
MAX_LAYERS_PER_SUCCESSION: Final = 65
"""Layers of an expert of which a lineage tells: the 64 hidden ones that `deep` may have, and the output."""

# --- rounds ---
MAX_ROUND_MEMBERS: Final = 64
"""A member sends a part to every other; groups are of 16 and less, and more replicas mix over rounds."""
MAX_ROUNDS_PER_CALL: Final = 16
"""Experts' rounds whose messages or parts travel together: a proposal with all its members takes up to 3 KiB."""
MAX_ROUNDS_BEHIND: Final = 4
"""A replica that was last averaged earlier than another by more than this would pull the others back."""
MAX_ATTEMPTS_PER_ROUND: Final = 64
"""An attempt that fails takes a second or more, and all of them must fit one period."""
