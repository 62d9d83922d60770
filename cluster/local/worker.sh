#!/usr/bin/env bash
# Connect this machine to a Ray head as a worker.
#
#   cluster/local/worker.sh HEAD:PORT [OPTIONS OF `ray start`]
#
# Requires the head's token in ~/.ray/auth_token, in RAY_AUTH_TOKEN or in the file named by RAY_AUTH_TOKEN_PATH.
# PHASEFRONT_RAY_DIR       folder of sockets, logs and pid files; default /tmp/phasefront-ray-UID
set -euo pipefail

case "${1:-}" in
    *:*) ;;
    *)
        echo "usage: cluster/local/worker.sh HEAD:PORT [options of ray start]; got '${1:-}'; head.sh prints the address" >&2
        exit 2
        ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

address="$1"
shift
if [ "$RAY_AUTH_MODE" = token ] && ! ray get-auth-token > /dev/null 2>&1; then
    echo "no token on this machine: copy the head's ~/.ray/auth_token here ('ray get-auth-token' prints it there)" >&2
    exit 2
fi
# A folder of its own: where a head shares it, each of the two deletes the working folders of jobs that it does not use.
start_ray worker "$directory/w" --address="$address" "$@"
echo "this machine is a worker of $address (log: $directory/worker.log); cluster/local/stop.sh stops it"
