"""matplotlib by its own defaults: a user's matplotlibrc or MPLBACKEND changes no figure.

A notebook keeps its backend and style, which our figures then share.
"""

import builtins
import os

session = hasattr(builtins, "get_ipython")
backend = None if session else os.environ.pop("MPLBACKEND", None)  # one that is not installed here
import matplotlib  # noqa: E402

if backend is not None:
    os.environ["MPLBACKEND"] = backend
if not session:
    matplotlib.use("agg")
    matplotlib.rcdefaults()
