#!/bin/sh
# Migrate, then become the command. Of replicas that start together, one migrates and the others wait: see `safemigrate --help`.
set -eu

trap 'kill "$!"; wait "$!"' TERM INT # a shell passes no signal on by itself
python "$(dirname -- "$0")/manage.py" safemigrate --noinput \
    --wait-for-database "${SAFEMIGRATE_WAIT_FOR_DATABASE:-60}" &
wait "$!"
trap - TERM INT

exec "$@"
