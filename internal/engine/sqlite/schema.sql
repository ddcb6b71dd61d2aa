-- The store of an embedded engine. Times are nanoseconds since 1970, UTC; sizes
-- are bytes. A body over 256 KiB is a file in the folder bodies/ beside this
-- database, all else is in here.

-- A task. One small row that every transition changes; its document is in record.
CREATE TABLE task(
  seq        INTEGER PRIMARY KEY, -- order of acceptance
  id         BLOB NOT NULL,       -- 16 bytes of its UUID (version 7), or 0x00 and the ID as text
  state      INTEGER NOT NULL,    -- 0 queued, 1 running, 2 delivering, 3 done, 4 dead
  version    INTEGER NOT NULL,    -- counts transitions; leases and deliveries are fenced by it
  created    INTEGER NOT NULL,    -- when it was accepted, plus up to 4 µs by its ID: the order of lists
  queue      INTEGER,             -- queue.id; NULL for a waiting client's task
  host       INTEGER,             -- host.id of its callback; NULL if none is owed
  trusted    INTEGER NOT NULL,    -- 1 if the callback goes to the operator's own URL
  domain     INTEGER,             -- domain.id whose quota it counts against; NULL for none
  status     INTEGER,             -- verdict: 1 COMPLETE, 2 FAILED, 3 TIMEOUT; NULL before it
  starts     INTEGER NOT NULL,    -- attempts that a queue's task has used
  max_starts INTEGER,             -- of a running queue's task: no attempt follows after so many
  holder     INTEGER,             -- of a running task: the random ID of the process that runs it
  at         INTEGER,             -- queued and running: ready time; delivering: due time; else NULL
  since      INTEGER NOT NULL,    -- when it came to its state; of delivering: its verdict or redelivery
  schedule   TEXT,                -- identity of the schedule that made it; NULL if none did
  request    INTEGER,             -- size of the request's body that is kept; NULL if none is
  result     INTEGER,             -- size of the result that is kept; NULL if none is
  size       INTEGER NOT NULL,    -- of its document and bodies, as counted in domain.bytes
  progress   BLOB                 -- one more line of its document, that attempts change; NULL if there is none
) STRICT;
CREATE UNIQUE INDEX task_id ON task(id);
-- Lists, newest first, and counts at start.
CREATE INDEX task_state  ON task(state, created);
CREATE INDEX task_queue  ON task(queue, created) WHERE queue IS NOT NULL;
CREATE INDEX task_host   ON task(host, created) WHERE host IS NOT NULL;
CREATE INDEX task_status ON task(status, created) WHERE status > 1; -- COMPLETE is nearly all
-- The next jobs of a queue, the next deliveries of a host.
CREATE INDEX task_ready ON task(queue, at) WHERE state = 0;
CREATE INDEX task_due   ON task(host, at, trusted) WHERE state = 2;
-- Retention and the delivery window; eviction of results.
CREATE INDEX task_since ON task(state, since) WHERE state >= 2;
CREATE INDEX task_evict ON task(since) WHERE state = 3 AND result IS NOT NULL;
-- At most one run of a schedule waits.
CREATE INDEX task_schedule ON task(schedule) WHERE schedule IS NOT NULL AND state = 0;

-- The document of a task, which is written at its start and with its verdict.
CREATE TABLE record(
  seq INTEGER PRIMARY KEY, -- task.seq
  doc BLOB NOT NULL        -- lines of JSON: the record, and then what has changed, whole fields at a time
) STRICT;

-- A body that is kept.
CREATE TABLE body(
  id    INTEGER PRIMARY KEY, -- twice task.seq, plus 0 for the request's body and 1 for the result
  file  TEXT,                -- its name in bodies/; NULL if it is in bytes
  sum   INTEGER NOT NULL,    -- CRC-32C of the body: files, and what is salvaged, are checked
  bytes BLOB                 -- NULL if it is a file
) STRICT;
CREATE INDEX body_file ON body(file) WHERE file IS NOT NULL;

-- A host that callbacks go to, and what the dispatcher has learned of it.
CREATE TABLE host(
  id            INTEGER PRIMARY KEY,
  name          TEXT NOT NULL UNIQUE, -- host:port
  paused        INTEGER NOT NULL DEFAULT 0, -- 1 if an operator paused it
  window        INTEGER NOT NULL DEFAULT 0, -- attempts at once that it has earned
  average       INTEGER NOT NULL DEFAULT 0, -- nanoseconds an attempt takes
  answered      INTEGER NOT NULL DEFAULT 0, -- its last answer; 0 if there was none
  failures      INTEGER NOT NULL DEFAULT 0, -- attempts in a row that were not accepted
  failing_since INTEGER NOT NULL DEFAULT 0, -- the first of them; 0 if it does not fail
  last_error    TEXT NOT NULL DEFAULT '',   -- of the latest of them
  last_status   INTEGER NOT NULL DEFAULT 0  -- of the latest of them
) STRICT;
CREATE INDEX host_noted ON host(id) WHERE paused = 1 OR failures > 0;

-- A queue.
CREATE TABLE queue(
  id     INTEGER PRIMARY KEY,
  name   TEXT NOT NULL UNIQUE,
  paused INTEGER NOT NULL DEFAULT 0 -- 1 if an operator paused it
) STRICT;

-- A registrable domain or network that requests named as destination.
CREATE TABLE domain(
  id    INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL DEFAULT 0 -- sum of task.size over its tasks
) STRICT;

-- An idempotency key.
CREATE TABLE key(
  hash    TEXT PRIMARY KEY, -- digest of its scope and value
  digest  TEXT NOT NULL,    -- digest of the request that it came with
  task    TEXT NOT NULL,    -- ID of that request's task
  expires INTEGER NOT NULL  -- when it is forgotten
) STRICT, WITHOUT ROWID;
CREATE INDEX key_expires ON key(expires);

-- A schedule.
CREATE TABLE schedule(
  name TEXT PRIMARY KEY, -- its identity
  last INTEGER NOT NULL, -- its last run time; 0 if it never ran
  next INTEGER NOT NULL  -- its next run time
) STRICT, WITHOUT ROWID;

-- What the store knows of itself.
CREATE TABLE meta(
  name  TEXT PRIMARY KEY, -- 'secret': 32 bytes that sign; 'overwritten': see commit.go
  value BLOB NOT NULL     -- what is known
) STRICT, WITHOUT ROWID;
