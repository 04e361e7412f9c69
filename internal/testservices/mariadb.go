package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
)

func mariadbService() service {
	return service{
		name:      "mariadb",
		variable:  "LEAT_TEST_MYSQL_URL",
		standard:  []string{"mysql://root@127.0.0.1:3306/test"},
		account:   "mysql",
		programs:  []string{"mariadb-install-db|mysql_install_db", "mariadbd|mysqld"},
		debian:    "mariadb-server",
		handshake: greetMariaDB,
		start:     startMariaDB,
	}
}

func greetMariaDB(ctx context.Context, address string) (version string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	config := mysql.NewConfig()
	config.Net, config.Addr, config.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
	config.User = u.User.Username()
	config.Passwd, _ = u.User.Password()
	config.Logger = &mysql.NopLogger{} // the caller reports the error
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return "", err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	err = db.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version)
	return version, err
}

func startMariaDB(ctx context.Context, box *sandbox) (string, error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	data := box.path("data")
	// A server deletes all files in its directory of temporary tables when it starts, also those of other servers.
	tmp := "--tmpdir=" + box.dir
	err = box.run(ctx, "mariadb-install-db|mysql_install_db", "--no-defaults", "--datadir="+data, tmp,
		"--auth-root-authentication-method=normal", "--skip-test-db")
	if err != nil {
		return "", err
	}
	script, err := box.write("init.sql", "CREATE DATABASE test;\n")
	if err != nil {
		return "", err
	}
	err = box.launch("mariadbd|mysqld", "--no-defaults", "--datadir="+data, tmp, "--init-file="+script,
		"--bind-address=127.0.0.1", "--port="+strconv.Itoa(ports[0]),
		"--socket="+box.path("mariadb.sock"), "--pid-file="+box.path("mariadb.pid"),
		"--skip-name-resolve", "--max-connections=300", "--innodb-flush-log-at-trx-commit=2")
	return fmt.Sprintf("mysql://root@127.0.0.1:%d/test", ports[0]), err
}
