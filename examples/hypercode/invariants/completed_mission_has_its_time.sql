-- A mission is completed exactly when it says when.
SELECT id, status, completed_at FROM missions WHERE (status = 'COMPLETED') <> (completed_at IS NOT NULL)
