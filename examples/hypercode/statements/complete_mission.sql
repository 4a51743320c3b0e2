UPDATE missions SET status = 'COMPLETED', completed_at = coalesce(completed_at, now())
WHERE id = 1 AND owner_id = 1
RETURNING id, title, credits, priority, status, created_at, completed_at
