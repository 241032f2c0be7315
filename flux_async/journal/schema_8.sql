-- Jobs by the address of their image, as 64-bit digests: without its signature, and, where a query is left
-- then, without that too.

DROP INDEX job_by_unsigned_url;
ALTER TABLE job DROP COLUMN unsigned_url;
ALTER TABLE job ADD COLUMN address INTEGER;
ALTER TABLE job ADD COLUMN bare_address INTEGER;

UPDATE job SET address = address_of(request), bare_address = bare_address_of(request);

CREATE INDEX job_by_address ON job (address) WHERE address IS NOT NULL;
CREATE INDEX job_by_bare_address ON job (bare_address) WHERE bare_address IS NOT NULL;
