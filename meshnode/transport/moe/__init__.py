"""hivemind's own expert protocol: what its clients call, what its servers answer, and how both are found."""
