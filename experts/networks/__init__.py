"""Networks that teachers and trunks are made of: one as it was published, and for any network where it can be cut."""
