CREATE TABLE IF NOT EXISTS {groups} (
	id         INT             NOT NULL AUTO_INCREMENT PRIMARY KEY,
	name       VARBINARY(255)  NOT NULL UNIQUE,
	ordering   SMALLINT        NOT NULL,
	created_at BIGINT          NOT NULL
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS {subscriptions} (
	pattern    VARBINARY(255)  NOT NULL,
	group_id   INT             NOT NULL,
	depth      INT             NOT NULL,
	matches    VARBINARY(600)  NOT NULL,
	created_at BIGINT          NOT NULL,
	PRIMARY KEY (pattern, group_id),
	KEY {subscriptions_depth} (depth)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS {turns} (
	group_id   INT             NOT NULL PRIMARY KEY,
	created_at BIGINT          NOT NULL
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS {consumers} (
	id         BIGINT          NOT NULL PRIMARY KEY,
	expires_at BIGINT          NOT NULL,
	group_id   INT             NOT NULL,
	ordering   SMALLINT        NOT NULL,
	place      VARBINARY(255)  NOT NULL
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS {messages} (
	id         BIGINT          NOT NULL AUTO_INCREMENT PRIMARY KEY,
	pos        BIGINT          NOT NULL,
	lane       BIGINT          NOT NULL,
	first_at   BIGINT          NOT NULL,
	due_at     BIGINT          NOT NULL DEFAULT 0,
	owner      BIGINT          NOT NULL DEFAULT 0,
	group_id   INT             NOT NULL,
	attempt    INT             NOT NULL DEFAULT 0,
	state      SMALLINT        NOT NULL,
	topic      VARBINARY(255)  NOT NULL,
	uuid       VARBINARY(255)  NOT NULL,
	headers    LONGBLOB        NOT NULL,
	payload    LONGBLOB        NOT NULL,
	KEY {queue} (group_id, state, pos, id)
) ENGINE = InnoDB;
