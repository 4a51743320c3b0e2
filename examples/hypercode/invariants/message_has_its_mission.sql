SELECT g.id, g.mission_id FROM messages g WHERE NOT EXISTS (SELECT FROM missions m WHERE m.id = g.mission_id)
