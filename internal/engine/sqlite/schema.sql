-- The store of the embedded engine. Times are nanoseconds since 1970 in UTC, sizes are
-- bytes. A body over 256 KiB is a file in the folder bodies/ beside this database.
-- Everything else is in this database.

-- A task. Running tasks and first deliveries are in the memory of a process: their
-- holder is set, and only the indexes of the ID, the queue, the host and the holder have
-- them. Most tasks are therefore in the other indexes only once they are done.
CREATE TABLE task(
  seq        INTEGER PRIMARY KEY, -- when it was accepted, plus up to 4 µs by its ID, and unique: the order of lists
  id         TEXT NOT NULL,       -- its ID: a UUID of version 7
  state      INTEGER NOT NULL,    -- 0 queued, 1 running, 2 delivering, 3 done, 4 dead
  version    INTEGER NOT NULL,    -- counts transitions; leases and deliveries are fenced by it
  queue      TEXT,                -- name of its queue; NULL for a waiting client's task
  host       TEXT,                -- host:port of its callback; NULL if it has none
  domain     TEXT,                -- domain whose quota it counts against; NULL for none
  status     INTEGER,             -- verdict: 1 COMPLETE, 2 FAILED, 3 TIMEOUT; NULL before it
  starts     INTEGER NOT NULL,    -- attempts that a queue's task has used
  max_starts INTEGER,             -- of a running queue's task: how many attempts it may use
  holder     INTEGER,             -- random ID of the process that has it in memory; else NULL
  at         INTEGER,             -- queued and running: ready time; delivering: due time, NULL with a holder; else NULL
  since      INTEGER NOT NULL,    -- when it entered its state; delivering: its verdict or redelivery
  schedule   TEXT,                -- identity of the schedule that made it; NULL for none
  request    INTEGER,             -- size of the request body that is kept; NULL for none
  result     INTEGER,             -- size of the result that is kept; NULL for none
  doc        BLOB NOT NULL        -- the record, as JSON; the columns take precedence over it
) STRICT;
CREATE UNIQUE INDEX task_id ON task(id);
-- What a process that has died had in memory.
CREATE INDEX task_holder ON task(holder) WHERE holder IS NOT NULL;
-- Lists, newest first: each index ends with seq.
CREATE INDEX task_state  ON task(state) WHERE holder IS NULL;
CREATE INDEX task_queue  ON task(queue) WHERE queue IS NOT NULL;
CREATE INDEX task_host   ON task(host) WHERE host IS NOT NULL;
CREATE INDEX task_status ON task(status) WHERE status > 1; -- COMPLETE is nearly all
-- The next jobs of a queue, the next deliveries of a host, the hosts that are due.
CREATE INDEX task_ready ON task(queue, at) WHERE state = 0;
CREATE INDEX task_due   ON task(host, at) WHERE state = 2 AND holder IS NULL;
CREATE INDEX task_at    ON task(at, seq, host) WHERE state = 2 AND holder IS NULL;
-- Retention, eviction and the delivery window.
CREATE INDEX task_since ON task(state, since) WHERE state >= 2 AND holder IS NULL;
-- At most one run of a schedule waits.
CREATE INDEX task_schedule ON task(schedule) WHERE schedule IS NOT NULL AND state = 0;

-- How many tasks there are. Each commit updates it.
CREATE TABLE tally(
  state TEXT PRIMARY KEY, -- name of the state
  tasks INTEGER NOT NULL  -- how many tasks are in it
) STRICT, WITHOUT ROWID;
INSERT INTO tally(state, tasks) VALUES ('queued', 0), ('running', 0), ('delivering', 0), ('done', 0), ('dead', 0);

-- A body that is kept.
CREATE TABLE body(
  id    INTEGER PRIMARY KEY, -- twice task.seq, plus 0 for the request body and 1 for the result
  file  TEXT,                -- its name in bodies/; NULL if it is in bytes
  sum   INTEGER NOT NULL,    -- CRC-32C of the body, to check files and salvaged bodies
  bytes BLOB                 -- NULL if it is a file
) STRICT;
CREATE INDEX body_file ON body(file) WHERE file IS NOT NULL;

-- A host that has deliveries waiting, or about which something is known.
CREATE TABLE host(
  name          TEXT PRIMARY KEY,           -- host:port
  paused        INTEGER NOT NULL DEFAULT 0, -- 1 if an operator paused it
  trusted       INTEGER NOT NULL DEFAULT 0, -- 1 if the operator's own URL names it
  waiting       INTEGER NOT NULL DEFAULT 0, -- how many of its deliveries task_due has
  window        INTEGER NOT NULL DEFAULT 0, -- how many attempts may run at once
  average       INTEGER NOT NULL DEFAULT 0, -- average nanoseconds of an attempt
  answered      INTEGER NOT NULL DEFAULT 0, -- time of its last answer; 0 for none
  failures      INTEGER NOT NULL DEFAULT 0, -- consecutive failed attempts
  failing_since INTEGER NOT NULL DEFAULT 0, -- time of the first of them; 0 for none
  last_error    TEXT NOT NULL DEFAULT '',   -- error of the latest of them
  last_status   INTEGER NOT NULL DEFAULT 0  -- status code of the latest of them
) STRICT;
CREATE INDEX host_listed ON host(waiting DESC, name) WHERE waiting > 0 OR paused = 1 OR failures > 0;
CREATE INDEX host_paused ON host(name) WHERE paused = 1;
CREATE INDEX host_idle   ON host(answered) WHERE waiting = 0 AND paused = 0 AND trusted = 0 AND failures = 0;

-- A queue that has had tasks or is paused.
CREATE TABLE queue(
  name    TEXT PRIMARY KEY,           -- its name
  paused  INTEGER NOT NULL DEFAULT 0, -- 1 if an operator paused it
  queued  INTEGER NOT NULL DEFAULT 0, -- how many of its tasks are in this state
  running INTEGER NOT NULL DEFAULT 0  -- how many of its tasks are in this state
) STRICT, WITHOUT ROWID;

-- A registrable domain or network that requests have named as destination.
CREATE TABLE domain(
  name  TEXT PRIMARY KEY,          -- its name
  bytes INTEGER NOT NULL DEFAULT 0 -- size of the documents and bodies of its tasks
) STRICT, WITHOUT ROWID;
CREATE TRIGGER domain_unused AFTER UPDATE ON domain WHEN new.bytes = 0
  BEGIN DELETE FROM domain WHERE name = new.name; END;

-- An idempotency key.
CREATE TABLE key(
  hash    TEXT PRIMARY KEY, -- digest of its scope and value
  digest  TEXT NOT NULL,    -- digest of the request that it came with
  task    TEXT NOT NULL,    -- ID of that request's task
  expires INTEGER NOT NULL  -- when it expires
) STRICT, WITHOUT ROWID;
CREATE INDEX key_expires ON key(expires);

-- A schedule.
CREATE TABLE schedule(
  name TEXT PRIMARY KEY, -- its identity
  last INTEGER NOT NULL, -- its last run time; 0 if it never ran
  next INTEGER NOT NULL  -- its next run time
) STRICT, WITHOUT ROWID;

-- Values of the store itself.
CREATE TABLE meta(
  name  TEXT PRIMARY KEY, -- 'secret': 32 bytes that sign; 'overwritten': see commit.go
  value BLOB NOT NULL     -- the value
) STRICT, WITHOUT ROWID;
