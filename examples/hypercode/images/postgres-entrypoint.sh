#!/bin/sh
# Makes the data directory once, with POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD, then becomes the server.
# Speaks the few words of the official image's entry point that docker-compose.yml uses.
set -eu

[ "${1:-postgres}" = postgres ] || exec "$@"
[ $# -eq 0 ] || shift

: "${PGDATA:?}" "${POSTGRES_USER:=postgres}"
: "${POSTGRES_DB:=$POSTGRES_USER}"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?is needed to make the database}"
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" > "$password"
    # Made beside and renamed last: a start that was killed half-way begins again instead of running on half a cluster.
    making=$PGDATA.making
    rm -rf "$making"
    initdb --pgdata="$making" --username="$POSTGRES_USER" --pwfile="$password" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256 > /dev/null
    rm -f "$password"
    echo 'host all all all scram-sha-256' >> "$making/pg_hba.conf"
    if [ "$POSTGRES_DB" != postgres ]; then
        echo "CREATE DATABASE :\"name\";" > /tmp/create.sql
        pg_ctl --pgdata="$making" --wait --silent --options="-c listen_addresses='' -k /tmp" --log=/dev/null start
        psql --no-psqlrc --quiet --host=/tmp --username="$POSTGRES_USER" --dbname=postgres \
            --set=ON_ERROR_STOP=1 --set=name="$POSTGRES_DB" --file=/tmp/create.sql
        pg_ctl --pgdata="$making" --wait --silent --mode=fast stop
    fi
    mv "$making" "$PGDATA"
fi

exec postgres -c listen_addresses='*' "$@"
