CREATE TABLE IF NOT EXISTS {inbox} (
	seen_at    BIGINT         NOT NULL,
	group_name VARBINARY(255) NOT NULL,
	message_id VARBINARY(255) NOT NULL,
	PRIMARY KEY (group_name, message_id),
	KEY {inbox_seen} (seen_at)
) ENGINE = InnoDB;
