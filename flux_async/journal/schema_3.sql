-- Files of this machine. The request of a job names its picture by its content (sha256:...), so that the same
-- file is the same job whatever it is called; here is where it was last seen, and what an attempt sent instead.

ALTER TABLE job ADD COLUMN source BLOB;          -- the path as given

ALTER TABLE job ADD COLUMN source_folder BLOB;   -- what a relative one is relative to

ALTER TABLE attempt ADD COLUMN input_url TEXT;   -- where the vendor was told to fetch the picture, if uploaded

ALTER TABLE job ADD COLUMN sha256 TEXT;          -- of the picture on disk

CREATE INDEX attempt_by_task ON attempt (task_id) WHERE task_id IS NOT NULL;
