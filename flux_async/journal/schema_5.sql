-- Which task is whose. The record of a task shows the request it was made from, which is compared with the
-- job's own; what came in place of a task id is kept, as it may name one.

ALTER TABLE job ADD COLUMN echo TEXT CHECK (echo IN ('confirmed', 'absent', 'unrecognised'));

ALTER TABLE attempt ADD COLUMN answer TEXT;            -- to a submit that is in doubt, cut and without the key

ALTER TABLE attempt ADD COLUMN refused_task_id TEXT;   -- named for this attempt, and found to be of another

CREATE TABLE offer (                                   -- tasks whose record shows this job's request
  job     INTEGER NOT NULL REFERENCES job (number),
  task_id TEXT NOT NULL,
  at      REAL NOT NULL,
  PRIMARY KEY (job, task_id)
) STRICT, WITHOUT ROWID;

-- What a record shows of a request: its image, or its prompt where it has none. Only of jobs submitted before,
-- so that adding jobs costs nothing more.
CREATE INDEX job_by_subject
  ON job (coalesce(json_extract(request, '$.inputImage'), json_extract(request, '$.prompt')))
  WHERE attempts > 0;

CREATE INDEX attempt_by_input ON attempt (input_url) WHERE input_url IS NOT NULL;
