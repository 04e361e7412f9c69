-- A message that was poisoned in a group that parks, and the lane that it holds back.
CREATE TABLE {holds} (
	message_id INTEGER PRIMARY KEY,
	pos        INTEGER NOT NULL,
	created_at INTEGER NOT NULL,
	group_id   INTEGER NOT NULL
);

CREATE INDEX {holds_lane} ON {holds} (group_id, pos, message_id);
