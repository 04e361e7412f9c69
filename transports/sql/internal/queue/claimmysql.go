package queue

// FORCE INDEX keeps the optimizer from reading other groups' messages by the primary key.
const claimMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages} {force}
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live})
ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED`

// seeMySQL and lockMySQL are the claim of a group's only worker, which gets messages in order. A locking read sees
// rows that are committed while it runs, so it may miss the first message of a commit and return the second. A read
// that does not lock sees all of a commit or nothing.
const (
	seeMySQL = `
SELECT id FROM {messages} {force}
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live}) ORDER BY id LIMIT ?`
	lockMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages}
WHERE state = {ready} AND owner NOT IN ({live}) AND id {in} ORDER BY id FOR UPDATE SKIP LOCKED`
)

// headsMySQL reads a page of the rows of key queues, in order; the next page starts at the next key queue. It does not
// rely on InnoDB to skip from one key queue to the next: for a GROUP BY with MIN that depends on the statistics, and a recursive
// query reads all key queues from the first one for each step.
const headsMySQL = `
SELECT pos, id FROM {messages} {force}
WHERE group_id = ? AND state = {keyed} AND pos > ? ORDER BY group_id, state, pos, id LIMIT ?`
