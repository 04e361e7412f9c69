#!/usr/bin/env bash
# Runs the suites of the transports and of the Redis store against other versions of their servers than the installed
# ones:
#
#   internal/matrix/matrix.sh                    every server of the table below, one after the other
#   internal/matrix/matrix.sh mysql-9 redis-8    these
#   internal/matrix/matrix.sh -list              the table
#   internal/matrix/matrix.sh -start mysql-9     starts one, prints its URL and leaves it running
#   internal/matrix/matrix.sh -stop mysql-9      stops one
#
# A server runs in a container if docker or podman answers. Otherwise root gets it from Debian's packages, each suite in
# a chroot below LEAT_MATRIX_DIR (~/.cache/leat-matrix), which is kept for the next time; the first start downloads 100 to
# 400 MB. All servers listen on loopback only, and their data is deleted at each start. The tests of RabbitMQ run in its
# chroot, so that the brokers and clusters that they start themselves are of that version, too; LEAT_TEST_LONG=1 kills and
# hangs the nodes of a cluster for minutes. GOTESTFLAGS is passed to go test. The exit code is 1 if a suite has failed.
set -euo pipefail
cd "$(dirname "$0")/../.."

# name           port  image                    suite     package          variable (LEAT_TEST_…_URL)
table='
rabbitmq-3.10    5676  rabbitmq:3.10-management bookworm  rabbitmq-server  RABBITMQ
rabbitmq-4.0     5675  rabbitmq:4.0-management  trixie    rabbitmq-server  RABBITMQ
rabbitmq-4.3     5674  rabbitmq:4.3-management  forky     rabbitmq-server  RABBITMQ
postgres-15      5415  postgres:15              bookworm  postgresql       POSTGRES
postgres-17      5417  postgres:17              trixie    postgresql       POSTGRES
postgres-18      5418  postgres:18              forky     postgresql       POSTGRES
mariadb-10.11    3310  mariadb:10.11            bookworm  mariadb-server   MYSQL
mariadb-11.8     3318  mariadb:11.8             trixie    mariadb-server   MYSQL
mysql-9          3397  mysql:9                  sid       mysql-server     MYSQL
redis-7          6397  redis:7                  bookworm  redis-server     REDIS
redis-8          6398  redis:8                  trixie    redis-server     REDIS
'
dir=${LEAT_MATRIX_DIR:-$HOME/.cache/leat-matrix}

fail() {
	echo "matrix: $*" >&2
	exit 2
}

# row NAME sets the variables of a row.
row() {
	read -r name port image suite package variable < <(grep -E "^$1 " <<<"$table") ||
		fail "no server $1; known: $(awk 'NF {printf "%s ", $1}' <<<"$table")"
}

url() {
	case $name in
	rabbitmq-*) echo "amqp://guest:guest@127.0.0.1:$port/?management=http://127.0.0.1:$((port + 10000))" ;;
	postgres-*) echo "postgres://postgres@127.0.0.1:$port/postgres?sslmode=disable" ;;
	mysql-* | mariadb-*) echo "mysql://root@127.0.0.1:$port/test" ;;
	redis-*) echo "redis://127.0.0.1:$port/0" ;;
	esac
}

# packages are the Go packages whose tests talk to the server.
packages() {
	case $name in
	rabbitmq-*) echo ./transports/amqp/... ;;
	postgres-* | mysql-* | mariadb-*) echo ./transports/sql/... ;;
	redis-*) echo ./middleware/... ;;
	esac
}

# service is what the server is called in LEAT_TEST_REQUIRE.
service() {
	case $name in
	mysql-*) echo mariadb ;;
	*) echo "${name%%-*}" ;;
	esac
}

engine() {
	local e
	for e in docker podman; do
		if "$e" info >/dev/null 2>&1; then
			echo "$e"
			return
		fi
	done
}

in_container() {
	local options=() command=()
	case $name in
	rabbitmq-*) options=(-p "127.0.0.1:$port:5672" -p "127.0.0.1:$((port + 10000)):15672") ;;
	postgres-*)
		options=(-p "127.0.0.1:$port:5432" -e POSTGRES_HOST_AUTH_METHOD=trust)
		command=(postgres -c max_connections=300)
		;;
	mariadb-*)
		options=(-p "127.0.0.1:$port:3306" -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1)
		command=(--max-connections=300)
		;;
	mysql-*)
		options=(-p "127.0.0.1:$port:3306" -e MYSQL_ALLOW_EMPTY_PASSWORD=1)
		command=(--max-connections=300)
		;;
	redis-*) options=(-p "127.0.0.1:$port:6379") ;;
	esac
	"$1" run -d --rm --name "leat-matrix-$name" "${options[@]}" "$image" "${command[@]}" >/dev/null
}

