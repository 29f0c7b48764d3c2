#!/usr/bin/env bash
# torch 2.14.1 with onnxscript 0.7.2, onnxruntime 1.32.0: torch.onnx.export of a network in training mode.
# Seen: of one graph, dropout drops (half of the values are 0) and BatchNorm2d takes its running statistics.
# The network itself, in training, normalizes by the batch. So the graph is neither training nor
# evaluation. A warning says that training mode 'may lead to different behavior', not this.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0)
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
import copy
import sys
import warnings

import onnxruntime
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5))
x = torch.randn(16, 3, 8, 8)
for _ in range(50):
    network(3 * x + 5)  # the running statistics differ from those of x
program = torch.onnx.export(copy.deepcopy(network), (x,), dynamo=True, verbose=False)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
y = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
kept = y != 0
training = copy.deepcopy(network)[:2](x)
evaluation = copy.deepcopy(network).eval()(x)
apart = [((y - 2 * other)[kept]).abs().max().item() for other in (training, evaluation)]
print(f"dropped {1 - kept.float().mean():.0%}; away from training by {apart[0]:.2g}, "
      f"from evaluation by {apart[1]:.2g}")
sys.exit(not (0.4 < kept.float().mean() < 0.6 and apart[0] > 1 and apart[1] < 1e-4))
EOF
