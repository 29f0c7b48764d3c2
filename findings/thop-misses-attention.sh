#!/usr/bin/env bash
# thop 0.1.1.post2209072238 with torch 2.14.1: thop.profile of PyTorch's own attention layers.
# Seen: nn.MultiheadAttention(64, 4) has 16,640 parameters; thop counts 0 and 0 operations. Of
# nn.TransformerEncoderLayer(64, 4, 128) it counts 16,832 of 33,472. Modules are looked up by exact class
# (and parameters that stand outside the known ones are left out). Nothing is said with verbose=False.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(torch==2.14.1 thop==0.1.1.post2209072238 numpy==2.4.6)
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

import thop
import torch

x = torch.ones(1, 5, 64)
found = []
for module, inputs in ((torch.nn.MultiheadAttention(64, 4, batch_first=True), (x, x, x)),
                       (torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (x,))):
    actual = sum(p.numel() for p in module.parameters())
    _, counted = thop.profile(module, inputs, verbose=False)
    print(f"{type(module).__name__}: {actual} parameters, thop counts {counted:g}")
    found += [actual, int(counted)]
sys.exit(found != [16640, 0, 33472, 16832])
EOF
