#!/usr/bin/env python3
"""Measure on finished networks what theory says: see report/theory.py."""

import sys

from report.theory import main

if __name__ == "__main__":
    sys.exit(main())
