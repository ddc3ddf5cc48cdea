"""Teachers: local models that experts are distilled from."""
