#!/usr/bin/env bash
# paddlepaddle 3.3.1, CPU: nn.BatchNorm2D in training on a batch with one value per channel, (1, 3, 1, 1).
# Seen: 2, 3, 5 come back as 2, 3, 5, with weight 2 and bias 7 too, and the running statistics do not
# move. Normalized it would be 7, 7, 7, as in Keras and ONNX; PyTorch raises. Nothing is said about it.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(paddlepaddle==3.3.1 numpy==2.4.6)
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
import warnings

warnings.simplefilter("ignore")
import numpy as np
import paddle

norm = paddle.nn.BatchNorm2D(3)
norm.weight.set_value(np.full(3, 2, "float32"))
norm.bias.set_value(np.full(3, 7, "float32"))
x = paddle.to_tensor(np.float32([2, 3, 5]).reshape(1, 3, 1, 1))
y, mean = norm(x).numpy().ravel().tolist(), norm._mean.numpy().tolist()
two = norm(paddle.concat([x, x + 2])).numpy().reshape(2, 3).round(2).tolist()
print(f"one value: {y}, running mean {mean}; two values: {two}")
sys.exit(not (y == [2, 3, 5] and mean == [0, 0, 0] and two == [[5, 5, 5], [9, 9, 9]]))
EOF
