-- Ids of messages whose handlers have written in the same transaction.
CREATE TABLE {inbox} (
	seen_at    bigint NOT NULL,
	group_name text   COLLATE "C" NOT NULL,
	message_id text   COLLATE "C" NOT NULL,
	PRIMARY KEY (group_name, message_id)
);

CREATE INDEX {inbox_seen} ON {inbox} (seen_at);
