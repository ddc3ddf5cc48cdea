"""Networks of others that teachers and trunks are made of, in the form their published weights have."""
