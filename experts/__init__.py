"""Experts and how they learn, route and combine: tensors in, tensors out."""
