"""matplotlib by its own defaults: a user's matplotlibrc or MPLBACKEND changes no figure."""

import os

backend = os.environ.pop("MPLBACKEND", None)  # of a notebook, whose backend is not installed here
import matplotlib  # noqa: E402

if backend is not None:
    os.environ["MPLBACKEND"] = backend
matplotlib.use("agg")
matplotlib.rcdefaults()
