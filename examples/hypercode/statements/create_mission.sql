WITH owner AS (INSERT INTO users (name, password_hash) VALUES ('statements: create', 'none') RETURNING id)
INSERT INTO missions (owner_id, title, credits, priority) SELECT id, 'Reach orbit', 25, 'normal' FROM owner
RETURNING id, title, credits, priority, status, created_at, completed_at
