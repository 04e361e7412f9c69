package sql

import (
	"strings"
)

// dialect is what the database systems write differently. Statements are written once, in their
// common part, with
//
//	?          an argument
//	{in}       a list of ids; always the statement's last argument
//	{now}      the database's clock, in microseconds since 1970. Only this clock counts
//	{more}     one more attempt
//	{live}     the ids of the group's consumers whose lease has not run out; takes the group
//	{messages} and so on: the tables
//	{ready} and so on: the states
type dialect struct {
	name    Dialect
	now     string
	quote   func(identifier string) string
	dollars bool   // arguments are $1, $2, …, and a list of ids is one argument
	ignore  string // ends an insert of what may be there already
	like    string // takes the place between a text and its pattern, with %s for the pattern
	anyText string
	literal *strings.Replacer

	rowValues   string // one message of an insert; %d is its number
	rowSeparate string
	rowsTable   string // all messages of an insert as the table m
	whenHeaders string // the headers of one id, in a CASE

	committers int // publishers' commits at once

	retryable func(error) bool
	readOnly  func(error) bool
}
