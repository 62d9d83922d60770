#!/usr/bin/env bash
# Start a Ray head on this machine, with token authentication, and say what to do next.
#
#   cluster/local/head.sh [OPTIONS OF `ray start`]
#
# PORT (6379)              where workers join
# DASHBOARD_PORT (8265)    dashboard and jobs API
# DASHBOARD_HOST           127.0.0.1; 0.0.0.0 lets other machines submit jobs
# PHASEFRONT_RAY_DIR       sockets, logs and pid files; /tmp/phasefront-ray-UID
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

port="${PORT:-6379}"
dashboard_port="${DASHBOARD_PORT:-8265}"
dashboard_host="${DASHBOARD_HOST:-127.0.0.1}"

if [ "$RAY_AUTH_MODE" = token ]; then
    # Makes the token where there is none; one that exists (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) stays.
    ray get-auth-token --generate > /dev/null
fi

start_ray head --head --port="$port" --dashboard-host="$dashboard_host" --dashboard-port="$dashboard_port" "$@"

reach="$dashboard_host"
[ "$reach" = 0.0.0.0 ] && reach=127.0.0.1
api="http://$reach:$dashboard_port"
answer=""
for _ in $(seq 20); do
    # The jobs API answers a little after the head does; asking it proves the token too.
    if answer="$(ray job list --address="$api" --log-style=record 2>&1)"; then
        answer=ok
        break
    fi
    sleep 0.5
done
if [ "$answer" != ok ]; then
    echo "the head runs, but its jobs API at $api does not answer:" >&2
    tail -n 5 <<< "$answer" >&2
    "$(dirname "${BASH_SOURCE[0]}")/stop.sh" >&2
    exit 1
fi

address="$(sed -n "s/.*--address='\{0,1\}\([^' ]*:$port\)'\{0,1\}.*/\1/p" "$directory/head.log" | head -n 1)"
cat << TEXT
Ray head runs: ${address:-port $port} (log: $directory/head.log)

On each further machine, with the same token in ~/.ray/auth_token (\`ray get-auth-token\` prints it):
    cluster/local/worker.sh ${address:-THIS_MACHINE:$port}

To submit a sweep, from the project's folder (a job runs in a copy of it, so its record needs an absolute address):
    export RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_API_SERVER_ADDRESS=$api
    ray job submit --working-dir . -- python -m orchestrator run configs/demo_grokking.yaml --set tracking.uri=sqlite:///\$PWD/mlflow.db

To stop what was started here:
    cluster/local/stop.sh
TEXT
