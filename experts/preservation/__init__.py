"""The knowledge preservation protocol: what an expert knows outlives its architecture (proposal, section 2.4)."""
