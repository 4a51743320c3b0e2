SELECT id, title, credits, priority, status, created_at, completed_at
FROM missions WHERE owner_id = 1 ORDER BY id DESC LIMIT 20
