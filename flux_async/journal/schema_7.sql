-- Which job has which file name, where a function of the caller's names the files. Two names that some disk
-- takes for one are one here.

CREATE TABLE file_name (
  folded TEXT PRIMARY KEY,
  job    INTEGER NOT NULL REFERENCES job (number)
) STRICT, WITHOUT ROWID;

CREATE INDEX file_name_by_job ON file_name (job);
