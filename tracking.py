#!/usr/bin/env python3
"""Show runs in TensorBoard or Weights & Biases: see lab/tracking.py."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come

    from lab.tracking import main

    sys.exit(main())
