-- A message that was poisoned in a group that parks, and the lane that it holds back.
CREATE TABLE IF NOT EXISTS {holds} (
	message_id BIGINT NOT NULL PRIMARY KEY,
	pos        BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	group_id   INT    NOT NULL,
	KEY {holds_lane} (group_id, pos, message_id)
) ENGINE = InnoDB;
