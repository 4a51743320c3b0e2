SELECT m.id, m.owner_id FROM missions m WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = m.owner_id)
