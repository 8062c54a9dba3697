# shellcheck shell=bash
# What the batch scripts share; each of them sources this file. Nothing here names a site: that stands in slurm/site.sh.
#
#   start_job JOB "$@"     own options off the flags, environment, run folder, log, checks on every node, --stage
#   run_job                the job on all nodes; a stop request saves and requeues; ends with the job's exit code
#
# Environment: FLOWERS_HOME (the checkout; default: the folder of sbatch), FLOWERS_SITE (default: slurm/site.sh),
# FLOWERS_VENV, FLOWERS_WRAP (put before python, a container say), FLOWERS_LOCAL (node-local disk, default /tmp),
# FLOWERS_MAX_REQUEUES (50), FLOWERS_STOP_TIMEOUT (seconds to save in, 600), FLOWERS_PORT, FLOWERS_ONLINE (1: allow
# downloads).

set -euo pipefail

say() { printf 'flowers: %s %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() { printf 'flowers: error: %s\n' "$*" >&2; exit 1; }

# Find python and make sure that it can run the jobs, and that our own variables hold what they should.
find_python() {
  local site=${FLOWERS_SITE:-$root/slurm/site.sh}
  set +u  # what conda and modules run of their own reads variables that are not set
  # shellcheck source=/dev/null
  if [[ -e $site ]]; then source "$site" || fail "$site: failed"; fi
  set -u
  local name  # here, not when a job is to be requeued
  for name in FLOWERS_MAX_REQUEUES FLOWERS_STOP_TIMEOUT FLOWERS_PORT FLOWERS_SHARDS; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || fail "$name: got '${!name}', expected a number"
  done
  read -ra wrap <<< "${FLOWERS_WRAP:-}"
  if [[ -n ${FLOWERS_VENV:-} ]]; then python=$FLOWERS_VENV/bin/python
  elif [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python
  else python=python3; fi
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  export SLURM_EXPORT_ENV=ALL  # also after sbatch --export=NONE, what is set here reaches the nodes
  [[ -n ${FLOWERS_ONLINE:-} ]] || export HF_HUB_OFFLINE=1
  local reason
  reason=$(in_environment "$python" -c 'import importlib.util as u, flowers.cli
for name in ("torch", "accelerate"): assert u.find_spec(name), f"no module {name}"' 2>&1) || fail "$python cannot run the" \
    "jobs (${reason##*$'\n'}): set FLOWERS_VENV, or load the environment in $site, see slurm/site.sh.example"
}
in_environment() { ${wrap[@]+"${wrap[@]}"} "$@"; }

# Take --stage and --processes N off the front of the flags; the rest is for the job.
read_own_options() {
  stage='' processes=''
  while [[ ${1:-} == --stage || ${1:-} == --processes ]]; do
    if [[ $1 == --stage ]]; then stage=1; shift
    else processes=${2:-}; [[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes: got '$processes', expected a number"; shift 2; fi
  done
  flags=("$@")
}

# Give the job a flag in the place of the user's own: a flag given twice is refused. --data is short for --data-dir.
set_flag() {
  local word kept=() value_follows=''
  for word in "${flags[@]}"; do
    if [[ $value_follows ]]; then value_follows=''; continue; fi
    case ${word//_/-} in
      "$1" | "${1%-dir}") value_follows=1 ;;
      "$1="* | "${1%-dir}="*) ;;
      *) kept+=("$word") ;;
    esac
  done
  flags=(${kept[@]+"${kept[@]}"} "$1" "$2")
}

# Nodes, processes a node, and where they meet. The port follows from the job's number, so that two jobs on a node
# differ, and lies below the ports that the kernel gives to outgoing connections.
count_processes() {
  nodes=${SLURM_JOB_NUM_NODES:-1}
  processes=${processes:-${SLURM_GPUS_ON_NODE:-1}}
  # shellcheck disable=SC2153 # Slurm's variable, ours is another
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  port=${FLOWERS_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
}

# A command once on every node.
on_every_node() {
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    --kill-on-bad-exit=1 "$@"
}

# The log is where sbatch put it; the run folder gets a link to it.
link_log() {
  mkdir -p "$log_dir" || fail "$log_dir cannot be made: choose another --output-dir or --output"
  local log
  log=$(readlink "/proc/$$/fd/1" || true)
  if [[ -f $log && $(dirname "$log") != "$log_dir" ]]; then ln -sfn "$log" "$log_dir/$(basename "$log")"; fi
}

start_job() {
  job=$1; shift
  asked_s=''
  trap 'asked_s=$SECONDS' USR1 USR2  # the warning may come while data is being staged
  own_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  own_id=${own_id:-$SLURM_JOB_ID}  # of an array, SLURM_JOB_ID may stand for all of its tasks
  read_own_options "$@"
  find_python
  count_processes
  say "job $SLURM_JOB_ID${SLURM_ARRAY_TASK_ID:+ (task $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_JOB_ID)}," \
    "start $((${SLURM_RESTART_COUNT:-0} + 1)): $job on $SLURM_JOB_NODELIST, $processes processes a node"
  # Checks the flags and the files that they name, then sets these from them.
  local paths
  data='' data_flag='' run_dir='' log_dir=''
  paths=$(in_environment "$python" "$root/slurm/preflight.py" flags "$job" "${flags[@]}") || exit $?
  eval "$paths"
  link_log
  stopped_mark=$log_dir/.stopped-$SLURM_JOB_ID
  rm -f "$stopped_mark"
  withdraw_stop  # of a start that was killed
  on_every_node ${wrap[@]+"${wrap[@]}"} "$python" "$root/slurm/preflight.py" node --nodes "$nodes" --processes "$processes" \
    --head "$head" --port "$port" --data "$data" --run-dir "$run_dir" || fail "a node is not fit for this job, see above"
  if [[ -n $stage ]]; then stage_data; fi
}

stage_data() {
  staged=${FLOWERS_LOCAL:-/tmp}/flowers-$(id -u)-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}/$(basename "$data")
  local action=copy here=$staged
  [[ -d $data || $data == *.tar || $data == *.tar.* ]] || fail "--stage: got $data, expected a folder or a tar file"
  if [[ -f $data && $job != predict ]]; then action=unpack here=${staged%.tar*}; fi  # predict reads tar files itself
  say "staging $data to $here"
  on_every_node bash "$root/slurm/stage.sh" "$action" "$data" "$staged" || fail "$data could not be staged, see above"
  trap unstage EXIT
  if [[ $job == predict ]]; then set_flag "$data_flag" "$here"
  else export FLOWERS_STAGED=$data FLOWERS_STAGED_COPY=$here; fi  # what a run remembers is the user's own path
}
unstage() { on_every_node bash "$root/slurm/stage.sh" remove "$staged" || true; }

# Slurm's warning before the time limit, or anybody's scancel --batch --signal=USR1. This shell gets it, not the job:
# training is told by a file that every node sees, which no library can catch, and which is not lost on a worker that
# is still starting; the others, each on one node, by a signal.
ask_to_stop() {
  interrupted=1
  [[ -z $asked_s ]] || return 0
  asked_s=$SECONDS
  if [[ $job != train ]] || ! echo "Slurm job $SLURM_JOB_ID" > "$run_dir/stop"; then
    scancel --signal=USR1 "$own_id" || true  # the steps; without --batch this shell is left out
  fi
  say "asked to stop with $(squeue --noheader --jobs="$own_id" --format=%L || echo '?') of the time left"
}

# Take away our own stop file, where training has not: it would stop whoever uses the run folder next.
withdraw_stop() { if grep -qsx "Slurm job $SLURM_JOB_ID" "$run_dir/stop"; then rm -f "$run_dir/stop"; fi; }

# scancel or Slurm's preemption: the job gets its own signal and saves; Slurm decides whether it comes back.
be_cancelled() { interrupted=1 cancelled=1; }

run_job() {
  local meeting=()  # on one node the launcher finds a free port itself
  if ((nodes > 1)); then meeting=(--num-machines "$nodes" --main-process-ip "$head" --main-process-port "$port"); fi
  cancelled=''
  trap ask_to_stop USR1 USR2
  trap be_cancelled TERM
  if [[ -n $asked_s ]]; then say "asked to stop before it began"; requeue; exit 75; fi
  on_every_node ${wrap[@]+"${wrap[@]}"} "$python" -m flowers.launch --num-processes "$((nodes * processes))" \
    ${meeting[@]+"${meeting[@]}"} --stop-timeout "${FLOWERS_STOP_TIMEOUT:-600}" --stopped-mark "$stopped_mark" \
    "$root/jobs/$job.py" "${flags[@]}" &
  local code step=$!
  while :; do  # a trap runs only between waits, and breaks one off
    interrupted='' code=0
    wait "$step" || code=$?
    [[ -n $interrupted ]] || break
  done
  if [[ $code == 0 && -e $stopped_mark ]]; then code=75; fi
  rm -f "$stopped_mark"
  withdraw_stop  # it came too late, or the job failed
  if [[ -n $asked_s ]]; then say "ended $((SECONDS - asked_s)) s after the request to stop"; fi
  if [[ $code == 75 && -z $cancelled ]]; then requeue; fi
  say "exit code $code"
  exit "$code"
}

requeue() {
  local again="submit the same command again to go on"
  if ((${SLURM_RESTART_COUNT:-0} >= ${FLOWERS_MAX_REQUEUES:-50})); then
    say "stopped and saved; requeued ${SLURM_RESTART_COUNT:-0} times already (FLOWERS_MAX_REQUEUES): $again"; return
  fi
  say "stopped and saved; requeueing"
  if [[ -n $stage ]]; then trap - EXIT; unstage; fi
  trap 'exit 0' TERM  # what scontrol requeue sends to this shell
  scontrol requeue "$own_id" || { say "Slurm does not requeue this job: $again"; return; }
  sleep 60 & wait $!
}
