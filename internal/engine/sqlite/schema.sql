-- The store of an embedded engine. Times are nanoseconds since 1970, UTC; sizes
-- are bytes. A body over 256 KiB is a file in the folder bodies/ beside this
-- database, all else is in here.

-- A task. A running task and a first delivery are in the memory of the process that
-- has them: their holder is set, and no index has them but those of the ID, the queue,
-- the host and the holder. Most tasks are stored as such and as done, and nothing else.
CREATE TABLE task(
  seq        INTEGER PRIMARY KEY, -- when it was accepted, plus up to 4 µs by its ID; made unique: the order of lists
  id         BLOB NOT NULL,       -- 16 bytes of its UUID (version 7), or 0x00 and the ID as text
  state      INTEGER NOT NULL,    -- 0 queued, 1 running, 2 delivering, 3 done, 4 dead
  version    INTEGER NOT NULL,    -- counts transitions; leases and deliveries are fenced by it
  queue      INTEGER,             -- queue.id; NULL for a waiting client's task
  host       INTEGER,             -- host.id of its callback; NULL if none is owed
  domain     INTEGER,             -- domain.id whose quota it counts against; NULL for none
  status     INTEGER,             -- verdict: 1 COMPLETE, 2 FAILED, 3 TIMEOUT; NULL before it
  starts     INTEGER NOT NULL,    -- attempts that a queue's task has used
  max_starts INTEGER,             -- of a running queue's task: no attempt follows after so many
  holder     INTEGER,             -- the random ID of the process that has it in memory; else NULL
  at         INTEGER,             -- queued and running: ready time; delivering: due time, NULL with a holder; else NULL
  since      INTEGER NOT NULL,    -- when it came to its state; of delivering: its verdict or redelivery
  schedule   TEXT,                -- identity of the schedule that made it; NULL if none did
  request    INTEGER,             -- size of the request's body that is kept; NULL if none is
  result     INTEGER,             -- size of the result that is kept; NULL if none is
  doc        BLOB NOT NULL        -- the record, as JSON; the columns win over it
) STRICT;
CREATE UNIQUE INDEX task_id ON task(id);
-- What a process had in memory that is no more.
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

-- How many tasks there are: one row, which each commit that changes it keeps right.
CREATE TABLE tally(
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  queued     INTEGER NOT NULL DEFAULT 0, -- tasks in this state
  running    INTEGER NOT NULL DEFAULT 0, -- tasks in this state
  delivering INTEGER NOT NULL DEFAULT 0, -- tasks in this state
  done       INTEGER NOT NULL DEFAULT 0, -- tasks in this state
  dead       INTEGER NOT NULL DEFAULT 0  -- tasks in this state
) STRICT;
INSERT INTO tally(id) VALUES (1);

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
  trusted       INTEGER NOT NULL DEFAULT 0, -- 1 if it was the operator's own URL that named it
  waiting       INTEGER NOT NULL DEFAULT 0, -- how many deliveries task_due has of it
  window        INTEGER NOT NULL DEFAULT 0, -- attempts at once that it has earned
  average       INTEGER NOT NULL DEFAULT 0, -- nanoseconds an attempt takes
  answered      INTEGER NOT NULL DEFAULT 0, -- its last answer; 0 if there was none
  failures      INTEGER NOT NULL DEFAULT 0, -- attempts in a row that were not accepted
  failing_since INTEGER NOT NULL DEFAULT 0, -- the first of them; 0 if it does not fail
  last_error    TEXT NOT NULL DEFAULT '',   -- of the latest of them
  last_status   INTEGER NOT NULL DEFAULT 0  -- of the latest of them
) STRICT;
CREATE INDEX host_listed ON host(waiting DESC, name) WHERE waiting > 0 OR paused = 1 OR failures > 0;

-- A queue.
CREATE TABLE queue(
  id      INTEGER PRIMARY KEY,
  name    TEXT NOT NULL UNIQUE,
  paused  INTEGER NOT NULL DEFAULT 0, -- 1 if an operator paused it
  queued  INTEGER NOT NULL DEFAULT 0, -- how many of its tasks are in this state
  running INTEGER NOT NULL DEFAULT 0  -- how many of its tasks are in this state
) STRICT;

-- A registrable domain or network that requests named as destination.
CREATE TABLE domain(
  id    INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL DEFAULT 0 -- sizes of the documents and bodies of its tasks
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
