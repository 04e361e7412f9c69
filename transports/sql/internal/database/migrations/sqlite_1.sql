CREATE TABLE {groups} (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	name       TEXT    NOT NULL UNIQUE,
	ordering   INTEGER NOT NULL,
	created_at INTEGER NOT NULL
);

CREATE TABLE {subscriptions} (
	pattern    TEXT    NOT NULL,
	group_id   INTEGER NOT NULL,
	depth      INTEGER NOT NULL,
	matches    TEXT    NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (pattern, group_id)
) WITHOUT ROWID;

CREATE INDEX {subscriptions_depth} ON {subscriptions} (depth) WHERE depth <> 0;

CREATE TABLE {turns} (
	group_id   INTEGER PRIMARY KEY,
	created_at INTEGER NOT NULL
);

CREATE TABLE {consumers} (
	id         INTEGER PRIMARY KEY,
	expires_at INTEGER NOT NULL,
	group_id   INTEGER NOT NULL,
	ordering   INTEGER NOT NULL,
	place      TEXT    NOT NULL
);

-- AUTOINCREMENT: an id does not come again, so the largest shows whether anything is new.
CREATE TABLE {messages} (
	id       INTEGER PRIMARY KEY AUTOINCREMENT,
	pos      INTEGER NOT NULL,
	lane     INTEGER NOT NULL,
	first_at INTEGER NOT NULL,
	due_at   INTEGER NOT NULL DEFAULT 0,
	owner    INTEGER NOT NULL DEFAULT 0,
	group_id INTEGER NOT NULL,
	attempt  INTEGER NOT NULL DEFAULT 0,
	state    INTEGER NOT NULL,
	topic    TEXT    NOT NULL,
	uuid     TEXT    NOT NULL,
	headers  BLOB    NOT NULL,
	payload  BLOB    NOT NULL
);

CREATE INDEX {queue} ON {messages} (group_id, state, pos, id);
