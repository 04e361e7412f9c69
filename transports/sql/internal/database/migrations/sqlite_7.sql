-- The main package of each consumer and its topics, one per line, by which programs are found that share a group by mistake.
-- A process of an older release does not write them, so none may run any more.
ALTER TABLE {consumers} ADD COLUMN program TEXT NOT NULL DEFAULT '';
ALTER TABLE {consumers} ADD COLUMN topics TEXT NOT NULL DEFAULT '';
