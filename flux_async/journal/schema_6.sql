-- Submits that the log beside the journal names and the journal lost with the jobs themselves: a job that is
-- given again under such a key is in doubt, and is not submitted.

CREATE TABLE lost_submit (
  key TEXT PRIMARY KEY,
  at  REAL NOT NULL                           -- when it was submitted
) STRICT, WITHOUT ROWID;
