#!/usr/bin/env bash
# Stop the head and the worker that head.sh and worker.sh started from the same PHASEFRONT_RAY_DIR, and nothing else.
#
#   cluster/local/stop.sh [worker|head]
#
# (`ray stop` would end every Ray process on the machine, including those of other users.)
set -euo pipefail

directory="${PHASEFRONT_RAY_DIR:-/tmp/phasefront-ray-$(id -u)}"

# All descendants of a process. Workers run in their own sessions, so a signal to the process group would not reach them.
descendants() {
    local child
    for child in $(ps -o pid= --ppid "$1"); do
        echo "$child"
        descendants "$child"
    done
}

alive() {
    local pid
    for pid in "$@"; do
        # A zombie has already ended and is waiting to be reaped.
        case "$(ps -o stat= -p "$pid")" in
            "" | Z*) ;;
            *) echo "$pid" ;;
        esac
    done
}

found=""
for role in ${1:-worker head}; do
    pid_file="$directory/$role.pid"
    [ -e "$pid_file" ] || continue
    found=1
    pid="$(cat "$pid_file")"
    # The pid may have been reused by another program. -ww: COLUMNS, where it is exported, would cut the line.
    if ! ps -ww -o args= -p "$pid" | grep -qE "ray start --block --temp-dir=$directory(/w)? "; then
        echo "the $role is no longer running"
        rm -f "$pid_file"
        continue
    fi
    all="$(descendants "$pid")"
    kill -TERM "$pid"
    for _ in $(seq 60); do
        left="$(alive "$pid" $all)"
        [ -z "$left" ] && break
        sleep 0.25
    done
    [ -z "$left" ] || kill -KILL $left 2> /dev/null || true
    rm -f "$pid_file"
    echo "$role stopped"
done
[ -n "$found" ] || echo "nothing was started from $directory; PHASEFRONT_RAY_DIR names another folder"
