#!/usr/bin/env bash
# Join this machine to a Ray head as a worker.
#
#   cluster/local/worker.sh HEAD:PORT [OPTIONS OF `ray start`]
#
# Needs the head's token: in ~/.ray/auth_token, RAY_AUTH_TOKEN or the file that RAY_AUTH_TOKEN_PATH names.
# PHASEFRONT_RAY_DIR       sockets, logs and pid files; /tmp/phasefront-ray-UID
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
start_ray worker --address="$address" "$@"
echo "this machine works for $address (log: $directory/worker.log); cluster/local/stop.sh ends it"