# chroot_of makes the chroot of the row's suite and installs the package in it.
chroot_of() {
	local root=$dir/$suite script=/usr/share/debootstrap/scripts/$suite mirror
	[ "$(id -u)" = 0 ] || fail "$name: no container engine answers, and Debian's packages need root"
	command -v apt-get >/dev/null || fail "$name: no container engine answers, and this is no Debian"
	command -v debootstrap >/dev/null || {
		apt-get -q update
		apt-get -q install -y --no-install-recommends debootstrap
	} >&2
	[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
	if [ ! -e "$root/etc/debian_version" ]; then
		mirror=${DEBIAN_MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)}
		mkdir -p "$dir"
		debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" ${mirror:+"$mirror"} "$script" >&2
	fi
	mountpoint -q "$root/proc" || mount --bind /proc "$root/proc"
	mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
	cp /etc/hosts /etc/resolv.conf "$root/etc/"
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no server starts by itself
	chmod +x "$root/usr/sbin/policy-rc.d"
	chroot "$root" dpkg -s "$package" >/dev/null 2>&1 || {
		chroot "$root" apt-get -q -o Acquire::Check-Valid-Until=false update # a mirror may lag behind
		# The last step of mysql-server starts a server, which can fail here; what is needed is installed by then.
		DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q install -y --no-install-recommends "$package" ||
			chroot "$root" sh -c 'command -v mysqld'
	} >&2
}

# command_of prints a script that runs the server in the chroot's foreground.
command_of() {
	local data=/var/lib/leat-$name as='setpriv --clear-groups --reuid'
	echo "set -e; rm -rf $data; mkdir -p $data"
	case $name in
	rabbitmq-*)
		cat <<-END
			mkdir -p $data/log; echo '[rabbitmq_management].' >$data/plugins
			printf 'management.tcp.ip = 127.0.0.1\\nmanagement.tcp.port = $((port + 10000))\\ncollect_statistics_interval = 100\\n' >$data/rabbitmq.conf
			chown -R rabbitmq $data; cd $data
			exec $as rabbitmq env HOME=$data RABBITMQ_NODENAME=leat${name//[.-]/}@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \\
			  RABBITMQ_NODE_PORT=$port RABBITMQ_DIST_PORT=$((port + 20000)) ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_MNESIA_BASE=$data \\
			  RABBITMQ_LOG_BASE=$data/log RABBITMQ_CONFIG_FILE=$data/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$data/plugins /usr/lib/rabbitmq/bin/rabbitmq-server
		END
		;;
	postgres-*)
		cat <<-END
			chown postgres $data; cd $data
			bin=/usr/lib/postgresql/${name#postgres-}/bin
			$as postgres \$bin/initdb -A trust -D $data >/dev/null
			exec $as postgres \$bin/postgres -D $data -p $port -k $data -c listen_addresses=127.0.0.1 -c max_connections=300 -c fsync=off
		END
		;;
	mariadb-*)
		cat <<-END
			chown mysql $data
			mariadb-install-db --no-defaults --user=mysql --datadir=$data/data --auth-root-authentication-method=normal >/dev/null
			exec mariadbd --no-defaults --user=mysql --datadir=$data/data --socket=$data/s.sock --pid-file=$data/pid \\
			  --bind-address=127.0.0.1 --port=$port --max-connections=300
		END
		;;
	mysql-*)
		cat <<-END
			id mysql >/dev/null 2>&1 || useradd -r mysql
			chown mysql $data
			mysqld --no-defaults --initialize-insecure --user=mysql --datadir=$data/data
			exec mysqld --no-defaults --user=mysql --datadir=$data/data --socket=$data/s.sock --pid-file=$data/pid \\
			  --bind-address=127.0.0.1 --port=$port --mysqlx=OFF --max-connections=300
		END
		;;
	redis-*) echo "exec redis-server --bind 127.0.0.1 --port $port --save '' --appendonly no" ;;
	esac
}

in_chroot() {
	chroot_of
	{
		echo '#!/bin/sh'
		command_of
	} >"$dir/$suite/leat-$name.sh"
	setsid chroot "$dir/$suite" /bin/sh "/leat-$name.sh" >"$dir/$name.log" 2>&1 </dev/null &
	echo $! >"$dir/$name.pid"
}

