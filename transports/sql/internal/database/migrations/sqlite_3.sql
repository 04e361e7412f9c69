CREATE TABLE {inbox} (
	seen_at    INTEGER NOT NULL,
	group_name TEXT    NOT NULL,
	message_id TEXT    NOT NULL,
	PRIMARY KEY (group_name, message_id)
) WITHOUT ROWID;

CREATE INDEX {inbox_seen} ON {inbox} (seen_at);
