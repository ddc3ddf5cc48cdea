"""What two statistics must share to be summed: everything that makes a feature, and nothing of classes.

A sum over features of two different trunks has the right shape and no meaning, and nothing in it shows that. So
statistics carry the fingerprint of what made their features. Classes are not in it: they are named in the
statistics themselves, and peers of one mesh add classes while apart.
"""

from hashlib import sha256

__all__ = ["statistics_fingerprint"]

_DOMAIN = b"modulemesh statistics 1"


def statistics_fingerprint(trunk_digest: str, feature_map: bytes) -> str:
    """SHA-256 over the trunk and the feature map behind it, in lowercase hexadecimal.

    Args:
        trunk_digest: Of the trunk's bytes, which hold preprocessing, section, m and s.
        feature_map: The bytes of what makes psi of the trunk's features h (of W and b); empty where psi is h.
    """
    # Each part with its length: no two pairs of arguments give the same bytes.
    parts = (_DOMAIN, trunk_digest.encode(), feature_map)
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
