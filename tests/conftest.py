"""Settings of the whole test run."""

import os

# Tensors here are small: threads would only spin against each other, in this process and in those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # after that, as torch reads the environment when it is first imported

# The machine may be shared and busy; how long one example takes says nothing about the code.
settings.register_profile("modulemesh", deadline=None)
settings.load_profile("modulemesh")
