#!/usr/bin/env python3
"""Show runs in TensorBoard or Weights & Biases: see lab/tracking.py."""

import sys

from lab.tracking import main

if __name__ == "__main__":
    sys.exit(main())
