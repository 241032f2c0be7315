-- The journal of a batch, version 4: which results are wanted, the state of each job, and everything that
-- happened to it. The index one_live_attempt holds the most important invariant: a job never has two live
-- attempts, whatever the code above the database does. Times are seconds since the epoch.
--
-- A change of this file is a new value of SCHEMA_VERSION in schema.py, and a step in its _migrate. Comments hold
-- no semicolon: schema.py splits the statements there.

-- One row each: account, generation_times, prices, circuit_breaker, submit_log. One row each for every API:
-- confirmed_echoes, confirmed_image_echoes.
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

CREATE TABLE job (
  number        INTEGER PRIMARY KEY,          -- order of arrival
  key           TEXT NOT NULL UNIQUE,
  request       TEXT NOT NULL,                -- the wire JSON, without callBackUrl
  source        BLOB,                         -- path of an image on this machine, as given
  source_folder BLOB,                         -- the folder that a relative path starts from
  address       INTEGER,                      -- 64-bit digest of the image's URL without its signature
  bare_address  INTEGER,                      -- the same without any query, NULL where none is left to remove
  trace         TEXT,                         -- the context of its trace, from its first submit on
  added_at      REAL,                         -- NULL if an earlier release has added it
  priority      INTEGER NOT NULL DEFAULT 0,   -- of a service's queue: the highest is submitted first
  state         TEXT NOT NULL DEFAULT 'pending' CHECK (state IN
                  ('pending', 'submitting', 'submitted', 'generated', 'done', 'failed', 'in_doubt')),
  attempts      INTEGER NOT NULL DEFAULT 0,
  paid_failures INTEGER NOT NULL DEFAULT 0,
  charge        TEXT NOT NULL DEFAULT 'no' CHECK (charge IN ('no', 'maybe', 'yes')),
  credits       REAL,                         -- cost of its task, NULL while it is not measured
  problem       TEXT,                         -- JSON: type, code, message
  not_before    REAL NOT NULL DEFAULT 0,
  task_id       TEXT,
  api           TEXT CHECK (api IN ('kontext', 'jobs')),  -- of the task, or of the latest attempt
  echo          TEXT CHECK (echo IN ('confirmed', 'absent', 'unrecognised')),  -- of the request in the record
  result_url    TEXT,
  origin_url    TEXT,
  file          TEXT,
  sha256        TEXT,                         -- of the saved file
  checked       TEXT,                         -- JSON: what the checks of the saved file found
  other_model   TEXT,                         -- JSON merge patch of the request: another model was submitted
  kept          TEXT,                         -- JSON: the earlier result while another attempt is made
  result_of     INTEGER,                      -- attempt that made the result, NULL for the latest
  redone        INTEGER NOT NULL DEFAULT 0,   -- attempts that were made for a better result
  submitted_at  REAL,
  generated_at  REAL,
  finished_at   REAL,
  generation_s  REAL,                         -- by the vendor's clock
  CHECK (state <> 'submitted' OR (task_id IS NOT NULL AND api IS NOT NULL)),
  CHECK (state <> 'generated' OR result_url IS NOT NULL),
  -- An image without text is done without a task: its file is a copy of the original.
  CHECK (state <> 'done' OR result_url IS NOT NULL OR (task_id IS NULL AND file IS NOT NULL))
) STRICT;

CREATE INDEX job_by_state ON job (state, number);
CREATE INDEX job_by_address ON job (address) WHERE address IS NOT NULL;
CREATE INDEX job_by_bare_address ON job (bare_address) WHERE bare_address IS NOT NULL;

-- The part of a request that a task's record shows: its image, or its prompt if it has no image. Only submitted
-- jobs are indexed, so that adding jobs costs nothing more.
CREATE INDEX job_by_subject
  ON job (coalesce(json_extract(request, '$.inputImage'), json_extract(request, '$.prompt')))
  WHERE attempts > 0;

CREATE TABLE attempt (
  job             INTEGER NOT NULL REFERENCES job (number),
  number          INTEGER NOT NULL,
  state           TEXT NOT NULL CHECK (state IN ('submitting', 'submitted', 'in_doubt', 'over')),
  intended_at     REAL NOT NULL,
  api             TEXT CHECK (api IN ('kontext', 'jobs')),  -- that it was sent to, NULL where its record was lost
  model           TEXT,                       -- id of the model in that API
  other_model     TEXT,                       -- JSON merge patch of the request: another model
  callback_id     TEXT,                       -- part of the callback address that the attempt sent
  input_url       TEXT,                       -- URL of the uploaded image, if one was uploaded
  task_id         TEXT,
  answer          TEXT,                       -- to a submit that is in doubt, shortened and without the key
  refused_task_id TEXT,                       -- named in an answer, but it belongs to another job
  credits         REAL,                       -- cost of its task, NULL while it is not measured
  PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX one_live_attempt ON attempt (job) WHERE state <> 'over';
CREATE UNIQUE INDEX attempt_by_callback ON attempt (callback_id) WHERE callback_id IS NOT NULL;
CREATE INDEX attempt_by_time ON attempt (intended_at);
CREATE INDEX attempt_by_task ON attempt (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX attempt_by_input ON attempt (input_url) WHERE input_url IS NOT NULL;

CREATE TABLE event (
  number INTEGER PRIMARY KEY,
  job    INTEGER NOT NULL REFERENCES job (number),
  at     REAL NOT NULL,
  type   TEXT NOT NULL,
  detail TEXT NOT NULL                        -- JSON: the event's own fields
) STRICT;

-- Callbacks that name an attempt. Others only trigger a poll and are not stored, so that the size of this table
-- is bounded by the attempts of the journal.
CREATE TABLE inbox (
  number      INTEGER PRIMARY KEY,            -- order of arrival
  at          REAL NOT NULL,                  -- of the first delivery
  callback_id TEXT NOT NULL,
  task_id     TEXT NOT NULL,
  signed      INTEGER NOT NULL CHECK (signed IN (0, 1)),
  code        INTEGER,                        -- as claimed
  deliveries  INTEGER NOT NULL DEFAULT 1,
  UNIQUE (callback_id, task_id, signed)
) STRICT;

-- Tasks whose record shows the request of a job, while no job has the task.
CREATE TABLE offer (
  job     INTEGER NOT NULL REFERENCES job (number),
  task_id TEXT NOT NULL,
  api     TEXT NOT NULL CHECK (api IN ('kontext', 'jobs')),
  at      REAL NOT NULL,
  PRIMARY KEY (job, task_id)
) STRICT, WITHOUT ROWID;

-- Submits in the log beside the journal whose jobs the journal has lost. A job that is added again under such
-- a key is in doubt and is not submitted.
CREATE TABLE lost_submit (
  key TEXT PRIMARY KEY,
  at  REAL NOT NULL                           -- time of the submit
) STRICT, WITHOUT ROWID;

-- File names by job, where the caller's function names the files. Names that some file systems treat as one
-- are one here.
CREATE TABLE file_name (
  folded TEXT PRIMARY KEY,
  job    INTEGER NOT NULL REFERENCES job (number)
) STRICT, WITHOUT ROWID;

CREATE INDEX file_name_by_job ON file_name (job);
