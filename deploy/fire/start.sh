#!/bin/sh
# Start of the server in FIRE's chroot: start-recon [LOG]. FIRE kills it when the scan is finished.
set -eu
log=${1:-/dev/null}
share=${RECON_SHARE:-/tmp/share}
mkdir -p "$(dirname "$log")" "$share/recon"
# exec: one process to find and to stop. The port is bound before anything heavy is imported, within FIRE's 3 s.
exec "${RECON_BIN:-/opt/recon/bin/recon}" serve --host "${RECON_HOST:-0.0.0.0}" --port "${RECON_PORT:-9002}" \
    --spool "$share/recon" --quota-gib "${RECON_QUOTA_GIB:-50}" --method "${RECON_METHOD:-refinegan}" >>"$log" 2>&1
