#!/usr/bin/env bash
# numpy 2.4.6: the mean of float32 images over all axes but the last, as for the channel means of a data set.
# Seen for 40,000 images of 32 x 32 x 3, uniform in [0, 1): 0.4096 for each channel; 0.5 is right.
# 0.4096 is 2 ** 24 / 40,960,000: sums over outer axes run value by value and stand still at 2 ** 24.
# The same images with the channels first, or with dtype="float64", give 0.5. Nothing is said.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(numpy==2.4.6)
if [[ -z ${PYTHON:-} ]]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  python3 -m venv "$place" && "$place/bin/pip" install --quiet "${wanted[@]}" || exit 2
  PYTHON=$place/bin/python
fi
for each in "${wanted[@]}"; do
  "$PYTHON" -c 'import sys; from importlib.metadata import version
found = version(sys.argv[1]).split("+")[0].replace("-", ".post")
sys.exit(found != sys.argv[2])' "${each%==*}" "${each#*==}" 2>/dev/null ||
    { echo "$PYTHON has no $each" >&2; exit 2; }
done
"$PYTHON" - <<'EOF'
import sys

import numpy as np

images = np.random.default_rng(0).random((40000, 32, 32, 3), dtype="float32")
last = images.mean((0, 1, 2))
double = images.mean((0, 1, 2), dtype="float64")
first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).mean((0, 2, 3))
print("channels last", last, "float64", double, "channels first", first)
as_seen = np.allclose(last, 0.4096, atol=1e-6) and np.allclose([double, first], 0.5, atol=1e-3)
sys.exit(not as_seen)
EOF
