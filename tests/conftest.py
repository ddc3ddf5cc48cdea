"""Settings of the whole test run."""

from hypothesis import settings

# The machine may be shared and busy; how long one example takes says nothing about the code.
settings.register_profile("modulemesh", deadline=None)
settings.load_profile("modulemesh")
