-- Addresses that a store signs anew each day: the job by its address without the signature, where it has one.

ALTER TABLE job ADD COLUMN unsigned_url TEXT;

UPDATE job SET unsigned_url = unsigned_url(request) WHERE instr(request, '?') > 0;

CREATE INDEX job_by_unsigned_url ON job (unsigned_url) WHERE unsigned_url IS NOT NULL;
