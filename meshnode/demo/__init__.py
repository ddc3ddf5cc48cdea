"""``meshnode demo``: a mesh of real node processes on this machine, from nothing to a table and a picture."""

from meshnode.demo.run import run_demo

__all__ = ["run_demo"]
