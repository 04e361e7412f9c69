package sql

import (
	"strings"
)

// A dialect has what differs between the databases. Statements are written once, with these
// placeholders:
//
//	?          an argument
//	{in}       a list of ids; always the statement's last argument
//	{now}      the database's clock, in microseconds since 1970
//	{more}     the attempt, incremented
//	{live}     the ids of the group's consumers whose lease has not expired; its argument is the group
//	{messages} and so on: the tables
//	{ready} and so on: the states
type dialect struct {
	name    Dialect
	now     string
	quote   func(identifier string) string
	dollars bool              // arguments are $1, $2, …, and a list of ids is one argument
	ignore  string            // ends an insert of rows that may exist
	like    string            // compares a text with a pattern; %s is the pattern
	anyText string            // matches any text
	literal *strings.Replacer // escapes a text for a pattern

	rowValues   string // one message of an insert; %d is its number
	rowSeparate string
	rowsTable   string // all messages of an insert as the table m
	whenHeaders string // the headers of one id, in a CASE

	committers int // how many publishers' commits run at once

	retryable func(error) bool
	readOnly  func(error) bool
}
