WITH owner AS (
    INSERT INTO users (name, password_hash) VALUES ('statements: chat', 'none') RETURNING id
), mission AS (
    INSERT INTO missions (owner_id, title, credits, priority) SELECT id, 'Reach orbit', 25, 'normal' FROM owner
    RETURNING id
)
INSERT INTO messages (mission_id, author, body)
SELECT id, 'user'::"MessageAuthor", 'How far is it?' FROM mission
UNION ALL
SELECT id, 'agent'::"MessageAuthor", 'One step at a time.' FROM mission
