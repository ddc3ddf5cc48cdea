"""What a node is set to: read in layers, checked by section, and shown with where each value came from."""
