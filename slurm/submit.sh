#!/usr/bin/env bash
# Check everything that can be checked now, then submit a job:
#
#   slurm/submit.sh [--dry-run] [--after JOB] KIND [sbatch flags] -- [--stage] [--processes N] [the job's flags]
#
# KIND is train, train_multinode, evaluate or predict (an array, then the job that joins its parts).
# --after JOB   start once that job has succeeded; cancelled if it failed. The checkpoint need not exist yet.
# --dry-run     check, and print the sbatch commands instead of running them
#
# Only the number that a next job can wait for is printed to stdout, so that jobs can be chained:
#
#   train=$(slurm/submit.sh train --gpus-per-node=4 -- --data-dir data/flowers102 --output-dir runs/a)
#   slurm/submit.sh --after "$train" evaluate -- --checkpoint runs/a --data-dir data/flowers102
#
# Partition, account and the like: on this command line, or as SBATCH_... variables in slurm/site.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"

usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  printf 'flowers: error: %s\n' "$*" >&2
  exit 2
}

read_arguments() {
  dry_run='' after='' kind='' sbatch_flags=()
  while (($#)); do
    case $1 in
      --dry-run) dry_run=1; shift ;;
      --after) after=${2:-}
        [[ $after =~ ^[0-9]+$ || -n $dry_run && $after == *_JOB ]] || { echo "--after: got '$after', expected a job number" >&2; exit 2; }
        shift 2 ;;
      train | train_multinode | evaluate | predict) kind=$1; shift; break ;;
      *) usage "got '$1', expected train, train_multinode, evaluate or predict" ;;
    esac
  done
  [[ -n $kind ]] || usage "expected train, train_multinode, evaluate or predict"
  while (($#)) && [[ $1 != -- ]]; do sbatch_flags+=("$1"); shift; done
  (($#)) || usage "expected -- between sbatch's flags and the job's own"
  shift
  job_flags=("$@")
}

# value_of NAME VARIABLE [LETTER]: of an sbatch flag, as --NAME=VALUE, --NAME VALUE or -LETTER VALUE, else what
# VARIABLE says, else as the script has it.
value_of() {
  local value index short=-${3:-none}
  value=$(sed -n "s/^#SBATCH --$1=//p" "$script")
  value=${!2:-$value}
  for index in "${!sbatch_flags[@]}"; do
    case ${sbatch_flags[index]} in
      "--$1="*) value=${sbatch_flags[index]#*=} ;;
      "--$1" | "$short") value=${sbatch_flags[index + 1]:-} ;;
      "$short"*) value=${sbatch_flags[index]#"$short"} ;;
    esac
  done
  printf '%s' "$value"
}

# Of sbatch's flags those that say where and on whose account: the job that joins an array's parts needs them as well.
find_shared_flags() {
  local index
  shared_flags=()
  for index in "${!sbatch_flags[@]}"; do
    case ${sbatch_flags[index]} in
      --account=* | --partition=* | --qos=* | --reservation=* | -[Apq]?*) shared_flags+=("${sbatch_flags[index]}") ;;
      --account | --partition | --qos | --reservation | -[Apq]) shared_flags+=("${sbatch_flags[@]:index:2}") ;;
    esac
  done
}

check() {
  local job=${kind%_multinode} later=() lead paths
  script=$root/slurm/$kind.sbatch
  if [[ $kind == predict ]]; then script=$root/slurm/predict_array.sbatch; fi
  if [[ -n $after ]]; then later=(--later); fi
  command -v sbatch > /dev/null || fail "sbatch not found: submit where Slurm is"
  find_python
  read_own_options ${job_flags[@]+"${job_flags[@]}"}
  data='' data_flag='' run_dir='' log_dir=''
  paths=$(in_environment "$python" "$root/slurm/preflight.py" flags ${later[@]+"${later[@]}"} \
    "$job" ${flags[@]+"${flags[@]}"}) || exit $?
  eval "$paths"
  lead=$(value_of signal SBATCH_SIGNAL)
  if [[ $lead == *@* ]]; then
    in_environment "$python" "$root/slurm/preflight.py" times "$(value_of time SBATCH_TIMELIMIT t)" "${lead#*@}" || exit $?
  fi
  if [[ $kind == predict ]]; then check_array "$(value_of array SBATCH_ARRAY_INX a)"; fi
}

