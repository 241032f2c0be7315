-- Callbacks: an id for every attempt, which is part of the address it gave the vendor, and the callbacks that
-- named one. Anything else that calls is a reason to look, and leaves nothing here: what a stranger can fill
-- is bounded by the attempts of this journal.

ALTER TABLE attempt ADD COLUMN callback_id TEXT;

CREATE UNIQUE INDEX attempt_by_callback ON attempt (callback_id) WHERE callback_id IS NOT NULL;

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
