"""Learning on and on: what is new, what is done about it and why, and what of the past is kept."""
