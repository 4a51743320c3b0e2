SELECT id, name, password_hash FROM users WHERE name = 'ada'
