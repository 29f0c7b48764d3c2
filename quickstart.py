#!/usr/bin/env python3
"""A first look (`make train`): see lab/quickstart.py."""

import sys

from lab.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
