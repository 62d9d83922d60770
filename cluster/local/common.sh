# Shared by head.sh, worker.sh and stop.sh; sourced, not run.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -x "$repository/.venv/bin/ray" ]; then
    # Jobs find `python` in the PATH with which the head was started.
    PATH="$repository/.venv/bin:$PATH"
fi
command -v ray > /dev/null || {
    echo "ray is not installed: run 'make install' in $repository, or activate the environment in which phasefront is installed" >&2
    exit 2
}

# A client never enables authentication by default, and a head does so only if it finds a token: set it everywhere.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
# Folder of Ray's sockets and logs. Its path is short because the path of a Unix socket is limited to 107 bytes.
directory="${PHASEFRONT_RAY_DIR:-/tmp/phasefront-ray-$(id -u)}"
umask 077
mkdir -p "$directory"

# start_ray ROLE FOLDER ARGUMENT...: run `ray start` in the background, in a new session, and wait until it is up.
start_ray() {
    local role="$1" folder="$2" pid_file="$directory/$1.pid" log="$directory/$1.log"
    shift 2
    if [ -e "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2> /dev/null; then
        echo "a $role is already running from $directory (pid $(cat "$pid_file")); stop it with cluster/local/stop.sh," \
            "or set PHASEFRONT_RAY_DIR to another folder to start a second one" >&2
        exit 2
    fi
    setsid nohup ray start --block --temp-dir="$folder" --log-style=record "$@" < /dev/null > "$log" 2>&1 &
    local pid=$!
    echo "$pid" > "$pid_file"
    for _ in $(seq 240); do
        grep -qs "block forever" "$log" && return 0
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.5
    done
    echo "the $role did not start; last lines of $log:" >&2
    tail -n 30 "$log" >&2
    kill "$pid" 2> /dev/null || true
    rm -f "$pid_file"
    exit 1
}
