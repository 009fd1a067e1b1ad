#!/usr/bin/env bash
# Slurm's commands, as far as `deltaconv alloc slurm` and its page use them: under each of their names this script runs jobs as
# processes of this machine. FAKE_SLURM is the folder with what it knows of them. In it a file `refuse` has sbatch fail with its text,
# and a file `hold` has jobs wait.
set -u
jobs=$FAKE_SLURM

# OPTION ARGUMENTS…: the value of --OPTION=VALUE, the last one.
value() {
  local option=$1 found="" argument
  shift
  for argument in "$@"; do
    case $argument in --"$option"=*) found=${argument#*=} ;; esac
  done
  printf '%s' "$found"
}

# ID: runs it, again after a requeue, and notes how it ended.
start() {
  local id=$1 job=$jobs/slurm-$1 code
  (
    while true; do
      echo RUNNING >"$job.state"
      date +%s >"$job.begin"
      : >"$job.alive"
      SLURM_JOB_ID=$id SLURM_RESTART_COUNT=$(cat "$job.restarts") SLURMD_NODENAME=node1 SLURM_CPUS_ON_NODE=1 \
        bash "$job.script" >>"$(cat "$job.output")" 2>&1 &
      echo $! >"$job.pid"
      wait $!
      code=$?
      date +%s >"$job.end"
      rm -f "$job.alive"
      if [ -e "$job.requeue" ]; then
        rm "$job.requeue"
        echo $(($(cat "$job.restarts") + 1)) >"$job.restarts"
        continue
      fi
      if [ -e "$job.cancelled" ]; then echo CANCELLED; elif [ $code -eq 0 ]; then echo COMPLETED; else echo FAILED; fi >"$job.state"
      break
    done
  ) </dev/null >/dev/null 2>&1 &
}

# Their numbers, in order.
numbers() { find "$jobs" -name 'slurm-*.state' | sed 's/.*slurm-//; s/\.state//' | sort -n; }

case ${0##*/} in
  sbatch)
    if [ -e "$jobs/refuse" ]; then
      cat "$jobs/refuse" >&2
      exit 1
    fi
    id=$(($(numbers | tail -n 1) + 1))
    job=$jobs/slurm-$id
    cat >"$job.script"
    value job-name "$@" >"$job.name"
    output=$(value output "$@")
    printf '%s' "${output//%j/$id}" >"$job.output"
    echo 0 >"$job.restarts"
    echo PENDING >"$job.state"
    [ -e "$jobs/hold" ] || start "$id"
    # As it is seen by whoever asks next.
    until [ -e "$jobs/hold" ] || [ -s "$job.pid" ]; do sleep 0.01; done
    echo "$id"
    ;;
  squeue)
    format=$(value format "$@") named=$(value name "$@") states=$(value states "$@") ids=,$(value jobs "$@"),
    [ "$format" ] || format='%i %j %T'
    for id in $(numbers); do
      job=$jobs/slurm-$id
      state=$(cat "$job.state") name=$(cat "$job.name")
      [ -z "$named" ] || [ "$named" = "$name" ] || continue
      [ "$ids" = ,, ] || [[ $ids == *,$id,* ]] || continue
      [ "$states" = all ] || [[ $state == PENDING || $state == RUNNING ]] || continue
      line=${format//%i/$id}
      line=${line//%j/$name}
      line=${line//%T/$state}
      line=${line//%S/$(cat "$job.begin" 2>/dev/null || echo N/A)}
      line=${line//%e/$(cat "$job.end" 2>/dev/null || echo NONE)}
      line=${line//%r/None}
      printf '%s\n' "$line"
    done
    ;;
  scancel)
    named=$(value name "$@") only=$(value state "$@")
    for id in $(numbers); do
      job=$jobs/slurm-$id
      [[ " $* " == *" $id "* ]] || { [ "$named" ] && [ "$named" = "$(cat "$job.name")" ]; } || continue
      state=$(cat "$job.state")
      if [ "$state" = PENDING ]; then
        date +%s >"$job.end"
        echo CANCELLED >"$job.state"
      elif [ "$state" = RUNNING ] && [ "$only" != PENDING ]; then
        : >"$job.cancelled"
        kill "$(cat "$job.pid")"
      fi
    done
    ;;
  scontrol)
    case "$1 $2" in
      "show config") echo "KillWait                = 30 sec" ;;
      "requeue "*)
        : >"$jobs/slurm-$2.requeue"
        kill "$(cat "$jobs/slurm-$2.pid")"
        ;;
      *) exit 1 ;;
    esac
    ;;
  sinfo) echo node1 ;;
esac
