#!/usr/bin/env bash
# torch 2.14.1, CPU: F.dropout with the same seed on equal tensors that differ in memory order alone.
# Seen: a contiguous tensor and its channels_last copy are equal, yet half of the values that one keeps,
# the other drops: the mask is drawn in the order of memory. So a seed fixes no mask of a network that is
# moved to channels_last, and a comparison of both orders has to leave dropout out.
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

x = torch.ones(16, 8, 10, 10)
y = x.contiguous(memory_format=torch.channels_last)
torch.manual_seed(0)
a = torch.nn.functional.dropout(x, 0.5)
torch.manual_seed(0)
b = torch.nn.functional.dropout(y, 0.5)
same_mask = bool((a.flatten() == b.permute(0, 2, 3, 1).flatten()).all())  # in each one's memory
different = (a != b).float().mean().item()
print(f"inputs equal {torch.equal(x, y)}, outputs differ in {different:.1%}, "
      f"in the order of memory equal {same_mask}")
sys.exit(not (torch.equal(x, y) and abs(different - 0.5) < 0.05 and same_mask))
EOF
