"""What a node must not lose: immutable blobs named by digest, and a ledger that says what they are."""
