#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # sh run_grid.sh
set -euo pipefail

trap '' PIPE  # a reader that goes ends nothing
say() { local text="run_grid.sh: $*" && echo "${text//[![:print:]]/?}" >&2 2>/dev/null || true; }

end() {  # a process group, even one that is stopped
  kill -TERM -- "-$1" 2>/dev/null || true
  kill -CONT -- "-$1" 2>/dev/null || true
}

pids='' stopped='interrupted'
stop() {
  trap '' INT TERM HUP
  for pid in $pids ${!:-}; do end "$pid"; done
  wait 2>/dev/null
  say "$stopped"
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

help() {
  cat <<'EOF'
Train the runs of one or more studies, on one machine or on a Slurm cluster.

  ./run_grid.sh STUDY… [-j N] [--dry-run | --status] [flags for main.py…]
  sbatch --array=1-8 run_grid.sh STUDY… [flags for main.py…]        each task is a worker

STUDY is one of
  mlp           batch size × learning rate × drop rate of the MLP, 60 runs
  cnn           the same of the CNN, 60 runs
  ablation      both networks with and without batch normalization and dropout, 4 + 4 runs
  dropout_type  the CNN at five drop rates, dropping single activations or feature maps, 9 runs
  drop_rate     the CNN at five drop rates
  batch_size    the MLP without dropping at four batch sizes
  all           all of these; runs shared by several studies are trained once
and, for the arguments of the report, with the MLP (see REPORT.md):
  capacity          hidden sizes 50 to 1600 × five drop rates, 30 runs
  weight_decay      drop rates against weight decay, 100 epochs, 12 runs
  data_size         1,000 to 40,000 training images × four drop rates, 24 runs
  batch_norm        batches of 16 to 4096 with, without and with detached statistics, 27 runs
  shuffled_patches  both networks on images whose patches change places, 12 runs
  arguments         these five

  -j N          N workers (default 1), which share the runs, the cores and the GPUs
  --network N   only the runs of mlp, or of cnn
  --dry-run     print the runs, and do nothing
  --status      print how far each run is
  others        go to main.py, e.g. --num_epochs 2 --seed 0 1 2 --data_dir DIR --retry; see
                cnn/main.py --help. A flag that one network lacks fits studies of the other alone

Runs land in --runs_dir (default runs/), the workers' output in logs/ there. Ctrl-C ends all workers.
The same call goes on where they were; another call beside it adds workers. PYTHON=… picks the
interpreter, by default that of .venv if there is one.
Exit code: 0 all finished, 1 some failed or are not finished, 2 something for you to mend, 130
stopped by Ctrl-C.
EOF
}

die() { say "error: $1"; exit 2; }

repo=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}")  # through links
repo=$(CDPATH='' cd "$(dirname "$repo")" && pwd)
[[ -e $repo/lab/options.py ]] || repo=${SLURM_SUBMIT_DIR:-$repo}  # Slurm runs a copy of this file
[[ -e $repo/lab/options.py ]] || die "$repo is not the repository; call sbatch from its folder"
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ ! -x $repo/.venv/bin/python ]] || PYTHON=$repo/.venv/bin/python
fi

# A study is some calls of main.py. A later flag wins, so the command line can vary a study.
# Settings that are one network are trained once: drop rate 0 is without dropout, whatever its type.
rates=(--drop_rate 0 0.2 0.4 0.6 0.8)
grid=(--learning_rate 0.001 0.0005 0.0001 "${rates[@]}")
few=(--batch_size 128 --drop_rate 0 0.2 0.4 0.6 --num_epochs 40)  # 1,000 images give 7 steps

study() {
  local name=$1
  shift
  case $name in
    mlp) main mlp --batch_size 512 1024 2048 4096 "${grid[@]}" "$@" ;;
    cnn) main cnn --batch_size 128 256 512 1024 "${grid[@]}" "$@" ;;
    ablation)
      for network in mlp cnn; do
        main $network "$@"
        main $network --without_BatchNorm "$@"
        main $network "$@" --drop_rate 0
        main $network --without_BatchNorm "$@" --drop_rate 0
      done ;;
    dropout_type)
      main cnn "${rates[@]}" "$@"
      main cnn --dropout_type 1d --drop_rate 0.2 0.4 0.6 0.8 "$@" ;;
    drop_rate) main cnn "${rates[@]}" "$@" ;;
    batch_size) main mlp --batch_size 512 1024 2048 4096 --drop_rate 0 "$@" ;;
    capacity)
      for size in 50 100 200 400 800 1600; do
        main mlp --hidden_size $size "${rates[@]}" "$@"
      done ;;
    weight_decay)
      main mlp --drop_rate 0 0.1 0.2 0.4 0.6 --num_epochs 100 "$@"
      for decay in 0.01 0.03 0.1 0.3 1 3 10; do
        main mlp --drop_rate 0 --weight_decay $decay --num_epochs 100 "$@"
      done ;;
    data_size)
      for images in 1000 2500 5000 10000 20000; do
        main mlp "${few[@]}" --train_images $images "$@"
      done
      main mlp "${few[@]}" "$@" ;;
    batch_norm)
      for flag in '' --without_BatchNorm --detach_statistics; do
        main mlp --batch_size 16 32 64 128 256 512 1024 2048 4096 $flag "$@"
      done ;;
    shuffled_patches)
      for network in mlp cnn; do
        main $network --num_epochs 10 "$@"
        for size in 16 8 4 2 1; do main $network --num_epochs 10 --shuffled_patches $size "$@"; done
      done ;;
    all) for each in $studied; do study "$each" "$@"; done ;;
    arguments) for each in $argued; do study "$each" "$@"; done ;;
    *) die "there is no study '$name'$(nearest "$name"); choose among $names" ;;
  esac
}

