# Shared by head.sh, worker.sh and stop.sh; sourced, not run.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -x "$repository/.venv/bin/ray" ]; then
    # A job's `python` is looked up in the PATH that the head was started with.
    PATH="$repository/.venv/bin:$PATH"
fi
command -v ray > /dev/null || {
    echo "ray is not installed: run 'make install' in $repository, or activate the environment that holds phasefront" >&2
    exit 2
}

# A client never turns authentication on by itself, and a head does only where it finds a token: say it everywhere.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
# Where the engine's sockets and logs lie. Short, because a socket's path may hold 107 bytes at most.
directory="${PHASEFRONT_RAY_DIR:-/tmp/phasefront-ray-$(id -u)}"
umask 077
mkdir -p "$directory"

# start_ray ROLE ARGUMENT...: `ray start` in the background, as the leader of a session of its own; waits until it runs.
start_ray() {
    local role="$1" pid_file="$directory/$1.pid" log="$directory/$1.log"
    shift
    if [ -e "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2> /dev/null; then
        echo "a $role already runs from $directory (pid $(cat "$pid_file")); stop it with cluster/local/stop.sh," \
            "or start another with PHASEFRONT_RAY_DIR set to a folder of its own" >&2
        exit 2
    fi
    setsid nohup ray start --block --temp-dir="$directory" --log-style=record "$@" < /dev/null > "$log" 2>&1 &
    local pid=$!
    echo "$pid" > "$pid_file"
    for _ in $(seq 240); do
        grep -q "block forever" "$log" && return 0
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.5
    done
    echo "the $role did not start; the end of $log:" >&2
    tail -n 30 "$log" >&2
    kill "$pid" 2> /dev/null || true
    rm -f "$pid_file"
    exit 1
}
