"""The standard mixture of experts: experts and router at hand, called together, and trained together."""
