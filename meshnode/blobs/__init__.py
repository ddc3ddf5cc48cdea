"""Pulling immutable blobs by digest: mesh specs, trunks, expert weights, router statistics.

Nothing that a peer sends is trusted: what is pulled is what the digest names, or it is refused.
"""

from meshnode.blobs.puller import BlobPuller, Progress

__all__ = ["BlobPuller", "Progress"]
