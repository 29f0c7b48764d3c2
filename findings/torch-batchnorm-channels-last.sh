#!/usr/bin/env bash
# torch 2.14.1, CPU: nn.BatchNorm2d in training, float32, on an input of mean 10,000 and deviation 1.
# Seen: the output's deviation is 1.000 in contiguous memory, but 0.133 in channels_last on one thread
# (1.000 on two). 1 is right: the order of memory and the number of threads change the result.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(torch==2.14.1 numpy==2.4.6)
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

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
x = 10000 + torch.randn(128, 8, 28, 28)
norm = torch.nn.BatchNorm2d(8)
contiguous = norm(x).std().item()
channels_last = norm(x.contiguous(memory_format=torch.channels_last)).std().item()
print(f"contiguous {contiguous:.3f}, channels_last {channels_last:.3f}")
sys.exit(not (abs(contiguous - 1) < 0.01 and abs(channels_last - 0.133) < 0.01))
EOF
