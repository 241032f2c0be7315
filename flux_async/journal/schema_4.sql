-- Addresses that a store signs anew each day. Step 8 replaces this column, and fills what takes its place.

ALTER TABLE job ADD COLUMN unsigned_url TEXT;

CREATE INDEX job_by_unsigned_url ON job (unsigned_url) WHERE unsigned_url IS NOT NULL;
