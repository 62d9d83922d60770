#!/usr/bin/env bash
# Start a Ray head on this machine with token authentication, and print the next commands.
#
#   cluster/local/head.sh [OPTIONS OF `ray start`]
#
# PORT (6379)              port that workers connect to
# DASHBOARD_PORT (8265)    dashboard and jobs API
# DASHBOARD_HOST           default 127.0.0.1; 0.0.0.0 lets other machines submit jobs
# AGENT_WAIT_S (60)        how long the agent that starts jobs may take to answer
# PHASEFRONT_RAY_DIR       folder of sockets, logs and pid files; default /tmp/phasefront-ray-UID
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

port="${PORT:-6379}"
dashboard_port="${DASHBOARD_PORT:-8265}"
dashboard_host="${DASHBOARD_HOST:-127.0.0.1}"

if [ "$RAY_AUTH_MODE" = token ]; then
    # Generates a token if there is none; an existing one (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) is kept.
    ray get-auth-token --generate > /dev/null
fi

# The agent starts jobs. Where its port is in use, by another Ray for example, the head runs but refuses every job. The
# port is above those of Ray's workers, and below those that Linux gives to whoever asks for any port.
agent_port="$(sed -n 's/.* --dashboard-agent-listen-port[= ]\([0-9]*\).*/\1/p' <<< " $*")"
agent=()
if [ -z "$agent_port" ]; then
    agent_port="$(python -c '
import contextlib, random, socket
for port in random.sample(range(20_000, 32_768), 1_000):
    with contextlib.suppress(OSError), socket.create_server(("", port)):
        print(port)
        break
')"
    agent=(--dashboard-agent-listen-port="$agent_port")
fi
start_ray head "$directory" --head --port="$port" --dashboard-host="$dashboard_host" --dashboard-port="$dashboard_port" \
    ${agent[@]+"${agent[@]}"} "$@"

reach="$dashboard_host"
[ "$reach" = 0.0.0.0 ] && reach=127.0.0.1
api="http://$reach:$dashboard_port"
answer=""
for _ in $(seq 20); do
    # The jobs API is up slightly later than the head; this request checks the token as well.
    if answer="$(ray job list --address="$api" --log-style=record 2>&1)"; then
        answer=ok
        break
    fi
    sleep 0.5
done
if [ "$answer" != ok ]; then
    echo "the head is running, but its jobs API at $api does not respond:" >&2
    tail -n 5 <<< "$answer" >&2
    "$(dirname "${BASH_SOURCE[0]}")/stop.sh" >&2
    exit 1
fi
python - "$agent_port" "${AGENT_WAIT_S:-60}" << 'PYTHON' || {
import http.client, sys, time

end = time.monotonic() + float(sys.argv[2])
while True:
    try:
        agent = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
        agent.request("GET", "/api/local_raylet_healthz")
        if agent.getresponse().status == 200:
            break
    except (OSError, http.client.HTTPException):
        pass
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(0.5)
PYTHON
    echo "the head is running, but its agent, which starts jobs, does not answer at port $agent_port: another program may" \
        "have taken it. Run this command again, with --dashboard-agent-listen-port=PORT to name a free one" >&2
    "$(dirname "${BASH_SOURCE[0]}")/stop.sh" >&2
    exit 1
}

address="$(sed -n "s/.*--address='\{0,1\}\([^' ]*:$port\)'\{0,1\}.*/\1/p" "$directory/head.log" | head -n 1)"
cat << TEXT
Ray head is running: ${address:-port $port} (log: $directory/head.log)

On each further machine, with the same token in ~/.ray/auth_token (\`ray get-auth-token\` prints it):
    cluster/local/worker.sh ${address:-THIS_MACHINE:$port}

To submit a sweep from its folder (the job runs in a copy of it, so the record needs an absolute path):
    export RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_API_SERVER_ADDRESS=$api
    phasefront submit FILE --set tracking.uri=sqlite:///\$PWD/mlflow.db

To stop this head and its worker on this machine:
    ${PHASEFRONT_RAY_DIR:+PHASEFRONT_RAY_DIR=$PHASEFRONT_RAY_DIR }cluster/local/stop.sh
TEXT
