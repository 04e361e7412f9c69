-- A number for each ordered group that grows when a consumer joins it, and when messages are taken from one that is no
-- more. A process of an older release does not count it, so none may run any more.
ALTER TABLE {turns} ADD COLUMN fence BIGINT NOT NULL DEFAULT 1;
