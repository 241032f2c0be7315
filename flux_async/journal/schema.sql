-- The journal of a batch: what is wanted, where it stands, and everything that happened to it.
-- The database holds the invariant that matters most: one_live_attempt makes a second live attempt of a job
-- impossible, whatever the code above it believes.

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

CREATE TABLE job (
  number        INTEGER PRIMARY KEY,          -- order of arrival
  key           TEXT NOT NULL UNIQUE,
  request       TEXT NOT NULL,                -- the wire JSON, without callBackUrl
  state         TEXT NOT NULL DEFAULT 'pending' CHECK (state IN
                  ('pending', 'submitting', 'submitted', 'generated', 'done', 'failed', 'in_doubt')),
  attempts      INTEGER NOT NULL DEFAULT 0,
  paid_failures INTEGER NOT NULL DEFAULT 0,
  task_id       TEXT,
  result_url    TEXT,
  origin_url    TEXT,
  file          TEXT,
  charge        TEXT NOT NULL DEFAULT 'no' CHECK (charge IN ('no', 'maybe', 'yes')),
  problem       TEXT,                         -- JSON: type, code, message
  not_before    REAL NOT NULL DEFAULT 0,
  submitted_at  REAL,
  generated_at  REAL,
  finished_at   REAL,
  generation_s  REAL,
  CHECK (state <> 'submitted' OR task_id IS NOT NULL),
  CHECK (state NOT IN ('generated', 'done') OR result_url IS NOT NULL)
) STRICT;

CREATE INDEX job_by_state ON job (state, number);

CREATE TABLE attempt (
  job         INTEGER NOT NULL REFERENCES job (number),
  number      INTEGER NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('submitting', 'submitted', 'in_doubt', 'over')),
  intended_at REAL NOT NULL,
  task_id     TEXT,
  PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX one_live_attempt ON attempt (job) WHERE state <> 'over';
CREATE INDEX attempt_by_time ON attempt (intended_at);

CREATE TABLE event (
  number INTEGER PRIMARY KEY,
  job    INTEGER NOT NULL REFERENCES job (number),
  at     REAL NOT NULL,
  type   TEXT NOT NULL,
  detail TEXT NOT NULL                        -- JSON: the event's own fields
) STRICT;
