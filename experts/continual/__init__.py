"""Learning task after task: which expert takes a class, and what of the past is replayed."""