studied='mlp cnn ablation dropout_type drop_rate batch_size'
argued='capacity weight_decay data_size batch_norm shuffled_patches'
names="$studied all $argued arguments"

# shellcheck disable=SC2086  # names are words
nearest() {
  "$PYTHON" -Ic 'import difflib, sys
for name in difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1):
    print(f", did you mean {name}?", end="")' "$1" $names
}

tolerated=1  # the exit code of a failed run, which does not keep the others from being trained
main() {  # one call of main.py
  local code=0
  [[ $1 == "${only:-$1}" ]] || return 0
  "$PYTHON" "$repo/$1/main.py" "${@:2}" || code=$?
  ((code <= tolerated)) || exit $code
}

calls() { for name in "${studies[@]}"; do study "$name" "$@"; done; }
plan() (  # every flag is checked before any work; Ctrl-C is for this script alone
  trap '' INT TERM HUP
  tolerated=0
  calls "$@" --plan
)
status() (
  [[ $* == --wait ]] || trap '' INT TERM HUP
  exec "$PYTHON" "$repo/lab/status.py" "$@" <<<"$plan"
)

worker() {  # all that no other worker trains, and in the end what one that died has left
  calls "$@" --no_wait
  status --wait || calls "$@"
}

studies=() flags=() workers=1 only='' mode=train
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) help 2>/dev/null || true; exit ;;
    -j) workers=${2:-}; shift ;;
    -j*) workers=${1#-j} ;;
    --network) only=${2:-none}; shift ;;
    --network=*) only=${1#*=} only=${only:-none} ;;
    --dry-run | --status | --plan)
      [[ $mode == train || $mode == "$1" ]] || die "take --dry-run or --status"
      mode=$1 ;;
    --evaluate* | --predict*) die "studies are trained; mlp/main.py and cnn/main.py do $1" ;;
    *) if [[ $1 != -* && ${#flags[@]} == 0 ]]; then studies+=("$1"); else flags+=("$1"); fi ;;
  esac
  [[ $# == 0 ]] || shift
done
set -- ${flags[@]+"${flags[@]}"}
for flag in "$@"; do
  [[ ${#studies[@]} -gt 0 || " $names " != *" $flag "* ]] ||
    die "the study comes first: ./run_grid.sh $flag --flags…"
done
[[ ${#studies[@]} -gt 0 ]] || die "name a study: $names; see --help"
[[ $workers =~ ^[1-9][0-9]{0,3}$ ]] ||
  die "argument -j: '$workers' is not allowed, it must be a whole number from 1 to 9999"

[[ -z $only || $only == mlp || $only == cnn ]] ||
  die "argument --network: '$only' is not allowed, it must be mlp or cnn"
plan=$(plan "$@") || exit 2
[[ -n $plan ]] || die "no run of ${studies[*]} is of the $only"
plan=$(awk '!seen[$0]++' <<<"$plan")
case $mode in
  --plan) printf '%s\n' "$plan"; exit ;;
  --dry-run) status --dry-run; exit ;;
  --status) status; exit ;;
esac
if status --outcome >/dev/null 2>&1; then
  status --outcome
  exit
fi
runs=$(wc -l <<<"$plan")
((workers <= runs)) || workers=$((runs))

cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-}}
cores=${cores:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > workers ? cores / workers : 1))}
if [[ " $* " == *" --retry "* ]]; then  # failures are forgotten once, before any worker starts
  status --forget
  kept=()
  for flag in "$@"; do [[ $flag == --retry ]] || kept+=("$flag"); done
  set -- ${kept[@]+"${kept[@]}"}
fi
if [[ -n ${SLURM_JOB_ID:-} && $workers == 1 ]]; then  # the other tasks are the other workers
  trap - INT TERM HUP
  worker "$@"
  status --outcome
  exit
fi

logs=$(status --logs) || exit 2
log() { echo "$logs/$HOSTNAME-$$-$1.log"; }
list_gpus() { nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ,; }
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-$(list_gpus)}"

stopped='stopped; the same call goes on from the last finished epoch of each run'
set -m  # each worker leads a process group of its own, which can be ended as a whole
for ((k = 0; k < workers; k++)); do
  if ((${#gpus[@]} > 1)); then export CUDA_VISIBLE_DEVICES=${gpus[k % ${#gpus[@]}]}; fi
  worker "$@" >"$(log $k)" 2>&1 </dev/null &
  pids+=" $!"
done
"$PYTHON" "$repo/lab/status.py" --watch $$ <<<"$plan" &  # a child of this shell, as it ends with it
watch=$!
set +m

k=0 errors=''
for pid in $pids; do
  code=0
  wait "$pid" 2>/dev/null || code=$?
  if ((code > 128)); then
    say "a worker was ended by signal $((code - 128));" \
      "the others took over, or the same call goes on"
  elif ((code)); then
    last=$(tail -n 1 -- "$(log $k)")
    errors+=${last:-run_grid.sh: a worker ended with exit code $code}$'\n'
  fi
  k=$((k + 1))
done
end "$watch"
wait "$watch" 2>/dev/null || true
if [[ -n $errors ]]; then
  sort -u <<<"${errors%$'\n'}" >&2 || true
  exit 2
fi
status --outcome || { say "what the workers printed is in $(printf %q "$logs")"; exit 1; }
