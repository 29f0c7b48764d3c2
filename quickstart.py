#!/usr/bin/env python3
"""A first look (`make train`): see lab/quickstart.py."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come

    from lab.quickstart import main

    sys.exit(main())
