-- From this version on, the row by which a group is locked changes whenever a message comes back to a key queue but from
-- a consumer: replayed, unparked, due, or moved by a change of the order. Consumers rely on it, so no process of an
-- older release may run any more.
UPDATE {states} SET meaning = 'waits in the queue of its key, in the order of the ids' WHERE state = 4;
