#!/usr/bin/env bash
# A real SLURM of one node on loopback, with pretend GPUs, for the tests: as root, without systemd.
#   cluster.sh install   Debian's packages, where they are missing
#   cluster.sh start     configure, start the daemons, wait until a job runs
#   cluster.sh restart   the controller only
#   cluster.sh stop      end exactly these daemons, by their process numbers
set -euo pipefail

state=${UAD_SLURM_STATE:-/var/tmp/uad-slurm} # every folder above it must be open to munge
cpus=${UAD_SLURM_CPUS:-4}                    # advertised; jobs of the tests are small
memory=${UAD_SLURM_MEMORY:-12000}            # advertised, MB
conf=/etc/slurm                              # SLURM_CONF does not reach the steps of a job
mark="# written by the tests of uad"
node=$(hostname -s)

say() { echo "test cluster: $*" >&2; }

require() {
  [ "$(id -u)" = 0 ] || { say "SLURM's daemons need root; run 'make test-slurm' as root"; exit 3; }
  if [ -e $conf/slurm.conf ] && ! grep -q "$mark" $conf/slurm.conf; then
    say "$conf/slurm.conf is there and not ours: this machine belongs to a cluster; nothing touched"
    exit 3
  fi
}

install() {
  local packages="slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core"
  dpkg --status $packages >/dev/null 2>&1 && return
  command -v apt-get >/dev/null || { say "no apt-get: install $packages by hand"; exit 3; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
  }
}

configure() {
  umask 022
  mkdir -p "$state"/{spool,state,log,pid,munge} $conf
  chmod 755 "$state" "$state/munge"
  [ -s "$state/munge/key" ] || (umask 077; head -c 128 /dev/urandom >"$state/munge/key")
  (
    umask 077 # slurmdbd insists
    cat >$conf/slurmdbd.conf <<END
$mark
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$state/pid/slurmdbd
LogFile=$state/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
CommitDelay=1
END
  )
  cat >$conf/slurm.conf <<END
$mark
ClusterName=uad
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket,cred_expire=20
StateSaveLocation=$state/state
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/pid/slurmctld
SlurmdPidFile=$state/pid/slurmd
SlurmctldLogFile=$state/log/slurmctld
SlurmdLogFile=$state/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
# memory by polling: no control groups here
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$state/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
MinJobAge=300
KillWait=5
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP
END
  # a pretend GPU must be a character device, or SLURM sets no CUDA_VISIBLE_DEVICES
  printf '%s\nNodeName=%s Name=gpu File=/dev/null,/dev/zero\n' "$mark" "$node" >$conf/gres.conf
}

answers() { timeout 3 "$@" >/dev/null 2>&1; }

wait_for() { # seconds, command
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

healthy() { # clients block for minutes without a controller: each has a timeout
  timeout 3 scontrol ping 2>/dev/null | grep -q "is UP" &&
    timeout 3 sinfo -h -n "$node" -o %t 2>/dev/null | grep -qE "^(idle|mix|alloc)" &&
    timeout 10 srun -Q -n1 --gpus=1 -t1 --mem=10 sh -c 'test -n "$CUDA_VISIBLE_DEVICES"' 2>/dev/null
}

start() {
  rm -rf "${state:?}"/{spool,state,log,pid,mysql,munge} # an accounting that starts empty
  configure
  munged --socket="$state/munge/socket" --key-file="$state/munge/key" \
    --pid-file="$state/pid/munged" --log-file="$state/log/munged" --seed-file="$state/munge/seed"
  mariadb-install-db --no-defaults --user=root \
    --datadir="$state/mysql" --skip-test-db --auth-root-authentication-method=socket \
    >"$state/log/mariadb-install" 2>&1
  cat >"$state/init.sql" <<END
CREATE DATABASE IF NOT EXISTS accounting;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON accounting.* TO slurm@'127.0.0.1';
END
  setsid mariadbd --no-defaults --user=root --datadir="$state/mysql" --socket="$state/mysql.sock" \
    --pid-file="$state/pid/mariadbd" --bind-address=127.0.0.1 --port=13306 --skip-name-resolve \
    --init-file="$state/init.sql" --innodb-buffer-pool-size=64M \
    --innodb-flush-log-at-trx-commit=0 >"$state/log/mariadbd" 2>&1 </dev/null &
  wait_for 30 answers mariadb --no-defaults -h127.0.0.1 -P13306 -uslurm -pslurm -e "select 1" accounting
  slurmdbd
  wait_for 30 answers sacctmgr -n list cluster
  sacctmgr -i -Q add cluster uad >/dev/null 2>&1 || true # before the controller starts
  sacctmgr -i -Q add account uad cluster=uad >/dev/null 2>&1 || true
  sacctmgr -i -Q add user root account=uad cluster=uad >/dev/null 2>&1 || true
  slurmctld -c
  slurmd -c
  wait_for 40 healthy && say "up after $SECONDS s" && return
  say "did not come up"
  tail -n 20 "$state"/log/* >&2
  return 1
}

end() { # one daemon: only if its number still belongs to it
  local pid program
  pid=$(cat "$state/pid/$1" 2>/dev/null) || return 0
  program=$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null)")
  [ "${program%-wlm}" = "$1" ] || return 0 # Debian: slurmd-wlm
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

stop() { # slurmd first: without a controller it ignores SIGTERM
  for daemon in slurmd slurmctld slurmdbd mariadbd munged; do end $daemon; done
  # else systemd would start this cluster at the next boot
  for file in slurm.conf gres.conf slurmdbd.conf; do
    ! grep -qs "$mark" $conf/$file || rm $conf/$file
  done
}

restart() { # the controller, as an administrator would; its state stays
  end slurmctld
  slurmctld
  wait_for 30 answers scontrol ping
}

case "${1:-}" in
install) require; install ;;
start) require; start ;;
stop) stop ;;
restart) require; restart ;;
*) sed -n '2,6s/^# //p' "$0" >&2; exit 2 ;;
esac
