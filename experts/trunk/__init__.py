"""Trunks: the shared, frozen feature extractors that a mesh names by digest."""
