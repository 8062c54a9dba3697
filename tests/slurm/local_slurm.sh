#!/bin/bash
# A real Slurm on one machine: slurmctld + N slurmd "nodes", each with its own hostname and network.
#   local_slurm.sh start DIR [N]   make DIR's configuration from nothing and start (N nodes, default 2)
#   local_slurm.sh stop  DIR       cancel jobs, stop every process started from DIR, undo the network
#   local_slurm.sh kill-node DIR nK   power node nK off: SIGKILL its slurmd, step daemons and job processes
#   local_slurm.sh boot-node DIR nK   start nK's slurmd again
#   local_slurm.sh env   DIR       print the export line that points sbatch/srun/squeue at it
# All files lie under DIR. Root only (network, mount and UTS namespaces). Knobs, as environment variables:
#   LS_CPUS=8 LS_MEM=16000 LS_GPUS=0   what each node claims to have (nothing is enforced)
#   LS_CRED=10        seconds a requeued job is held (AuthInfo cred_expire; Slurm's own default is 120)
#   LS_KILLWAIT=5     seconds between SIGTERM and SIGKILL (Slurm's own default is 30)
#   LS_TIMEOUT=15     SlurmdTimeout: seconds until a silent node is DOWN (Slurm's own default is 300)
#   LS_TRACK=cgroup   how a job's processes are found: "cgroup" (v1 freezer, where writable) or "linuxproc", which
#                     loses a process whose parent died (an orphaned worker then outlives its job)
#   LS_PREFIX=n       node names are n1, n2, ...; two clusters at once need two prefixes (their cgroups bear node names)
#   LS_NET=netns      "netns": node nK is 10.SUB.K, own network; "host": all on 127.0.0.1, own hostname and /etc/hosts
#   LS_SUBNET=77.3 LS_PORT=20000   otherwise derived from DIR's path
set -euo pipefail
die() { echo "local_slurm: $*" >&2; exit 1; }
[[ $# -ge 2 ]] || die "usage: $0 start|stop|env|kill-node|boot-node DIR [N|node]"
CMD=$1; mkdir -p "$2"; DIR=$(cd "$2" && pwd -P); ARG=${3:-}
export PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH SLURM_CONF=$DIR/slurm.conf
SUM=$(printf %s "$DIR" | cksum | cut -d' ' -f1)
BR=ls$((SUM % 100000000))                                   # bridge; an interface name has at most 15 characters
FREEZER=/sys/fs/cgroup/freezer                              # cgroup v1; where it is missing, linuxproc is used
P=${LS_PREFIX:-n}
NS() { echo "$DIR/ns/$1"; }

mine() {  # mine PID EXE: is PID a live EXE that was started from DIR (not a stranger that reused the number)?
  [[ $1 =~ ^[0-9]+$ && -r /proc/$1/environ ]] || return 1
  [[ $(readlink "/proc/$1/exe") == */$2* ]] && tr '\0' '\n' < "/proc/$1/environ" | grep -qxF "LS_DIR=$DIR"
}
wait_gone() { local i; for ((i = 0; i < $2 * 20; i++)); do [[ -d /proc/$1 ]] || return 0; [[ $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) == Z ]] && return 0; sleep .05; done; return 1; }
stop_pidfile() {  # stop_pidfile FILE EXE
  local p; [[ -s $1 ]] || return 0; p=$(tr -dc 0-9 < "$1")
  if mine "$p" "$2"; then kill "$p"; wait_gone "$p" 5 || { kill -9 "$p"; wait_gone "$p" 2 || true; }; fi
  rm -f "$1"
}
# A node's processes: those that carry LS_NODE=nK and LS_DIR=DIR in their environment (slurmd and slurmstepd do),
# those that carry slurmd's own SLURMD_NODENAME=nK and SLURM_CONF (job processes do) and, where nK has its own
# network namespace, everything in it. A job's daemonised children are found as well.
node_pids() {  # node_pids NODE...
  local p n variables all
  for p in /proc/[0-9]*; do
    p=${p#/proc/}; [[ $p == "$$" || $p == "$BASHPID" ]] && continue
    variables=(); { mapfile -d '' -t variables < "/proc/$p/environ"; } 2> /dev/null || true
    printf -v all '%s\n' '' "${variables[@]}"
    for n; do
      if [[ -e $DIR/ns/$n && /proc/$p/ns/net -ef $DIR/ns/$n ]]; then echo "$p"
      elif [[ $all == *$'\n'"LS_NODE=$n"$'\n'* && $all == *$'\n'"LS_DIR=$DIR"$'\n'* ]]; then echo "$p"
      elif [[ $all == *$'\n'"SLURMD_NODENAME=$n"$'\n'* && $all == *$'\n'"SLURM_CONF=$SLURM_CONF"$'\n'* ]]; then echo "$p"; fi
    done
  done
}
nodes() { sed -n 's/^NodeName=\([a-z]*[0-9]*\) .*/\1/p' "$DIR/slurm.conf" 2>/dev/null || true; }

boot_node() {
  local n=$1 enter=(); [[ -e $(NS "$n") ]] && enter=(nsenter "--net=$(NS "$n")")
  # shellcheck disable=SC2016
  LS_DIR=$DIR LS_NODE=$n ${enter[@]+"${enter[@]}"} unshare --mount --uts sh -ec '
    hostname "$LS_NODE"; mount --bind "$LS_DIR/hosts" /etc/hosts; exec slurmd -N "$LS_NODE"' < /dev/null >> "$DIR/log/start.log" 2>&1 \
    || die "slurmd $n did not start: $(tail -n 3 "$DIR/log/start.log" "$DIR/log/slurmd.$n.log" 2>/dev/null)"
}

stop() {
  local n p left
  if [[ -s $DIR/run/slurmctld.pid ]] && mine "$(tr -dc 0-9 < "$DIR/run/slurmctld.pid")" slurmctld; then
    left=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u || true)
    if [[ -n $left ]]; then
      # shellcheck disable=SC2086
      timeout 10 scancel $left 2>/dev/null || true
      for ((n = 0; n < 40; n++)); do [[ -z $(timeout 10 squeue -h 2>/dev/null) ]] && break; sleep .25; done
    fi
  fi
  for n in $(nodes); do stop_pidfile "$DIR/run/slurmd.$n.pid" slurmd; done
  stop_pidfile "$DIR/run/slurmctld.pid" slurmctld
  stop_pidfile "$DIR/run/munged.pid" munged
  # shellcheck disable=SC2046
  for p in $(node_pids $(nodes)); do kill -9 "$p" 2>/dev/null || true; wait_gone "$p" 2 || true; done
  for n in $(nodes); do   # the node's own cgroup, empty by now
    if [[ -f $DIR/cgroup.conf && -d $FREEZER/slurm_$n ]]; then find "$FREEZER/slurm_$n" -depth -type d -exec rmdir {} + 2>/dev/null || true; fi
  done
  for n in "$DIR"/ns/*; do [[ -e $n ]] || continue; umount "$n" 2>/dev/null || true; rm -f "$n"; done   # the veth pair goes with its namespace
  if [[ -f $DIR/run/bridge ]]; then ip link del "$(cat "$DIR/run/bridge")" 2>/dev/null || true; rm -f "$DIR/run/bridge"; fi
}

start() {
  local N=${ARG:-2} net=${LS_NET:-netns} port=${LS_PORT:-$((20000 + SUM % 400 * 20))} sub=${LS_SUBNET:-$((64 + SUM / 400 % 64)).$((SUM / 25600 % 256))}
  local cpus=${LS_CPUS:-8} mem=${LS_MEM:-16000} gpus=${LS_GPUS:-0} k n ctl gres="" self b bin track=linuxproc
  [[ $N =~ ^[1-9][0-9]?$ ]] || die "N is 1 to 99, not '$N'"
  [[ $EUID == 0 ]] || die "root only"
  for bin in munged slurmctld slurmd sinfo ip nsenter unshare; do
    command -v $bin > /dev/null || die "$bin not found: apt-get install -y --no-install-recommends munge slurmctld slurmd slurm-client iproute2 util-linux"
  done
  (( ${#DIR} < 75 )) || die "DIR's path is too long for the unix sockets under it (108 bytes in all)"
  [[ $DIR =~ ^[A-Za-z0-9/._+-]+$ ]] || die "DIR's path may hold only letters, digits and / . _ + -"
  stop                                                       # whatever an earlier start left here
  rm -rf "$DIR"/{run,state,spool,log,ns}; umask 022; chmod 755 "$DIR"
  mkdir -p "$DIR"/{run,state,spool,log,ns}
  if [[ -w $FREEZER/release_agent && ${LS_TRACK:-cgroup} == cgroup ]]; then
    track=cgroup
    for ((k = 1; k <= N; k++)); do
      [[ -e $FREEZER/slurm_$P$k ]] && die "$FREEZER/slurm_$P$k exists: another local Slurm uses the node name $P$k; give this one LS_PREFIX"
    done
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup CgroupAutomount=no > "$DIR/cgroup.conf"
  else rm -f "$DIR/cgroup.conf"; fi
  self=$(hostname -s); ctl=127.0.0.1; [[ $net == netns ]] && ctl=10.$sub.254
  { echo "127.0.0.1 localhost"; echo "$ctl $self"; for ((k = 1; k <= N; k++)); do [[ $net == netns ]] && echo "10.$sub.$k $P$k" || echo "127.0.0.1 $P$k"; done; } > "$DIR/hosts"
  (umask 077; head -c 1024 /dev/urandom > "$DIR/munge.key.new"; mv -f "$DIR/munge.key.new" "$DIR/munge.key")

  {
    cat <<CONF
ClusterName=local
SlurmctldHost=$self($ctl)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/run/munge.sock,cred_expire=${LS_CRED:-10}
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
PlugStackConfig=$DIR/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/$track
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=${LS_KILLWAIT:-5}
SlurmdTimeout=${LS_TIMEOUT:-15}
MinJobAge=3600
CONF
    if ((gpus > 0)); then
      gres=" Gres=gpu:$gpus"; echo "GresTypes=gpu"
      # One character device per GPU (each a twin of /dev/null): only then does Slurm set CUDA_VISIBLE_DEVICES.
      for ((k = 0; k < gpus; k++)); do mknod "$DIR/run/gpu$k" c 1 3; done
      if ((gpus == 1)); then echo "Name=gpu File=$DIR/run/gpu0"; else echo "Name=gpu File=$DIR/run/gpu[0-$((gpus - 1))]"; fi > "$DIR/gres.conf"
    else rm -f "$DIR/gres.conf"; fi
    for ((k = 1; k <= N; k++)); do
      [[ $net == netns ]] && b="10.$sub.$k" || b=127.0.0.1
      echo "NodeName=$P$k NodeHostname=$P$k NodeAddr=$b Port=$((port + k)) CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$mem$gres State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
  } > "$DIR/slurm.conf"
  : > "$DIR/plugstack.conf"

  if [[ $net == netns ]]; then
    ip link add "$BR" type bridge; echo "$BR" > "$DIR/run/bridge"
    ip addr add "$ctl/24" dev "$BR"; ip link set "$BR" up
    for ((k = 1; k <= N; k++)); do
      n=$P$k; : > "$(NS "$n")"; unshare "--net=$(NS "$n")" true
      ip link add "$BR.$k" type veth peer name eth0 netns "$(NS "$n")"
      ip link set "$BR.$k" master "$BR" up
      nsenter "--net=$(NS "$n")" sh -ec "ip link set lo up; ip addr add 10.$sub.$k/24 dev eth0; ip link set eth0 up"
    done
  fi
  # --force: munged refuses a socket under a 0700 directory, such as pytest's tmp_path; root needs no more than that
  LS_DIR=$DIR munged --force --key-file="$DIR/munge.key" --socket="$DIR/run/munge.sock" --pid-file="$DIR/run/munged.pid" \
    --log-file="$DIR/log/munged.log" --seed-file="$DIR/run/munge.seed" < /dev/null >> "$DIR/log/start.log" 2>&1 \
    || die "munged did not start: $(tail -n 3 "$DIR/log/start.log" "$DIR/log/munged.log")"
  LS_DIR=$DIR slurmctld -i < /dev/null >> "$DIR/log/start.log" 2>&1 || die "slurmctld did not start: $(tail -n 3 "$DIR/log/start.log" "$DIR/log/slurmctld.log")"
  for ((k = 1; k <= N; k++)); do boot_node "$P$k"; done
  for ((k = 0; k < 150; k++)); do
    [[ $(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l) == "$N" ]] && { echo "export SLURM_CONF=$DIR/slurm.conf"; return 0; }
    sleep .1
  done
  sinfo -N -l >&2 || true; die "the $N nodes did not all become idle; see $DIR/log"
}

case $CMD in
  start) trap '[[ $? == 0 ]] || stop' EXIT; start ;;         # a failed start leaves nothing behind but its logs
  stop) stop ;;
  env) echo "export SLURM_CONF=$DIR/slurm.conf" ;;
  kill-node) for p in $(node_pids "$ARG"); do kill -9 "$p" 2>/dev/null || true; done; rm -f "$DIR/run/slurmd.$ARG.pid" ;;
  boot-node) boot_node "$ARG" ;;
  *) die "unknown command $CMD" ;;
esac
