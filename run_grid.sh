#!/bin/sh
#SBATCH --requeue
#SBATCH --open-mode=append
# Train the runs of studies, on one machine or on a Slurm cluster: lab/grid.py with the right Python.

die() { printf 'run_grid.sh: error: %s\n' "$1" >&2 && exit 2; }

repo=$(readlink -f "$0" 2>/dev/null || printf %s "$0")  # through links
repo=$(CDPATH='' cd "$(dirname "$repo")" && pwd)
[ -e "$repo/lab/grid.py" ] || repo=${SLURM_SUBMIT_DIR:-$repo}  # Slurm runs a copy of this file
[ -e "$repo/lab/grid.py" ] || die "$repo is not the repository; call sbatch from its folder"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$repo/.venv/bin/python" ] || PYTHON=$repo/.venv/bin/python
fi
python=$(command -v "$PYTHON")
[ -f "$python" ] && [ -x "$python" ] || die "PYTHON is '$PYTHON', which must name a program"
exec "$python" "$repo/lab/grid.py" "$@"
