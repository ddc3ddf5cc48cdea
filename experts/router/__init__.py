"""Which expert answers which input: class statistics, the ridge solved from them, and gates."""
