SELECT id, title, credits, priority, status, created_at, completed_at
FROM missions WHERE id = 1 AND owner_id = 1
