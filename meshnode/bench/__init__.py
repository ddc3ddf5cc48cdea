"""``meshnode bench``: a mesh under a load of known size, measured from outside by a client that is no node."""

from meshnode.bench.load import Load
from meshnode.bench.report import Report
from meshnode.bench.serve import bench_serve

__all__ = ["Load", "Report", "bench_serve"]
