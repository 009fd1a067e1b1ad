#!/usr/bin/env bash
# `deltaconv` for the scripts of documented.rs: runs it as somebody at a terminal would. What goes on until it is stopped goes to the
# background, or is stopped after a look; what takes minutes is made small. DOCUMENTED_PROGRAM is the executable, DOCUMENTED_NOTES a
# folder for logs, DOCUMENTED_ADDRESS where coordinators listen; descriptor 3 closes when the test is over.
set -u
program=$DOCUMENTED_PROGRAM notes=$DOCUMENTED_NOTES

# NAME ARGUMENTS…; NAME.alive is there for as long as it runs.
background() {
  local name=$1
  shift
  : >"$notes/$name.log"
  : >"$notes/$name.alive"
  (
    "$program" "$@" --exit-with-parent <&3 >"$notes/$name.log" 2>&1 &
    echo $! >"$notes/$name.pid"
    wait $!
    rm -f "$notes/$name.alive"
  ) >/dev/null 2>&1 &
}

# NAME WORDS: waits until its log has them.
until_it_says() {
  for _ in $(seq 900); do
    grep -q "$2" "$notes/$1.log" 2>/dev/null && return
    [ -e "$notes/$1.alive" ] || break
    sleep 0.1
  done
  cat "$notes/$1.log" >&2
  exit 2
}

# NAME: asks it to end, if it runs, and waits until it has.
end() {
  [ -e "$notes/$1.alive" ] || return 0
  kill "$(cat "$notes/$1.pid")"
  while [ -e "$notes/$1.alive" ]; do sleep 0.05; done
}

case "${1:-}" in
  coordinator)
    # One that runs is backed up as it runs.
    [ "${2:-}" != backup ] || exec "$program" "$@"
    # There is one at a time; a state is restored when the one before is gone.
    end coordinator
    if [ "${2:-}" != restore ]; then
      case " $* " in *" --listen "*) ;; *) set -- "$@" --listen "$DOCUMENTED_ADDRESS" ;; esac
      background coordinator "$@" --lease-ttl 3s --checkpoint-interval 1s
      until_it_says coordinator "coordinator listens"
      exit
    fi
    ;;
  worker)
    name=worker-$(find "$notes" -name 'worker-*.pid' | wc -l)
    background "$name" "$@"
    until_it_says "$name" joined
    exit
    ;;
  alloc)
    case " $* " in
      *" --once "* | *" --dry-run "*) ;;
      *)
        background alloc "$@" --every 300ms
        until_it_says alloc "keeping jobs queued"
        exit
        ;;
    esac
    ;;
  demo)
    set -- "$@" --samples 32 --held-out-samples 8 --shard-samples 16 --steps 10 --warmup-steps 2 \
      --evaluate-samples 4 --evaluate-prompts 1 --ddim-steps 2 --lease-ttl 3s --checkpoint-interval 1s
    ;;
  sample) set -- "$@" --steps 2 ;;
  top)
    if script --version 2>/dev/null | grep -q util-linux; then
      # A terminal with a size, and the key that ends it.
      (sleep 1 && printf q && sleep 1) \
        | timeout 60 script -qec "stty rows 30 cols 110; $(printf '%q ' "$program" "$@")" /dev/null >"$notes/top.log"
      grep -q deltaconv "$notes/top.log"
      exit
    fi
    "$program" "$@" 2>&1 | grep -q 'error\[DC0021\]'
    exit
    ;;
  events | explain | jobs | logs | status | workers)
    for argument in "$@"; do
      case $argument in
        -f | --follow | -w | --watch | --watch=*)
          timeout --signal=INT 2 "$program" "$@"
          code=$?
          # It ended by itself, or was interrupted after that time.
          [ "$code" -eq 124 ] && code=0
          exit "$code"
          ;;
      esac
    done
    ;;
esac
exec "$program" "$@"
