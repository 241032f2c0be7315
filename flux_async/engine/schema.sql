-- What the engine keeps beside DBOS's own tables. Times are seconds since the epoch. API keys are never stored:
-- an account is the fingerprint of its key.

CREATE SCHEMA IF NOT EXISTS flux_async;

CREATE TABLE IF NOT EXISTS flux_async.batch (
  name text PRIMARY KEY,
  options jsonb NOT NULL,
  is_cancelled boolean NOT NULL DEFAULT false,
  created_at double precision NOT NULL
);

CREATE SEQUENCE IF NOT EXISTS flux_async.settled;

CREATE TABLE IF NOT EXISTS flux_async.job (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch text NOT NULL REFERENCES flux_async.batch,
  key text NOT NULL,
  request text NOT NULL,
  source text,                               -- the path of its file, if that was copied into a store
  subject uuid NOT NULL,                     -- digest of its image, or without one of its prompt
  priority integer NOT NULL,
  added_at double precision NOT NULL,
  trace text,                                -- the context of its trace, from its first submit on at the latest
  state text NOT NULL DEFAULT 'pending',
  attempts integer NOT NULL DEFAULT 0,
  credits double precision,
  snapshot jsonb NOT NULL DEFAULT '{}',      -- the other fields of JobSnapshot
  obstacle jsonb,                            -- why the work on it ended before a final state
  is_queued boolean DEFAULT false,           -- whether DBOS has it; NULL while its batch is cancelled
  dispatches integer NOT NULL DEFAULT 0,     -- how often DBOS was given it
  settled bigint,                            -- its place in the order of outcomes; NULL while there is work to do
  UNIQUE (batch, key)
);
CREATE INDEX IF NOT EXISTS job_by_state ON flux_async.job (batch, state);
CREATE INDEX IF NOT EXISTS job_by_outcome ON flux_async.job (batch, settled);
CREATE INDEX IF NOT EXISTS job_to_queue ON flux_async.job (priority, number)
  WHERE NOT is_queued AND state = 'pending' AND settled IS NULL;
CREATE INDEX IF NOT EXISTS job_submitted ON flux_async.job (number)
  WHERE settled IS NULL AND state <> 'pending';
CREATE INDEX IF NOT EXISTS job_with_obstacle ON flux_async.job (batch) WHERE obstacle IS NOT NULL;
CREATE INDEX IF NOT EXISTS job_by_subject ON flux_async.job (subject) WHERE attempts > 0;

CREATE TABLE IF NOT EXISTS flux_async.attempt (
  job bigint NOT NULL REFERENCES flux_async.job ON DELETE CASCADE,
  number integer NOT NULL,
  account text NOT NULL,
  executor text NOT NULL,
  intended_at double precision NOT NULL,
  api text,
  model text,
  callback_id text UNIQUE,
  input_url text,
  task_id text UNIQUE,                       -- a task belongs to one submit
  is_refused boolean NOT NULL DEFAULT false, -- certainly not charged
  refused_task_id text,
  answer text,
  PRIMARY KEY (job, number)
);

CREATE TABLE IF NOT EXISTS flux_async.offer (
  job bigint NOT NULL REFERENCES flux_async.job ON DELETE CASCADE,
  task_id text NOT NULL,
  api text NOT NULL,
  at double precision NOT NULL,
  PRIMARY KEY (job, task_id)
);

CREATE TABLE IF NOT EXISTS flux_async.inbox (
  number bigint GENERATED ALWAYS AS IDENTITY,
  callback_id text NOT NULL REFERENCES flux_async.attempt (callback_id) ON DELETE CASCADE,
  task_id text NOT NULL,
  signed boolean NOT NULL,
  at double precision NOT NULL,
  PRIMARY KEY (callback_id, task_id, signed)
);

CREATE TABLE IF NOT EXISTS flux_async.account (
  fingerprint text PRIMARY KEY,
  spacing_s double precision NOT NULL,       -- between two submits; a 429 widens it
  limit_s double precision NOT NULL,         -- that the account allows
  next_at double precision NOT NULL DEFAULT 0,
  paused_until double precision NOT NULL DEFAULT 0,
  halted_until double precision NOT NULL DEFAULT 0,
  measuring_until double precision NOT NULL DEFAULT 0,  -- one worker measures a price: the others wait
  problem jsonb
);

CREATE TABLE IF NOT EXISTS flux_async.worker (
  executor text PRIMARY KEY,
  is_dead boolean NOT NULL DEFAULT false,    -- declared by another worker: it starts no submit any more
  started_at double precision NOT NULL
);

CREATE TABLE IF NOT EXISTS flux_async.fact (  -- what workers have learned
  name text PRIMARY KEY,
  value double precision NOT NULL
);
