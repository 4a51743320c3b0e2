-- Nobody knows when it was completed, so it is open again.
UPDATE missions SET status = 'OPEN', completed_at = NULL WHERE id = $1
