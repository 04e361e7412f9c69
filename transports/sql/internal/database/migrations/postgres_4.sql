-- What the numbers in {messages}.state mean, for operators: no program reads it. From this version on, headers are
-- written as JSON.
CREATE TABLE {states} (
	state   smallint PRIMARY KEY,
	name    text NOT NULL,
	meaning text NOT NULL
);

INSERT INTO {states} (state, name, meaning) VALUES
	(0, 'ready', 'waits for a consumer, or is out if owner is one that lives'),
	(1, 'delayed', 'waits until pos, in microseconds since 1970'),
	(2, 'poisoned', 'is in the poison queue since pos'),
	(3, 'handled', 'was handled at pos, and is kept for a while'),
	(4, 'keyed', 'waits in the queue of its key'),
	(5, 'keyhead', 'is out, and the queue of its key stands still'),
	(6, 'parked', 'waits behind a poisoned message of its key');