# answers logs in at the server, with the handshake of internal/testservices.
answers() {
	env -u LEAT_TEST_REDIS_URL "LEAT_TEST_${variable}_URL=$(url)" "$dir/testservices" -services "$(service)" -- true >/dev/null 2>&1
}

start() {
	row "$1"
	mkdir -p "$dir"
	go build -o "$dir/testservices" ./internal/testservices
	if ! answers; then
		local e
		e=$(engine)
		if [ -n "$e" ]; then in_container "$e"; else in_chroot; fi
		local tries=0
		until [ "$package" != mysql-server ] && [ "$package" != mariadb-server ] || make_database; do
			((++tries < 120)) || fail "$name does not answer; see $dir/$name.log"
			sleep 1
		done
		until answers; do
			((++tries < 120)) || fail "$name does not answer; see $dir/$name.log"
			sleep 1
		done
	fi
	url
}

# make_database makes the database that the URL names. The anonymous user of a fresh MariaDB would take precedence over the
# users that the tests make.
make_database() {
	local e
	e=$(engine)
	if [ -n "$e" ]; then
		"$e" exec "leat-matrix-$name" sh -c '$(command -v mariadb || command -v mysql) -uroot -h127.0.0.1 -e "CREATE DATABASE IF NOT EXISTS test"' 2>/dev/null
	else
		chroot "$dir/$suite" sh -c "\$(command -v mariadb || command -v mysql) --no-defaults -uroot -S /var/lib/leat-$name/s.sock -e \"CREATE DATABASE IF NOT EXISTS test; DROP USER IF EXISTS ''@'localhost'\"" 2>/dev/null
	fi
}

stop() {
	row "$1"
	local e
	e=$(engine)
	if [ -n "$e" ]; then
		"$e" rm -f "leat-matrix-$name" >/dev/null 2>&1 || true
	elif [ -e "$dir/$name.pid" ]; then
		kill -- "-$(cat "$dir/$name.pid")" 2>/dev/null || true
		rm -f "$dir/$name.pid"
	fi
}

# runner prints the program with which go test runs the tests; it prints nothing if go test can run them itself.
runner() {
	case $name in rabbitmq-*) ;; *) return ;; esac
	[ -z "$(engine)" ] || return 0
	mkdir -p "$dir/$suite$PWD"
	mountpoint -q "$dir/$suite$PWD" || mount --bind -o ro "$PWD" "$dir/$suite$PWD"
	cat >"$dir/$suite.sh" <<-END
		#!/bin/sh
		# Runs a program in the chroot, which has this repository at its place.
		copy=\$(mktemp "$dir/$suite/tmp/leat.XXXXXX") && cp "\$1" "\$copy" && chmod 755 "\$copy" || exit
		shift
		chroot "$dir/$suite" env -C "\$PWD" "/tmp/\${copy##*/}" "\$@"
		result=\$?
		rm -f "\$copy"
		exit "\$result"
	END
	chmod 755 "$dir/$suite.sh"
	echo "$dir/$suite.sh"
}

run() {
	local results='' failed=0 at runner
	for at in "$@"; do
		echo "== $at"
		start "$at"
		at=$name
		runner=$(runner)
		# Only this server is named: tests of others are skipped, and those of this one must not be.
		# shellcheck disable=SC2046,SC2086 # words on purpose
		if env -u LEAT_TEST_REDIS_URL -u LEAT_TEST_RABBITMQ_URL -u LEAT_TEST_POSTGRES_URL -u LEAT_TEST_MYSQL_URL \
			"LEAT_TEST_${variable}_URL=$(url)" "LEAT_TEST_REQUIRE=$(service)" \
			go test -race -gcflags=modernc.org/sqlite/lib=-race=false -timeout 60m ${runner:+-exec "$runner"} ${GOTESTFLAGS:-} $(packages); then
			results+=$(printf '%-14s ok' "$at")$'\n'
		else
			results+=$(printf '%-14s FAILED' "$at")$'\n'
			failed=1
		fi
		stop "$at"
	done
	printf '\n%s' "$results"
	return "$failed"
}

case ${1:-} in
-list) printf '%s' "${table#?}" ;;
-start) start "${2:?which server?}" ;;
-stop) stop "${2:?which server?}" ;;
-*) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
'') run $(awk 'NF {print $1}' <<<"$table") ;;
*) run "$@" ;;
esac