# Each task takes its share by its number: with other numbers some photos would be nobody's, and the last job would fail.
check_array() {
  [[ -n ${FLOWERS_SHARDS:-} || $1 =~ ^0(-[0-9]+)?(%[0-9]+)?$ ]] || fail "--array: got $1, expected 0-N for N + 1 tasks;" \
    "to repeat some of N tasks, set FLOWERS_SHARDS=N"
}

# The one slow check, seconds: that pre-trained weights are where the nodes look; here, where a network may be, they are fetched.
check_weights() {
  HF_HUB_OFFLINE='' in_environment "$python" "$root/slurm/preflight.py" weights train ${flags[@]+"${flags[@]}"} >&2 || exit $?
}

# What Slurm would say to a job. Dependencies are left out: it is about what the cluster has, not about when.
ask_slurm() {
  local reason
  reason=$(sbatch --test-only "${@/--dependency=*/--kill-on-invalid-dep=yes}" 2>&1) \
    || fail "Slurm would not take this job: ${reason##*error: }"
}

# submit NAME SBATCH_ARGUMENT...: prints the job's number, or in a dry run what stands for it.
submit() {
  local name=$1 number; shift
  local command=(sbatch --parsable --output="${log_dir//%/%%}/$log_name" "$@")
  ask_slurm "$@"
  if [[ $name == train* ]]; then check_weights; fi
  if [[ -n $dry_run ]]; then printf '%q ' "${command[@]}" >&2; echo >&2; echo "${name^^}_JOB"; return; fi
  number=$("${command[@]}") || fail "sbatch failed"
  number=${number%%;*}  # a cluster's name may follow
  say "$name is job $number; log: $log_dir/${log_name//%[jA]/$number}" >&2
  echo "$number"
}

read_arguments "$@"
check
export FLOWERS_HOME=$root
if [[ -z $dry_run ]]; then mkdir -p "$log_dir"; fi  # a log folder that is not there fails the job without a word
chain=(--kill-on-invalid-dep=yes)
if [[ -n $after ]]; then chain+=("--dependency=afterok:$after"); fi
log_name=$kind-%j.log
if [[ $kind != predict ]]; then
  submit "$kind" "${chain[@]}" ${sbatch_flags[@]+"${sbatch_flags[@]}"} "$script" ${job_flags[@]+"${job_flags[@]}"}
  exit
fi
find_shared_flags
merge=(${shared_flags[@]+"${shared_flags[@]}"} "$root/slurm/merge.sbatch" ${flags[@]+"${flags[@]}"})
ask_slurm "${merge[@]}"  # before the array is in the queue
for index in ${job_flags[@]+"${!job_flags[@]}"}; do
  # A failed photo must fail the last job, not its task: then there would be no last job, and no file.
  if [[ ${job_flags[index]} == --strict ]]; then job_flags[index]=--no-strict; fi
done
# Once here rather than in each task; with --after, the checkpoint that a list belongs to may not be there yet.
if [[ -z $dry_run$after ]]; then
  in_environment "$python" "$root/jobs/predict.py" ${flags[@]+"${flags[@]}"} --list-only >&2 || exit $?
fi
log_name=predict-%A_%a.log
array=$(submit predict "${chain[@]}" ${sbatch_flags[@]+"${sbatch_flags[@]}"} "$script" ${job_flags[@]+"${job_flags[@]}"})
log_name="merge-%j.log"
submit merge --kill-on-invalid-dep=yes --dependency="afterok:$array" "${merge[@]}"
