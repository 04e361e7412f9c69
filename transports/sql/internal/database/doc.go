// Package database has one database with leat's tables: the dialects, pools and transactions of PostgreSQL, MySQL and SQLite, statements
// with names for the tables, and the versions of the tables. What the rows mean is the task of the packages above it.
//
// [New] returns a [DB] over a pool, and [DB.Prepare] creates or checks its tables. Statements are written once for all dialects:
//
//	n, err := db.Pool.Exec(ctx, db.SQL(`DELETE FROM {inbox} WHERE seen_at < {now} - ?`), age)
//
// with these placeholders:
//
//	?          an argument
//	{in}       a list of ids; always the statement's last argument; see [Statements.WithIDs]
//	{now}      the database's clock, in microseconds since 1970
//	{more}     the attempt, incremented
//	{live}     the ids of the group's consumers whose lease has not expired; its argument is the group
//	{queue}    the index of messages; {force} makes MySQL use it
//	{messages} and so on: the tables
//	{ready} and so on: the states
//
// To read the code, begin with pool.go and statements.go. dialect.go has what differs between the databases, and database.go what is
// retried. migrate.go has the versions of the tables, and usertx.go the transactions of users.
package database
