-- A message that was poisoned in a group that parks, and the lane that it holds back.
CREATE TABLE {holds} (
	message_id bigint  PRIMARY KEY,
	pos        bigint  NOT NULL,
	created_at bigint  NOT NULL,
	group_id   integer NOT NULL
);

CREATE INDEX {holds_lane} ON {holds} (group_id, pos, message_id);
